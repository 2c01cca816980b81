"""The specification is the authority: what it lists is what the code has, and nothing else."""

from typing import Any

import msgpack
import pytest

from ffstream import errors
from ffstream.errors import BadHeader, FFStreamError, ProtocolError, Unauthorized, Unavailable
from ffstream.wire import messages
from ffstream.wire.codec import decode, encode, snapshot_info, table
from ffstream.wire.messages import Message
from tests import wire_spec


def leaves(base: type[Any]) -> set[type[Any]]:
    return {base, *(leaf for each in base.__subclasses__() for leaf in leaves(each))}


TYPES = {each.type: each for each in leaves(Message) if hasattr(each, "type")}
SPEC = wire_spec.messages()
EXAMPLES: dict[str, Any] = {
    "int": 1,
    "int or nil": None,
    "float or nil": None,
    "str or nil": None,
    "str": "uint8",
    "bin": b"\0\0",
    "map": {},
    "bool": True,
    "list of int": [1],
    "list of": [[1, 1, 1]],
}
WRONG: dict[str, list[Any]] = {
    "int": [-1, 2**63, 2**64 - 1, 1.0, "1", None, True, [1], {}, b"1"],
    "int or nil": [-1, 2**63, 1.0, "1", True],
    "float or nil": [-1, -0.5, float("nan"), float("inf"), "1", True, []],
    "str or nil": [1, b"x", ["x"]],
    "str": [1, None, b"x", ["x"]],
    "bin": ["text", 1, None, [0]],
    "map": [1, None, "x", [], [["a", 1]]],
    "bool": [1, "true", None],
    "list of int": [1, None, "1", b"1", ["1"], [-1], [1.0], [None], [[1]], {}],
    "list of": [1, None, "x", [1], [[1, 1]], [[1, 1, 1, 1]], [[1, 1, -1]], [["1", 1, 1]], {}],
}
OPTIONAL = {
    ("hello", "client"),
    ("welcome", "unlabelled"),
    ("welcome", "next"),
    ("welcome", "credit"),
    ("request", "arguments"),
    ("pong", "credit"),
    *((name, key) for name in ("welcome", "pong") for key in ("refusing", "message", "hint")),
    *(("error", key) for key in ("hint", "retry", "n", "id", "retry_after_s")),
}
KEYS = [(name, key) for name, keys in SPEC.items() for key in keys]


def example(name: str) -> dict[str, Any]:
    return {"v": 1, "type": name, **{key: EXAMPLES[kind] for key, kind in SPEC[name].items()}}


def read(fields: dict[str, Any]) -> Message:
    return decode(msgpack.packb(fields), TYPES)


def test_the_code_has_the_same_types_and_keys() -> None:
    assert {name: set(keys) for name, keys in SPEC.items()} == {
        name: set(each.model_fields) for name, each in TYPES.items()
    }


def test_the_result_of_snapshot_has_the_keys_of_the_specification() -> None:
    kinds = {"str": "abc", "int": 1, "float": 0.5, "map or nil": None}
    keys = wire_spec.snapshot_keys()
    assert set(keys) == set(messages.SnapshotInfo.model_fields)
    result = {key: kinds[kind] for key, kind in keys.items()}
    assert snapshot_info(result).boot == "abc"
    for key in keys:
        with pytest.raises(BadHeader, match=f"snapshot.{key}"):
            snapshot_info(result | {key: ["x"]})


def test_the_messages_module_has_no_other_message() -> None:
    public = {each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, Message)}
    assert {each for each in public if "type" in vars(each)} == set(TYPES.values())


@pytest.mark.parametrize("name", SPEC)
def test_a_message_as_specified_is_decoded(name: str) -> None:
    message = read(example(name))
    assert type(message) is TYPES[name]
    # A tuple here is a list there: msgpack knows one of them.
    assert msgpack.unpackb(encode(message)) == example(name)


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_the_error_names_a_missing_key(name: str, key: str) -> None:
    fields = example(name)
    del fields[key]
    if (name, key) in OPTIONAL:
        read(fields)
        return
    with pytest.raises(BadHeader, match=rf"{name}\.{key}") as caught:
        read(fields)
    assert caught.value.hint


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_a_value_of_another_kind_is_rejected_and_the_error_names_its_key(name: str, key: str) -> None:
    for value in WRONG[SPEC[name][key]]:
        with pytest.raises(BadHeader, match=rf"{name}\.{key}") as caught:
            read(example(name) | {key: value})
        assert caught.value.hint


@pytest.mark.parametrize("name", SPEC)
def test_an_unknown_key_is_ignored(name: str) -> None:
    assert read(example(name) | {"colour": "blue", "extra": {"a": [1]}}) == read(example(name))


def test_the_error_codes_are_those_in_the_code() -> None:
    wrong, later, of_control, stranger = wire_spec.codes()
    assert wrong == {each.code for each in leaves(ProtocolError)} - {ProtocolError.code}
    assert later == {each.code for each in leaves(Unavailable)}
    others = leaves(FFStreamError) - leaves(ProtocolError) - leaves(Unavailable)
    assert of_control <= {each.code for each in others}
    assert FFStreamError.code in of_control
    assert stranger == {Unauthorized.code}


def test_every_code_has_a_meaning_a_state_on_disk_and_an_action_for_the_client() -> None:
    for row in wire_spec._rows(wire_spec._section("Error codes")):
        assert all(row), row
        assert len(row) == 4, row


def test_numbers_are_accepted_within_their_ranges_only() -> None:
    ranges = wire_spec.ranges()
    assert set(ranges) >= {"n", "base", "count", "id", "next", "credit", "max_samples", "max_bytes", "version", "seq"}
    for name, keys in SPEC.items():
        for key, kind in keys.items():
            if kind != "int" or key not in ranges:
                continue
            low, high = ranges[key]
            if (name, key) in OPTIONAL:
                low = 0
            for value in (low, high):
                assert getattr(read(example(name) | {key: value}), key) == value
            for value in (low - 1, high + 1):
                with pytest.raises(BadHeader, match=rf"{name}\.{key}"):
                    read(example(name) | {key: value})


def test_every_error_has_a_unique_code() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, FFStreamError)]
    assert len({each.code for each in classes}) == len(classes)


def test_the_default_endpoints_are_specified() -> None:
    for socket, endpoint in (
        ("learn", messages.DEFAULT_LEARN),
        ("predict", messages.DEFAULT_PREDICT),
        ("control", messages.DEFAULT_CONTROL),
    ):
        assert f"| {socket} | `{endpoint}` |" in wire_spec._TEXT


def test_each_socket_lists_existing_types() -> None:
    sockets = wire_spec.socket_types()
    assert set(sockets) == set(wire_spec.SOCKETS)
    assert set().union(*sockets.values()) <= set(TYPES)


def test_the_version_and_the_limits_are_specified() -> None:
    assert f"protocol, version {messages.VERSION}\n" in wire_spec._TEXT
    assert f"at most {messages.MAX_HEADER_BYTES:,} bytes" in wire_spec._TEXT
    assert set(table(*TYPES.values())) == set(SPEC)
