"""What the commands share: the boundary where an error becomes an exit code, JSON lines, progress bars."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ffstream.data import Progress as OnBytes
from ffstream.errors import ConfigError, FFStreamError


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


class ErrorBoundary(click.Group):
    """The one place where what a command raises becomes what a shell sees."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise WrongOption(error) from error
        except FFStreamError as error:
            raise Failure(error) from error


def print_json(result: dict[str, Any]) -> None:
    """One line on stdout, for scripts."""
    click.echo(json.dumps(result))


def progress_bar(*figures: str, quiet: bool) -> Progress:
    """A bar on stderr with the task fields `figures` behind it; none if `quiet` or if nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{figure}]}}") for figure in figures),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
    )


@contextmanager
def download_bar(*, quiet: bool) -> Iterator[OnBytes]:
    """Yields what `ffstream.data.load` tells about a download: a bar for each file, on stderr."""
    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("fetching {task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
    ) as bar:

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total)

        yield show
