"""`ffstream config`: shows the daemon's options, and checks them."""

from collections.abc import Iterable
from pathlib import Path

import click

from ffstream.cli import options


@click.group(epilog=options.example("ffstream config show > ffstream.toml"))
def config() -> None:
    """Show or check the daemon's options."""


@config.command(epilog=options.example("ffstream config show --set network.preset=conv > ffstream.toml"))
@options.config_file
@options.state_folder
@options.settings
def show(file: Path | None, state: Path | None, settings: Iterable[str]) -> None:
    """Print all options as a TOML file, each with its meaning."""
    from ffstream.config import describe, load

    text = describe(load(file, options.with_state(settings, state)))
    click.echo(text.encode("utf-8", "surrogateescape"), nl=False)  # TOML is UTF-8, whatever the locale


@config.command(epilog=options.example("ffstream config check --config ffstream.toml --state STATE"))
@options.config_file
@options.state_folder
@options.settings
def check(file: Path | None, state: Path | None, settings: Iterable[str]) -> None:
    """Check the options; exit code 2 if one is wrong.

    Also checks the files and folders that they name, and the state folder. Changes nothing. Only a start can show
    whether a port is free or the disk has enough space.
    """
    from ffstream.config import load
    from ffstream.daemon import preflight

    preflight.check(load(file, options.with_state(settings, state)))
    click.echo("the options are valid")
