"""SPEC.md, read by a program: its tables and lists as data."""

import re
from importlib.resources import files

SOCKETS = ("learn", "predict", "control")
_TEXT = files("ffstream.wire").joinpath("SPEC.md").read_text()


def _section(title: str) -> str:
    return _TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _rows(text: str) -> list[list[str]]:
    """The body rows of the tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if row[0].strip("`") not in ("type", "key", "socket") and set(row[0]) != {"-"}]


def _names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def _keys(cell: str) -> dict[str, str]:
    found = re.findall(r"`(\w+)`([^`]*)", cell)
    return {name: kind.split(",")[0].strip() for name, kind in found}


def messages() -> dict[str, dict[str, str]]:
    """Every type's keys with their kinds ("int", "list of int" …); `error` has those of all sockets."""
    found: dict[str, dict[str, str]] = {}
    everywhere: dict[str, str] = {}  # a kind is said where a key first appears
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
    return next(set(_names(row[2])) for row in _rows(_section("control")) if row[0] == "`request`")


def codes() -> list[set[str]]:
    """Error codes: wrong for good, not now, of control requests."""
    return [set(_names(each)) for each in re.findall(r"((?:`\w+`\s)*`\w+`):", _section("Error codes"))]
