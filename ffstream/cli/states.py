"""What the commands that read a state folder have in common."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ffstream.cli import options
from ffstream.cli.output import console

DAMAGED = 1  # the exit code


def folder(file: Path | None, state: Path | None) -> Path:
    """The state folder of a daemon with these options. Raises ConfigError."""
    from ffstream.config import load

    return load(file, options.with_state((), state)).state


def show(rows: dict[str, str]) -> None:
    """Prints names and values as a table."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    console(markup=False, highlight=False, soft_wrap=True).print(table)


def size(count: float) -> str:
    """Bytes for people, such as `1.5 MiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds for people, such as `5 min`."""
    for limit_s, unit_s, unit in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def samples(first_seq: int, last_seq: int) -> str:
    """A range of sequence numbers for people."""
    return f"sample {first_seq:,}" if first_seq == last_seq else f"samples {first_seq:,} to {last_seq:,}"


def end(context: click.Context, *, intact: bool, hint: str = "") -> None:
    """Sets the exit code, and prints the hint on stderr, if there is damage."""
    if intact:
        return
    if hint:
        click.echo(f"hint: {hint}", err=True)
    context.exit(DAMAGED)


def as_dicts(tuples: list[Any]) -> list[dict[str, Any]]:
    """Converts named tuples for JSON."""
    return [each._asdict() for each in tuples]
