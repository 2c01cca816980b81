"""Malformed messages of many kinds, each with the error codes with which the daemon may reject it.

A message is malformed by construction; one of the kind "mutated" is malformed because the codec has rejected it here.
"""

import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from ffstream.errors import FFStreamError
from ffstream.wire import codec
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import MAX_HEADER_BYTES, Ping, Predict, Request, Samples
from tests.harness.raw_client import INPUTS, LABELS, SHAPE, header

Frames = tuple[bytes, ...]
_IMAGE = bytes(INPUTS)
_MAX_SAMPLES = 4096  # limits.message_max_samples


class Kind(NamedTuple):
    """A way in which messages to one socket are malformed, and the error codes that fit."""

    name: str
    socket: str
    codes: frozenset[str]
    make: Callable[[random.Random], Frames]


def _samples(payload: Frames = (_IMAGE,), **fields: Any) -> Frames:
    good = {"client": "malformed", "n": 1, "base": 1, "count": 1, "dtype": "uint8", "shape": SHAPE, "labels": b"\0\0"}
    return _message("samples", good | fields, payload)


def _predict(payload: Frames = (_IMAGE,), **fields: Any) -> Frames:
    return _message("predict", {"id": 1, "count": 1, "dtype": "uint8", "shape": SHAPE} | fields, payload)


def _request(payload: Frames = (), **fields: Any) -> Frames:
    return _message("request", {"id": 1, "command": "status", "arguments": {}} | fields, payload)


class _Missing:
    """As the value of a field: the field is missing."""


def _message(type: str, fields: dict[str, Any], payload: Frames) -> Frames:
    return (header(type, **{key: value for key, value in fields.items() if value is not _Missing}), *payload)


_GOOD: dict[str, tuple[Callable[..., Frames], type[Samples] | type[Predict] | type[Request]]] = {
    "learn": (_samples, Samples),
    "predict": (_predict, Predict),
    "control": (_request, Request),
}
_CHECKER = ImageChecker(SHAPE, LABELS, _MAX_SAMPLES)


def is_valid(socket: str, frames: Frames) -> bool:
    """Whether the codec accepts the message."""
    try:
        message = codec.decode(frames[0], codec.table(Ping, _GOOD[socket][1]))
        if isinstance(message, Samples):
            _CHECKER.check_samples(message, *codec.expect_payload(frames[1:], 1))
        elif isinstance(message, Predict):
            _CHECKER.check_images(message, *codec.expect_payload(frames[1:], 1))
    except FFStreamError:
        return False
    return True


def _mutated(socket: str, rng: random.Random) -> Frames:
    good = _GOOD[socket][0]()
    while True:
        head = bytearray(good[0])
        for _ in range(rng.randrange(1, 4)):
            head[rng.randrange(len(head))] = rng.randrange(256)
        frames = (bytes(head), *good[1:])
        if not is_valid(socket, frames):
            return frames


def _truncated(socket: str, rng: random.Random) -> Frames:
    head, *payload = _GOOD[socket][0]()
    return (head[: rng.randrange(1, len(head))], *payload)


def _noise(rng: random.Random) -> Frames:
    return (b"\xc1" + rng.randbytes(rng.randrange(0, 300)),)  # msgpack does not use 0xc1


def _floats(*numbers: float) -> Frames:
    return (struct.pack(f"<{INPUTS}f", *numbers, *[0.5] * (INPUTS - len(numbers))),)


