"""The tables of `ffstream/wire/SPEC.md` as data."""

import re
from importlib.resources import files

SOCKETS = ("learn", "predict", "control")
_TEXT = files("ffstream.wire").joinpath("SPEC.md").read_text()


def _section(title: str) -> str:
    return _TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _rows(text: str) -> list[list[str]]:
    """The body rows of all tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        row
        for row in rows
        if row[0].strip("`") not in ("type", "key", "socket", "code", "command", "field") and set(row[0]) != {"-"}
    ]


def _names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def _keys(cell: str) -> dict[str, str]:
    found = re.findall(r"`(\w+)`([^`]*)", cell)
    return {name: kind.split(",")[0].strip() for name, kind in found}


def messages() -> dict[str, dict[str, str]]:
    """The keys of every message type with their kinds ("int", "list of int" …).

    A type that several sockets use has the keys of all of them.
    """
    found: dict[str, dict[str, str]] = {}
    everywhere: dict[str, str] = {}  # a table names the kind of a key where it first appears
    for section in (*SOCKETS, "Any socket"):
        for name, keys, *_ in _rows(_section(section)):
            found.setdefault(name.strip("`"), {})
            for key, kind in _keys(keys).items():
                everywhere.setdefault(key, kind)
                found.setdefault(name.strip("`"), {})[key] = kind or everywhere[key]
    return found


def socket_types() -> dict[str, set[str]]:
    """The types that a client may send to each socket."""
    return {row[0]: set(_names(row[3])) for row in _rows(_TEXT.split("\n## ")[0])}


def commands() -> set[str]:
    """The control commands."""
    return {row[0].strip("`") for row in _rows(_section("Commands"))}


def status_keys() -> dict[str, str]:
    """The keys of a status with their kinds; a key in a map has a dot."""
    return {row[0].strip("`"): row[1] for row in _rows(_section("Status"))}


def snapshot_keys() -> dict[str, str]:
    """The keys of the result of `snapshot` with their kinds."""
    return {row[0].strip("`"): row[1] for row in _rows(_section("Snapshots"))}


def ranges() -> dict[str, tuple[int, int]]:
    """The lowest and highest value of each integer field whose range is written as "0 to 2^62 − 1"."""
    found: dict[str, tuple[int, int]] = {}
    for names, kind, values in _rows(_section("Fields")):
        match = re.match(r"(\d+) to 2\^(\d+) − 1", values)
        if match and kind == "int":
            found |= dict.fromkeys(_names(names), (int(match[1]), 2 ** int(match[2]) - 1))
    return found


def codes() -> list[set[str]]:
    """Error codes, one set for each table: permanent, retryable, of failed requests, unauthorized."""
    return [{row[0].strip("`") for row in _rows(each)} for each in _section("Error codes").split("\n### ")[1:]]
