"""Recorded results: the rows in results.jsonl, and the tables of tools/README.md that are generated from them.

results.jsonl has one JSON object per line. It is valid if and only if each has `name`, `command` and the keys of
`report.origin`. A row is a measurement or has a `result`. A measurement has `value unit`, or `low high unit` for a
range, and `peer peer_value ratio` if there is a peer. A `result` is the JSON that a tool printed, or text. If the
origin of a figure is unknown, its keys are "not recorded", and `entered` is the commit that added the figure to the
documentation. `note` is a remark for readers.

Each table is between `<!-- results NAME -->` and `<!-- end -->`. NAME is a section, `machines`, `family` (see
family.py), or `forecast` (see cluster/forecast.py).
"""

import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks import family
from tools.benchmarks.cluster import forecast, measured
from tools.benchmarks.report import NOT_RECORDED, ROOT, Failed, Row, origin, today

ROWS = ROOT / "tools" / "benchmarks" / "results.jsonl"
README = ROOT / "tools" / "README.md"
# The first part of the names of the rows in each section.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("accuracy",),
    "combinations": ("combinations",),
    "phases": ("phases", "deprivation"),
    "dreams": ("dreams",),
    "drift": ("drift",),
    "hardware": ("hardware",),
    "serial": ("serial",),
    "recurrent": ("recurrent",),
    "learning": ("learn",),
    "serving": ("ingest", "predict"),
    "operation": ("checkpoint", "recovery", "security", "viewers", "page"),
    "faults": ("crash", "soak", "fuzz"),
    "cluster": ("cluster",),
    "cuda": ("gpu",),
}
_VERSIONS = ("python", "torch", "numpy", "pyzmq")
_BLOCK = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load() -> list[Row]:
    """All rows, in order."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def save(rows: Iterable[Row]) -> None:
    """Writes all rows."""
    ROWS.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# --- recording ---------------------------------------------------------------------------------------------------


def run(command: Sequence[str]) -> list[Row]:
    """Runs a tool, prints its output and returns its rows. `command` includes `--json`. Raises Failed."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise Failed(f"{shlex.join(command)} ended with exit code {done.returncode}; nothing is recorded")
    return parse(done.stdout, shlex.join(each for each in command if each != "--json"))


def parse(output: str, command: str) -> list[Row]:
    """The rows in the output of a tool. A JSON line that is no row becomes the `result` of one. Raises Failed."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if not found:
        raise Failed(f"{command} printed no JSON: does it need --json?")
    name = Path(shlex.split(command)[0]).name
    return [
        each
        if "name" in each and "command" in each
        else {
            "name": name,
            "result": each,
            "command": command,
            "options": {},
            "seeds": [],
            **origin(),
            "measured": today(),
        }
        for each in found
    ]


def merge(rows: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """All rows and the new ones. These replace the rows of the same command on the same processor, and those of the
    same command whose origin is unknown."""
    replaced = {(row["command"], row["processor"]) for row in new}
    commands = {row["command"] for row in new}
    kept = [
        row
        for row in rows
        if (row["command"], row["processor"]) not in replaced
        and not (row["command"] in commands and row["commit"] == NOT_RECORDED)
    ]
    return kept + list(new)


# --- tables ------------------------------------------------------------------------------------------------------


def render(text: str, rows: Sequence[Row]) -> str:
    """The text with its tables generated from these rows. Raises ValueError for an unknown section."""
    machines = _Machines(rows)

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name == "machines":
            return f"{begin}{machines.table()}\n{end}"
        if name == "family":
            return f"{begin}{family.table(rows)}\n{end}"
        if name == "forecast":
            return f"{begin}\n{forecast.table(measured.load())}\n\n{end}"
        if name not in SECTIONS:
            raise ValueError(f"{name}: not a section of results; these are {', '.join(SECTIONS)}")
        own = [row for row in rows if row["name"].partition("/")[0] in SECTIONS[name]]
        return f"{begin}{_section(own, machines)}\n{end}"

    return _BLOCK.sub(block, text)


class _Machines:
    """A letter for each combination of machine and versions that rows were measured on."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._letters: dict[str, str] = {}
        for row in rows:
            self._letters.setdefault(_machine(row), chr(ord("A") + len(self._letters)))

    def letter(self, row: Row) -> str:
        return self._letters[_machine(row)]

    def table(self) -> str:
        return "\n".join(f"- {letter}: {machine}" for machine, letter in self._letters.items())


