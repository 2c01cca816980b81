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

    click.echo(describe(load(file, options.with_state(settings, state))), nl=False)


@config.command()
@options.config_file
@options.state_folder
@options.settings
def check(file: Path | None, state: Path | None, settings: Iterable[str]) -> None:
    """Say whether the options are right; exit code 2 if they are not."""
    from ffstream.config import load
    from ffstream.server.access import check_doors

    options_in_force = load(file, options.with_state(settings, state))
    check_doors(options_in_force.listen, options_in_force.security)
    click.echo("the options are right")
