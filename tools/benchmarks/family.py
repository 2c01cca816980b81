"""The table of the family: the systems of the reference article, with its figures and ours.

`family.toml` names the systems; ours are recorded rows, whose medians over the seeds are shown.
"""

import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tools.benchmarks.report import Row

FILE = Path(__file__).with_name("family.toml")
_HEAD = (
    "| system | article | Hinton | ours | backprop of that shape | CPU minutes | seeds | command |\n"
    "|---|---|---|---|---|---|---|---|"
)


def systems() -> list[dict[str, Any]]:
    """The systems, in the order of the table."""
    found: list[dict[str, Any]] = tomllib.loads(FILE.read_text(encoding="utf-8"))["system"]
    return found


def table(rows: Sequence[Row]) -> str:
    """A line for each system and each run that has measured it; one line if there is none."""
    return "\n".join([_HEAD, *(line for system in systems() for line in _lines(system, rows))])


def _lines(system: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    reported = [system["name"], system.get("article", "–"), system.get("hinton", "–")]
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in (row for row in rows if _matches(system, row)):
        runs.setdefault((row["command"], row["processor"]), []).append(row)
    for (command, _), found in runs.items():
        yield _line(*reported, *_measured(found), f"`{command}`")
    if not runs:
        yield _line(*reported, "not measured yet", *[""] * 4)


def _matches(system: Mapping[str, Any], row: Row) -> bool:
    command, only, without = row["command"], system.get("only", ""), system.get("without")
    return fnmatchcase(row["name"], system["rows"]) and only in command and not (without and without in command)


def _measured(rows: Sequence[Row]) -> list[str]:
    """Our median, the peer's, the minutes of one run, and the number of seeds."""
    theirs, minutes = ([row[key] for row in rows if key in row] for key in ("peer_value", "minutes"))
    return [
        f"{statistics.median(row['value'] for row in rows):.2f} %",
        f"{statistics.median(theirs):.2f} %" if theirs else "",
        f"{statistics.median(minutes):.2g}" if minutes else "",
        str(len(rows)),
    ]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
