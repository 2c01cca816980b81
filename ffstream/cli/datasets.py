"""Loads splits of data sets for commands, with a progress bar and notes on stderr."""

from pathlib import Path

import click

from ffstream.cli.output import data_bar
from ffstream.data import Split, SplitName, load


def load_split(name_or_path: str, data: Path | None, split: SplitName, *, quiet: bool) -> Split:
    """Returns a split of what `ffstream.data.load` finds. `quiet`: without a progress bar. Raises DataError."""
    with data_bar(quiet=quiet) as on_bytes:
        dataset = load(name_or_path, data, on_bytes)
        result = dataset.split(split)
    names = ", ".join(f"{label} {name}" for label, name in enumerate(dataset.class_names))
    for note in (*dataset.notes, *([f"labels: {names}"] if names else [])):
        click.echo(f"note: {note}", err=True)
    return result
