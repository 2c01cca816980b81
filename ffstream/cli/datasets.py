"""Loads splits of data sets for commands, with a progress bar and notes on stderr."""

from pathlib import Path

import click

from ffstream.cli.output import data_bar
from ffstream.data import Dataset, Progress, Split, SplitName, load, load_text
from ffstream.errors import DataError


def load_split(name_or_path: str, data: Path | None, split: SplitName, window: int | None, *, quiet: bool) -> Split:
    """Returns a split of what `ffstream.data.load` finds, or with a `window` that of a text. `quiet`: without a
    progress bar. Raises DataError."""
    with data_bar(quiet=quiet) as on_bytes:
        dataset = _load(name_or_path, data, window, on_bytes)
        result = dataset.split(split)
    names = ", ".join(f"{label} {name}" for label, name in enumerate(dataset.class_names))
    for note in (*dataset.notes, *([f"labels: {names}"] if names else [])):
        click.echo(f"note: {note}", err=True)
    return result


def _load(name_or_path: str, data: Path | None, window: int | None, on_bytes: Progress) -> Dataset:
    if window is None:
        return load(name_or_path, data, on_bytes)
    if data is not None:
        raise DataError(f"--as text reads one file, so --data {data} would be ignored", hint="leave --data out")
    return load_text(name_or_path, window)
