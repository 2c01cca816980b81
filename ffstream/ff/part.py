"""A layer is composed of parts. A part is found by its family (goodness, say) and its kind (sum_squares, say).

A part is a frozen record of its options. Its formulas are methods of the same class and use only methods of the
tensors that they are given, so options can be checked without importing torch. A part that holds state (an optimiser,
say) names the class that does.

    [[network.layers]]
    goodness = { kind = "sum_squares", negative = true }     # or, without options, goodness = "sum_squares"

A part from outside the package subclasses its family's base class and is registered with `@register`.
`network.parts`, or an entry point of the group `ffstream.parts`, names its module.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from importlib import import_module
from operator import getitem
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from ffstream.util.option_errors import Option, OptionError, closest, options_of, show, wrong

_Options = TypeVar("_Options", bound="Options")
_Member = TypeVar("_Member", bound="Part")


class Options(BaseModel):
    """Options that are validated when they are made and then never change. Unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Part(Options):
    """Base class of all families. A member has a field `kind` with one value: its name in the configuration."""

    family: ClassVar[str]
    must_define: ClassVar[tuple[str, ...]] = ()  # attributes that each member of the family has to define
    kind: str

    def __str__(self) -> str:
        return self.kind


_MEMBERS: dict[str, dict[str, type[Part]]] = {}


def register(member: type[_Member]) -> type[_Member]:
    """Registers a member of a family under its kind. Raises ValueError if the kind is taken or the class
    incomplete."""
    kind = member.model_fields["kind"].default
    if not isinstance(kind, str):
        raise ValueError(f'{member.__name__} needs a field `kind: Literal["name"] = "name"`')
    base = next(each for each in member.__mro__ if "must_define" in vars(each))
    missing = [name for name in member.must_define if getattr(member, name, None) is getattr(base, name, None)]
    if missing:
        raise ValueError(f"{member.__name__} must define {', '.join(missing)}: see {base.__module__}.{base.__name__}")
    known = _MEMBERS.setdefault(member.family, {}).setdefault(kind, member)
    if (known.__module__, known.__qualname__) != (member.__module__, member.__qualname__):
        raise ValueError(f"{member.family} {kind!r} is already registered by {known.__module__}.{known.__qualname__}")
    _MEMBERS[member.family][kind] = member
    return member


def members(family: str) -> Mapping[str, type[Part]]:
    """The registered members of a family, by kind."""
    return _MEMBERS.get(family, {})


def field_of(family: str) -> tuple[Any, Any]:
    """Annotations for a field that holds a member of `family`, written as its kind or as a table with a `kind`.

    Error messages begin after the name of the field: ".alpha = -1: expected …", or " = \"cubes\": expected one of …".
    """

    def find(given: Any) -> Any:
        if isinstance(given, Part):
            return given
        table = {"kind": given} if isinstance(given, str) else given
        kinds = Option(Literal[tuple(sorted(members(family)))])
        if not isinstance(table, Mapping):
            raise OptionError(f" = {show(given)}: {kinds.expected()}, or a table with a kind")
        kind = str(table.get("kind"))
        if kind not in members(family):
            where = " = " if isinstance(given, str) else ".kind = "
            raise OptionError(f"{where}{show(kind)}: {kinds.expected()}", hint=kinds.closest(kind))
        return make(members(family)[kind], table, ".")

    return BeforeValidator(find), SerializeAsAny()  # type: ignore[type-arg]


def make(model: type[_Options], table: Mapping[str, Any], prefix: str = "") -> _Options:
    """Validates the options in a table. Raises OptionError, which names the option with `prefix` before its name."""
    check_numbers(model, table, prefix)
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _explain(model, table, first, prefix) from error


def check_numbers(model: type[Options], table: Mapping[str, Any], prefix: str) -> None:
    """Raises OptionError for true or false where a number is expected: Python would take them as 1 and 0."""
    for key, option in options_of(model).items():
        if option.is_number and isinstance(value := table.get(key), bool):
            raise OptionError(wrong(f"{prefix}{key}", value, option.expected()))


def _explain(model: type[Options], table: Mapping[str, Any], first: Mapping[str, Any], prefix: str) -> OptionError:
    cause = first.get("ctx", {}).get("error")  # an error that one of our validators raised
    loc, value = list(first["loc"]), first["input"]
    while loc and isinstance(loc[-1], int):  # an element of a list: the option is the list
        loc.pop()
        value = reduce(getitem, loc, table)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    name = prefix + where.removeprefix(".")
    if isinstance(cause, OptionError):
        return OptionError(f"{name}{cause}", hint=cause.hint)
    if cause is not None:
        return OptionError(f"{name}: {cause}" if name.strip(".") else f"{name}{cause}")
    key, owner = str(loc[-1]), _owner(model, loc)
    if first["type"] == "extra_forbidden":
        meant = closest(key, owner)
        return OptionError(f"{name}: there is no such option", hint=f"did you mean {meant[0]}?" if meant else "")
    if first["type"] == "missing":
        return OptionError(f"{name} is missing")
    option = owner.get(key, Option(Mapping))
    return OptionError(wrong(name, value, option.expected()), hint=option.closest(value))


def _owner(model: type[Options], loc: list[Any]) -> dict[str, Option]:
    """The options of the table that an error's location ends in."""
    names = [part for part in loc if isinstance(part, str)][:-1]
    for name in names:
        inner = [each for each in get_args(model.model_fields[name].annotation) if isinstance(each, type)]
        model = next((each for each in inner if issubclass(each, Options)), model)
    return options_of(model)


def resolve(name: str) -> Callable[..., Any]:
    """Imports the class or function that "package.module:name" names."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found
