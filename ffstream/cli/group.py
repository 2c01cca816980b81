"""The group of all commands: imports a command when it is needed, and turns its errors into an exit code."""

import gc
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import IO, Any

import click

from ffstream.cli.colour import is_coloured
from ffstream.cli.encoding import tolerate_encoding
from ffstream.cli.standard_streams import open_standard_streams
from ffstream.errors import ConfigError, FFStreamError, StartBlocked

COMPLETION = "_FFSTREAM_COMPLETE"  # the variable that the scripts of `ffstream completion` set

# The module of each command, in the order of the help.
_MODULES = {
    "serve": "serve",
    "serve-predictions": "serve_predictions",
    "replay": "replay",
    "evaluate": "evaluate",
    "predict": "predict",
    "status": "control",
    "top": "top",
    "plot": "plot",
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
    "completion": "completion",
}


_SUMMARY_MAX = 120  # characters

ShowError = Callable[[FFStreamError, int], None]
SHOW_ERROR = "ffstream.show_error"  # key of a ShowError in the `meta` of a command's context


class Failure(click.ClickException):
    """An FFStreamError, shown as two lines and an exit code. `show_error` shows it in another way."""

    exit_code = 1

    def __init__(self, error: FFStreamError, show_error: ShowError | None = None) -> None:
        super().__init__(error.message)
        self._error = error
        self._show_error = show_error

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the error and its hint."""
        if self._show_error is not None:
            self._show_error(self._error, self.exit_code)
            return
        stream = file or sys.stderr
        label = click.style("error:", fg="red", bold=True) if is_coloured(stream) else "error:"
        click.echo(f"{label} {self._error.message} [{self._error.code}]", file=stream)
        if self._error.hint:
            click.echo(f"hint: {self._error.hint}", file=stream)


class WrongOption(Failure):
    """A restart does not help."""

    exit_code = 2


class NotNow(Failure):
    """A restart may help: EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


class Commands(click.Group):
    """Imports only the command that is run, and turns its errors into output and exit code for the shell."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs the process. First of all, makes sure that descriptors 0 to 2 are open."""
        open_standard_streams()
        if COMPLETION in os.environ:
            import_module("ffstream.cli.shells")
        return super().main(*arguments, **options)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Parses the command line. From here on all text can be printed, whatever the terminal's encoding."""
        tolerate_encoding()
        return super().make_context(*arguments, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of the help."""
        return list(_MODULES)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command. click suggests only commands that are imported already, so a typo is explained here."""
        near = get_close_matches(args[0], _MODULES) if args and args[0] not in _MODULES else []
        if near and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(map(repr, near))}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command."""
        if cmd_name not in _MODULES:
            return None
        collects = gc.isenabled()
        gc.disable()  # saves a fifth of the time; imports create no garbage
        try:
            command: click.Command = getattr(
                import_module(f"ffstream.cli.{_MODULES[cmd_name]}"), cmd_name.replace("-", "_")
            )
        finally:
            if collects:
                gc.enable()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands. A summary that is longer than a line is continued on the next one, not cut off."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_SUMMARY_MAX)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except FFStreamError as error:
            raise _failure(error)(error, ctx.meta.get(SHOW_ERROR)) from error


def _failure(error: FFStreamError) -> type[Failure]:
    if isinstance(error, ConfigError):
        return WrongOption
    return NotNow if isinstance(error, StartBlocked) else Failure
