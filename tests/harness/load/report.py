"""Prints the result of a load: one line of JSON, or a table for people."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tests.harness.load.usage import Comparison

_console = Console(highlight=False)


def growth(comparisons: Iterable[Comparison]) -> list[str]:
    """A message for each value that is not flat."""
    return [
        f"{each.name} grew from {each.before:.4g} to {each.after:.4g}; up to {each.limit:.4g} counts as flat"
        for each in comparisons
        if not each.flat
    ]


def publish(title: str, result: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints the result. Its `broken` lists the promises that are broken."""
    if as_json:
        click.echo(json.dumps(result))
        return
    table = Table("figure", "value", title=title, title_justify="left")
    for key, value in result.items():
        if key != "broken":
            table.add_row(key, _text(value))
    _console.print(table)
    for each in result["broken"]:
        _console.print(f"broken: {each}", markup=False)
    if not result["broken"]:
        _console.print("no promise is broken, and nothing grew")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
