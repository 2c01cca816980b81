"""Errors about options, for people: which option, which value, what is expected.

What is expected is derived from the declaration of the option, not from the message of the validation library, which
is meant for programmers and differs between versions.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ffstream.errors import ConfigError

_SHOWN_MAX = 80  # characters of a value; longer ones are cut
_CLOSE = 0.7  # how similar two names must be, from 0 to 1
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class OptionError(ValueError):
    """Raised by validators. The message names the option, the hint says what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UnknownOption(OptionError):
    """There is no option of this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        similar = closest(name, known)
        hint = f"did you mean {' or '.join(similar)}?" if similar else ""
        super().__init__(f"{name}: there is no such option", hint=hint)


@dataclass(frozen=True)
class Option:
    """The declaration of an option. `bounds` has some of the keys `ge`, `gt`, `le`, `lt`."""

    kind: Any
    default: Any = None
    bounds: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

    @property
    def choices(self) -> list[str]:
        """The values that it can have, as text; empty if they are not a closed list."""
        return ["true", "false"] if self.kind is bool else _choices(self.kind)

    @property
    def is_number(self) -> bool:
        """Whether its value is a single number."""
        return self.kind in (int, float)

    def expected(self) -> str:
        """What a value of this option must be, for an error message."""
        return f"expected {_kind(self.kind, self.default)}{self._range()}"

    def closest(self, value: Any) -> str:
        """A question that names the choice that was probably meant; empty if none is similar."""
        similar = get_close_matches(str(value).lower(), _choices(self.kind), 1, 0.5)
        return f"did you mean {similar[0]}?" if similar else ""

    def _range(self) -> str:
        if {"ge", "le"} <= self.bounds.keys():
            return f" from {show(self.bounds['ge'])} to {show(self.bounds['le'])}"
        said = [f"{words} {show(self.bounds[key])}" for key, words in _BOUNDS.items() if key in self.bounds]
        return f", {' and '.join(said)}" if said else ""


def options_of(section: Any) -> dict[str, Option]:
    """The options of a pydantic model."""
    return {
        name: Option(
            field.annotation,
            field.default,
            {key: getattr(bound, key) for bound in field.metadata for key in _BOUNDS if hasattr(bound, key)},
            field.description or "",
        )
        for name, field in section.model_fields.items()
    }


_WORDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _kind(kind: Any, default: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is tuple:
        return f"a list of {_plural(get_args(kind)[0])}, for example [1, 2]"
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}"
    if kind in (str, Path):
        example = str(default or "")
        return f"text in quotes, for example {show(example)}" if example else "text in quotes"
    return "a section of options, not a value"


def _plural(kind: Any) -> str:
    return {int: "whole numbers", float: "numbers"}.get(kind, "texts")


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) in (Union, UnionType):
        return [choice for each in get_args(kind) for choice in _choices(each)]
    return [str(each) for each in get_args(kind)] if get_origin(kind) is Literal else []


def show(value: Any) -> str:
    """A value as it is written in TOML, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(show(each) for each in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {show(each)}" for key, each in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False)  # JSON's escapes are TOML's


def wrong(name: str, value: Any, reason: str) -> str:
    """An error message: the option, its value, and what is wrong with it."""
    shown = show(value)
    return f"{name} = {shown if len(shown) <= _SHOWN_MAX else shown[: _SHOWN_MAX - 1] + '…'}: {reason}"


def closest(name: str, known: Iterable[str]) -> list[str]:
    """The known dotted names that were probably meant: the same name in another section, or a similar one in this
    one."""
    section, _, leaf = name.lower().rpartition(".")
    by_section: dict[str, dict[str, str]] = {}
    for each in known:
        its_section, _, its_leaf = each.rpartition(".")
        by_section.setdefault(its_section, {})[its_leaf] = each
    if moved := [leaves[leaf] for leaves in by_section.values() if leaf in leaves]:
        return moved
    for near in get_close_matches(section, by_section, 1, _CLOSE):
        if similar := get_close_matches(leaf, by_section[near], 1, _CLOSE):
            return [by_section[near][similar[0]]]
    return []


@contextmanager
def about(option: str) -> Iterator[None]:
    """Puts the name of an option in front of the message of a ConfigError that is raised in the block."""
    try:
        yield
    except ConfigError as error:
        error.message = f"{option}: {error.message}"
        error.args = (error.message,)
        raise