def _everywhere(socket: str) -> list[Kind]:
    """Kinds that are malformed on any socket."""
    good = _GOOD[socket][0]

    def kind(name: str, codes: str, make: Callable[[random.Random], Frames]) -> Kind:
        return Kind(name, socket, frozenset(codes.split()), make)

    def header_of(**fields: Any) -> Callable[[random.Random], Frames]:
        frames = (msgpack.packb({"v": 1, "type": "ping"} | fields), *good()[1:])
        return lambda rng: frames

    def plain(*frames: bytes) -> Callable[[random.Random], Frames]:
        return lambda rng: frames

    return [
        kind("an empty frame", "bad_header", plain(b"")),
        kind("noise", "bad_header", _noise),
        kind("truncated", "bad_header", lambda rng: _truncated(socket, rng)),
        kind("deeply nested", "bad_header", plain(b"\x91" * 60_000)),
        kind("nested maps", "bad_header", plain(b"\x81\xa1a" * 20_000 + b"\x01")),
        kind("a map that announces 2^32 keys", "bad_header", plain(b"\xdf\xff\xff\xff\xff\xa1a\x01")),
        kind("a list that announces 2^32 items", "bad_header", plain(b"\xdd\xff\xff\xff\xff" + b"\x01" * 100)),
        kind("bytes that announce 4 GB", "bad_header", plain(b"\x81\xa1v\xc6\xff\xff\xff\xff")),
        kind("a string that is not UTF-8", "bad_header", plain(b"\x81\xa1v\xa4\xff\xfe\xfd\xfc")),
        kind("an extension type", "bad_header", plain(b"\x81\xa1v\xd4\x05\x00")),
        kind("integer keys", "bad_header", plain(msgpack.packb({1: 2}))),
        kind("a list as header", "bad_header", lambda rng: (msgpack.packb([1, "samples", rng.random()]),)),
        kind("a header that is too large", "too_large", plain(bytes(MAX_HEADER_BYTES + 1))),
        kind("no version", "unsupported_version", plain(msgpack.packb({"type": "ping"}))),
        kind("another version", "unsupported_version", header_of(v=2)),
        kind("True as version", "unsupported_version", header_of(v=True)),
        kind("a huge version", "unsupported_version", header_of(v=2**64 - 1)),
        kind("no type", "unknown_type", plain(msgpack.packb({"v": 1}))),
        kind("an unknown type", "unknown_type", lambda rng: (header(f"type-{rng.random()}"),)),
        kind("a type that is a list", "unknown_type", header_of(type=[1, 2])),
        kind("an answer's type", "unknown_type", header_of(type="ack")),
        kind(
            "mutated",
            "bad_header unsupported_version unknown_type bad_dtype bad_shape bad_size label_out_of_range "
            "label_required too_large",
            lambda rng: _mutated(socket, rng),
        ),
    ]


def _wrong(socket: str, name: str, code: str, **fields: Any) -> Kind:
    frames = _GOOD[socket][0](**fields)
    return Kind(name, socket, frozenset({code}), lambda rng: frames)


def _with_images(socket: str) -> list[Kind]:
    """Kinds that are malformed on sockets that take images."""

    def wrong(name: str, code: str, **fields: Any) -> Kind:
        return _wrong(socket, name, code, **fields)

    return [
        wrong("no payload", "bad_frames", payload=()),
        wrong("two payloads", "bad_frames", payload=(_IMAGE, _IMAGE)),
        wrong("a thousand payloads", "bad_frames", payload=(b"x",) * 1000),
        wrong("no count", "bad_header", count=_Missing),
        wrong("count 0", "bad_header", count=0),
        wrong("a negative count", "bad_header", count=-1),
        wrong("a count that is a string", "bad_header", count="1"),
        wrong("count 2^63", "bad_header", count=2**63),
        wrong("too many samples", "too_large", count=_MAX_SAMPLES + 1),
        wrong("an unknown dtype", "bad_dtype", dtype="float16"),
        wrong("a dtype that is a number", "bad_header", dtype=1),
        wrong("no shape", "bad_header", shape=[]),
        wrong("another shape", "bad_shape", shape=[28, 27]),
        wrong("a huge shape", "bad_shape", shape=[2**31] * 4),
        wrong("five dimensions", "bad_header", shape=[1, 1, 1, 28, 28]),
        wrong("a negative shape", "bad_header", shape=[-28, -28]),
        wrong("one byte too few", "bad_size", payload=(_IMAGE[:-1],)),
        wrong("one byte too many", "bad_size", payload=(_IMAGE + b"\0",)),
        wrong("an empty payload", "bad_size", payload=(b"",)),
        wrong("uint8 data with dtype float32", "bad_size", dtype="float32"),
        wrong("NaN", "not_finite", dtype="float32", payload=_floats(float("nan"))),
        wrong("infinity", "not_finite", dtype="float32", payload=_floats(float("-inf"))),
        wrong("a huge number", "value_out_of_range", dtype="float32", payload=_floats(3e38)),
        wrong("a negative number", "value_out_of_range", dtype="float32", payload=_floats(-0.01)),
    ]


