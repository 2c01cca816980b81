"""Loads data sets for commands, with a progress bar for downloads and notes on stderr."""

from pathlib import Path

import click

from ffstream.cli.output import download_bar
from ffstream.data import Dataset, load


def load_dataset(name_or_dir: str, data: Path | None, *, quiet: bool) -> Dataset:
    """Calls `ffstream.data.load`. `quiet`: without a progress bar. Raises DataError."""
    with download_bar(quiet=quiet) as on_bytes:
        dataset = load(name_or_dir, data, on_bytes)
    for note in dataset.notes:
        click.echo(f"note: {note}", err=True)
    return dataset
