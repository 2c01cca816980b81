"""Checks a Grafana dashboard against the schema in the package grafana-foundation-sdk, as far as that goes.

The package reads JSON into classes with type annotations, but drops keys that it does not know and checks no types.
So `faults` compares what it has read with the JSON, and each value with its annotation.
"""

import json
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

# Of annotations with the Prometheus data source; the schema does not describe what each data source adds.
_NOT_IN_THE_SCHEMA = "titleFormat"


_UNIONS = (typing.Union, types.UnionType)


def faults(dashboard: Mapping[str, Any]) -> list[str]:
    """What does not fit, each as a path in the JSON and a reason. Keys that must be there are not checked."""
    plugins.register_default_plugins()
    model = Dashboard.from_json(dict(dashboard))
    read = json.loads(JSONEncoder().encode(model))
    return [*_lost(dashboard, read, ""), *_wrong(model, Dashboard, "")]


def _lost(given: Any, read: Any, path: str) -> Iterator[str]:
    """Keys that were dropped."""
    if isinstance(given, Mapping) and isinstance(read, Mapping):
        for key in given:
            if key in read:
                yield from _lost(given[key], read[key], f"{path}.{key}")
            elif key != _NOT_IN_THE_SCHEMA:
                yield f"{path}.{key}: the schema has no such key"
    elif isinstance(given, list) and isinstance(read, list):
        for index, pair in enumerate(zip(given, read, strict=True)):
            yield from _lost(*pair, f"{path}[{index}]")
    elif given != read:
        yield f"{path}: {given!r} was read as {read!r}"


def _wrong(value: Any, kind: Any, path: str) -> Iterator[str]:
    """Values that are not of their annotated type."""
    if not _fits(value, kind):
        choices = typing.get_args(kind) or [each.value for each in getattr(kind, "__members__", {}).values()]
        yield f"{path}: {value!r} is " + (f"none of {choices}" if choices else f"not a {kind.__name__}")
        return
    for name, part, kind_of_part in _parts(value, kind):
        yield from _wrong(part, kind_of_part, f"{path}{name}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether it is of this type, apart from its parts."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (Any, object):
        return True
    if origin in _UNIONS:
        return any(_fits(value, each) for each in arguments)
    if origin is typing.Literal:
        return value in arguments
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value in [each.value for each in kind]
    return isinstance(value, (int, float) if kind is float else origin or kind)


def _parts(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """The parts of a value: the end of their path, the part, its type."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in _UNIONS:
        yield from _parts(value, next(each for each in arguments if _fits(value, each)))
    elif isinstance(value, list):
        yield from ((f"[{index}]", each, arguments[0]) for index, each in enumerate(value) if arguments)
    elif isinstance(value, dict):
        yield from ((f".{key}", each, arguments[1]) for key, each in value.items() if arguments)
    elif type(value).__module__.startswith("grafana_foundation_sdk.models"):
        hints = typing.get_type_hints(
            type(value)
        )  # not of `kind`: what the options of a panel are depends on its type
        yield from ((f".{name}", getattr(value, name, None), hint) for name, hint in hints.items())
