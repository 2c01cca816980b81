"""`ffstream config`: the options in force, and whether they are right."""

from collections.abc import Iterable
from pathlib import Path

import click

from ffstream.cli import options


@click.group()
def config() -> None:
    """Show or check the daemon's options."""


@config.command()
@options.config_file
@options.state_folder
@options.settings
def show(file: Path | None, state: Path | None, settings: Iterable[str]) -> None:
    """Print all options in force as a TOML file, each with what it means."""
    from ffstream.config import describe, load

    text = describe(load(file, options.with_state(settings, state)))
    click.echo(text.encode("utf-8", "surrogateescape"), nl=False)  # TOML is UTF-8, whatever the locale


@config.command()
@options.config_file
@options.state_folder
@options.settings
def check(file: Path | None, state: Path | None, settings: Iterable[str]) -> None:
    """Say whether the options are right; exit code 2 if they are not.

    Looks at the files and folders that they name and at the state as well, and changes nothing. Only a start can tell
    whether a port is free or the disk has room.
    """
    from ffstream.config import load
    from ffstream.daemon import preflight

    preflight.check(load(file, options.with_state(settings, state)))
    click.echo("the options are right")