def _machine(row: Row) -> str:
    flags = [f"flags {' '.join(row['flags'])}"] if isinstance(row["flags"], list) else []
    device = [f"GPU {row['device']}"] if "device" in row else []
    versions = [f"{key} {row[key]}" for key in _VERSIONS if row[key] != NOT_RECORDED]
    return "; ".join([row["processor"], *flags, f"{row['cores']} cores", *device, ", ".join(versions)])


def _section(rows: Sequence[Row], machines: _Machines) -> str:
    if not rows:
        return "\nNo results yet.\n"
    results = [row for row in rows if "result" in row]
    lines = [""]
    measurements = [row for row in rows if "result" not in row]
    for (command, _), own in _grouped(measurements, "command", "processor"):  # `merge` keeps one run for each of them
        lines += [f"`{command}` ({_source(own[0], machines)}):", "", "| figure | value | beside | ratio |"]
        lines += ["|---|---|---|---|", *(_figure(name, same) for (name,), same in _grouped(own, "name")), ""]
    if results:
        lines += ["| command | result | from |", "|---|---|---|"]
        lines += [
            f"| `{row['command']}`{_note(row)} | {_result(row['result'])} | {_source(row, machines)} |"
            for row in results
        ]
        lines += [""]
    return "\n".join(lines)


def _grouped(rows: Iterable[Row], *keys: str) -> Iterable[tuple[tuple[str, ...], list[Row]]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups.items()


def _source(row: Row, machines: _Machines) -> str:
    commit = f"`{row['commit']}`" if row["commit"] != NOT_RECORDED else f"commit {NOT_RECORDED}"
    if "entered" in row:
        commit += f", entered by `{row['entered']}`"
    dirty = " with changes" if row["dirty"] is True else ""
    date = f"; {row['measured']}" if row["measured"] != NOT_RECORDED else ""
    seeds = f"; seeds {', '.join(map(str, row['seeds']))}" if isinstance(row["seeds"], list) and row["seeds"] else ""
    return f"{commit}{dirty}; machine {machines.letter(row)}{date}{seeds}"


def _figure(name: str, rows: Sequence[Row]) -> str:
    """One line of a table. Several rows with one name are repetitions: shows their median and range."""
    cells = [
        f"`{name}`{_note(rows[0])}",
        _value(rows),
        f"{rows[0].get('peer', '')} {_spread(rows, 'peer_value')}".strip(),
        _spread(rows, "ratio"),
    ]
    return f"| {' | '.join(cells)} |"


def _value(rows: Sequence[Row]) -> str:
    first = rows[0]
    if "failed" in first:
        return f"failed: {first['failed']}"
    shown = f"{_spread(rows, 'value')} {first.get('unit', '')}".strip()
    if "standing" in first:
        shown += f", {number(first['lowest'])} to {number(first['highest'])}: {first['standing']}"
    return shown


def _note(row: Row) -> str:
    return f" ({row['note']})" if "note" in row else ""


def _spread(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    if not values:
        return f"{number(rows[0]['low'])} to {number(rows[0]['high'])}" if key == "value" and "low" in rows[0] else ""
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Floats with three significant digits, integers with all."""
    if isinstance(value, int):
        return f"{value:,}"
    shown = float(f"{value:.3g}")
    return f"{shown:,.0f}" if abs(shown) >= 100 else f"{shown:.3g}"


def _result(result: Mapping[str, Any] | str) -> str:
    """The plain values of what a tool printed, without lists and objects."""
    if isinstance(result, str):
        return result
    plain = {key: value for key, value in result.items() if isinstance(value, bool | int | float | str)}
    return ", ".join(f"{key} {_plain(value)}" for key, value in plain.items())


def _plain(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value)
