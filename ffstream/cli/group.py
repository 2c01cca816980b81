"""The group of all commands: finds one when it is asked for, and turns what it raises into an exit code."""

import gc
import sys
from importlib import import_module
from typing import IO, Any

import click

from ffstream.cli.encoding import tolerate_encoding
from ffstream.cli.streams import open_standard_streams
from ffstream.errors import ConfigError, FFStreamError, StartBlocked

# Each in the file of its name, or in the one that is named here; in the order of the help.
_HOME = {
    "serve": "serve",
    "replay": "replay",
    "evaluate": "evaluate",
    "status": "control",
    "checkpoint": "checkpoint",
    "rollback": "control",
    "journal": "journal",
    "backup": "backup",
    "export": "export",
    "pause": "control",
    "resume": "control",
    "drain": "control",
    "stop": "control",
    "keygen": "keygen",
    "config": "config",
}


class Failure(click.ClickException):
    """An FFStreamError as click shows it: two lines and an exit code."""

    exit_code = 1

    def __init__(self, error: FFStreamError) -> None:
        super().__init__(error.message)
        self._error = error

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints what failed and what to do."""
        click.echo(f"error: {self._error.message} [{self._error.code}]", file=file or sys.stderr)
        if self._error.hint:
            click.echo(f"hint: {self._error.hint}", file=file or sys.stderr)


class WrongOption(Failure):
    """Not for a restart to mend."""

    exit_code = 2


class NotNow(Failure):
    """A restart may mend it: EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


class Commands(click.Group):
    """No command waits for the imports of another. The one place where what they raise becomes what a shell sees."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """The process. Before it opens anything, descriptors 0 to 2 are what others take them for."""
        open_standard_streams()
        return super().main(*arguments, **options)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Reads the command line. From here on output may be anything, whatever the terminal's encoding."""
        tolerate_encoding()
        return super().make_context(*arguments, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the help."""
        return list(_HOME)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports it."""
        if cmd_name not in _HOME:
            return None
        collects = gc.isenabled()
        gc.disable()  # a fifth of the time; imports make no garbage
        try:
            command: click.Command = getattr(import_module(f"ffstream.cli.{_HOME[cmd_name]}"), cmd_name)
        finally:
            if collects:
                gc.enable()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs it."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise WrongOption(error) from error
        except StartBlocked as error:
            raise NotNow(error) from error
        except FFStreamError as error:
            raise Failure(error) from error