def _snapshot(name: str, **arguments: Any) -> Kind:
    return _wrong("control", f"a snapshot {name}", "bad_header", command="snapshot", arguments=arguments)


_LEARN = [
    _wrong("learn", "no client", "bad_header", client=_Missing),
    _wrong("learn", "an empty client name", "bad_header", client=""),
    _wrong("learn", "a client name that is too long", "bad_header", client="é" * 33),
    _wrong("learn", "a client name with a separator", "bad_header", client="a\x1fb"),
    _wrong("learn", "a client name that is bytes", "bad_header", client=b"\xff"),
    _wrong("learn", "number 0", "bad_header", n=0),
    _wrong("learn", "number 2^62", "bad_header", n=2**62),
    _wrong("learn", "number 1.5", "bad_header", n=1.5),
    _wrong("learn", "a base above the number", "bad_header", base=2),
    _wrong("learn", "a label out of range", "label_out_of_range", labels=b"\x0a\0"),
    _wrong("learn", "the highest label", "label_out_of_range", labels=b"\xfe\xff"),
    _wrong("learn", "no label", "label_required", labels=b"\xff\xff"),
    _wrong("learn", "half a label", "bad_size", labels=b"\0"),
    _wrong("learn", "two labels for one image", "bad_size", labels=bytes(4)),
    _wrong("learn", "labels that are a string", "bad_header", labels="00"),
]
_PREDICT = [
    _wrong("predict", "no id", "bad_header", id=_Missing),
    _wrong("predict", "a negative id", "bad_header", id=-1),
    _wrong("predict", "id 2^63", "bad_header", id=2**63),
]
_CONTROL = [
    _wrong("control", "an unknown command", "bad_header", command="format"),
    _wrong("control", "a command that is too long", "bad_header", command="x" * 65),
    _wrong("control", "a command that is a list", "bad_header", command=["status"]),
    _wrong("control", "arguments that are a list", "bad_header", arguments=[1]),
    _wrong("control", "arguments with integer keys", "bad_header", arguments={1: 2}),
    _wrong("control", "a payload", "bad_frames", payload=(_IMAGE,)),
    _wrong("control", "no id", "bad_header", id=_Missing),
    _wrong(
        "control", "a timeout that is a string", "bad_header", command="wait_idle", arguments={"timeout_s": "soon"}
    ),
    _wrong("control", "a negative timeout", "bad_header", command="wait_idle", arguments={"timeout_s": -1}),
    _wrong("control", "a snapshot with a payload", "bad_frames", command="snapshot", payload=(_IMAGE,)),
    _snapshot("after a negative version", after=-1),
    _snapshot("after version 2^63", after=2**63),
    _snapshot("after a version that is true", after=True),
    _snapshot("of a start that is a number", boot=7),
    _snapshot("that waits for NaN seconds", timeout_s=float("nan")),
    _snapshot("that waits for more than a day", timeout_s=86_401),
    _snapshot("with a recipe that is a map", recipe={"kind": "conv"}),
]

KINDS: tuple[Kind, ...] = (
    *(kind for socket in _GOOD for kind in _everywhere(socket)),
    *(kind for socket in ("learn", "predict") for kind in _with_images(socket)),
    *_LEARN,
    *_PREDICT,
    *_CONTROL,
)
