"""Output that commands have in common: JSON lines, progress bars."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ffstream.cli.colour import is_coloured
from ffstream.data import Progress as OnBytes


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A console on stdout or stderr, as it is now. It has styles only if `is_coloured`."""
    stream = sys.stderr if stderr else sys.stdout
    if not is_coloured(stream):
        options["color_system"] = None
    return Console(stderr=stderr, force_terminal=stream.isatty(), **options)


def print_json(result: dict[str, Any]) -> None:
    """Prints one line on stdout, for scripts."""
    click.echo(json.dumps(result))


def prequential_error(status: Mapping[str, Any]) -> str:
    """The prequential error in a status: over its window, which has few samples at first, and over all."""
    recent, total = status["prequential_error"], status["prequential_error_total"]
    if recent is None or total is None:
        return "no samples are predicted yet"
    return f"{recent:.2%} of the last {status['prequential_window_samples']:,} predicted, {total:.2%} of all"


def progress_bar(*figures: str, quiet: bool) -> Progress:
    """A bar on stderr, followed by the task fields `figures`. Invisible if `quiet` or without a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{figure}]}}") for figure in figures),
        console=console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
    )


@contextmanager
def data_bar(*, quiet: bool) -> Iterator[OnBytes]:
    """Yields a callback for `ffstream.data.load` that shows a bar on stderr for each file while it is in work."""
    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    ) as bar:

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield show
