"""Encodes messages to header frames and decodes header frames to messages.

Frames come from outside and are validated here, once: a message that was decoded can be trusted.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import msgpack
from pydantic import BaseModel, ValidationError

from ffstream.errors import BadFrames, BadHeader, TooLarge, UnknownType, UnsupportedVersion
from ffstream.wire.messages import MAX_HEADER_BYTES, SENT_TO, VERSION, Message, SnapshotInfo, SnapshotRequest

# Entries in a list or map. msgpack allocates as many as are announced, at every level of nesting.
_LIST_MAX = 64
_MAP_MAX = 64
_UNREADABLE = (ValueError, RecursionError, msgpack.UnpackException)  # what msgpack raises
_Fields = TypeVar("_Fields", bound=BaseModel)
_NAME_MAX = 100  # characters of a field's name in an error message; the sender may have chosen the name


def table(*types: type[Message]) -> dict[str, type[Message]]:
    """Message types by their name on the wire, for `decode`."""
    return {each.type: each for each in types}


def encode(message: Message) -> bytes:
    """The header frame of a message."""
    return encode_fields(type(message), message.__dict__)


def encode_fields(kind: type[Message], fields: Mapping[str, Any]) -> bytes:
    """The header frame of a message of that type. The fields are not checked: creating the message costs more."""
    header: bytes = msgpack.packb({"v": VERSION, "type": kind.type, **fields})
    return header


def decode(header: bytes, types: dict[str, type[Message]], *, socket: str = "", list_max: int = _LIST_MAX) -> Message:
    """Returns the message in a header frame. Raises a ProtocolError if it is not a valid header of one of `types`.

    `socket`: the name of the socket that received it, for an error about a message that belongs to another socket.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise TooLarge(f"header of {len(header)} bytes", hint=f"at most {MAX_HEADER_BYTES}")
    try:
        fields: Any = msgpack.unpackb(
            header, strict_map_key=True, max_map_len=_MAP_MAX, max_array_len=list_max, max_ext_len=0
        )
    except _UNREADABLE:
        # Unknown keys may hold values that known keys may not, so decode the known keys alone.
        fields = _known_fields(header, types, list_max)
    if not isinstance(fields, dict):
        raise BadHeader("the header is not a map", hint="send the header as a msgpack map")
    kind = _kind(fields, types, socket)
    try:
        # The same as model_validate, which adds a detour through Python.
        message: Message = kind.__pydantic_validator__.validate_python(fields)
        return message
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:_NAME_MAX]
        raise BadHeader(f"{kind.type}.{field}: {first['msg']}", hint="see wire/SPEC.md") from error


def _kind(fields: dict[str, Any], types: dict[str, type[Message]], socket: str) -> type[Message]:
    version = fields.get("v")
    if type(version) is not int or version != VERSION:  # 1.0 and True are equal to 1, too
        raise UnsupportedVersion("unknown protocol version", hint=f"this daemon speaks v={VERSION}")
    name = fields.get("type")
    kind = types.get(name) if isinstance(name, str) else None
    if kind is not None:
        return kind
    for other, kinds in SENT_TO.items():
        if socket and any(each.type == name for each in kinds):
            raise UnknownType(
                f"{name} on the {socket} socket",
                hint=f"this is the {socket} socket (listen.{socket}); {name} goes to the {other} socket"
                f" (listen.{other})",
            )
    raise UnknownType("unknown message type", hint=f"this socket understands {', '.join(sorted(types))}")


def _known_fields(header: bytes, types: dict[str, type[Message]], list_max: int) -> dict[str, Any]:
    """The fields that the message type has, without the unknown ones."""
    kind = _kind(_read(header, ("v", "type"), list_max), types, "")
    return _read(header, ("v", "type", *kind.model_fields), list_max)


def _read(header: bytes, names: Container[Any], list_max: int) -> dict[str, Any]:
    """The values of the keys in `names`. Raises BadHeader that names the key whose value is invalid."""
    fields: dict[str, Any] = {}
    reader = _FieldReader(header, names, list_max)
    try:
        fields.update(reader)
    except _UNREADABLE as error:
        if reader.key is None:
            raise BadHeader("the first frame is not a msgpack map", hint="send the header as one") from error
        raise BadHeader(
            f"the header cannot be decoded at {reader.key[:_NAME_MAX]!r}", hint="see wire/SPEC.md, Header"
        ) from error
    return fields


class _FieldReader:
    """Iterates over a header key by key and yields those in `names`. The values of other keys are skipped unseen.

    `key`: the current key. Iteration raises one of _UNREADABLE.
    """

    def __init__(self, header: bytes, names: Container[Any], list_max: int) -> None:
        self.key: str | None = None
        self._header = header
        self._names = names
        self._list_max = list_max

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        unpacker = msgpack.Unpacker(
            max_buffer_size=MAX_HEADER_BYTES, max_map_len=_MAP_MAX, max_array_len=self._list_max, max_ext_len=0
        )
        unpacker.feed(self._header)
        size = unpacker.read_map_header()
        if size > _MAP_MAX:
            raise ValueError("too many keys")
        for _ in range(size):
            key = unpacker.unpack()
            if not isinstance(key, str | bytes):
                raise ValueError("a key is not a string")
            self.key = key if isinstance(key, str) else repr(key)
            if key in self._names:
                yield self.key, unpacker.unpack()
            else:
                unpacker.skip()
        if unpacker.tell() != len(self._header):
            raise ValueError("bytes after the map")


def snapshot_request(arguments: Mapping[str, Any]) -> SnapshotRequest:
    """The arguments of the command `snapshot`. Raises BadHeader."""
    return _checked(SnapshotRequest, arguments)


def snapshot_info(result: Mapping[str, Any]) -> SnapshotInfo:
    """The result of the command `snapshot`. Raises BadHeader."""
    return _checked(SnapshotInfo, result)


def _checked(kind: type[_Fields], fields: Mapping[str, Any]) -> _Fields:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:_NAME_MAX]
        raise BadHeader(f"snapshot.{field}: {first['msg']}", hint="see wire/SPEC.md, Snapshots") from error


class Subject(NamedTuple):
    """Which message an error is about: the number of a message, or the id of a request."""

    n: int | None
    id: int | None


def subject(header: bytes) -> Subject:
    """`n` and `id` of a header that may be invalid in every other way; None for what cannot be decoded."""
    found: dict[str, Any] = {}
    with suppress(*_UNREADABLE):
        # One by one, to keep what comes before the first invalid byte.
        for key, value in _FieldReader(header[:MAX_HEADER_BYTES], ("n", "id"), _LIST_MAX):
            found[key] = value
    return Subject(_number(found.get("n")), _number(found.get("id")))


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def expect_payload(frames: Sequence[bytes], count: int) -> Sequence[bytes]:
    """Returns the frames after the header. Raises BadFrames unless there are `count` of them."""
    if len(frames) != count:
        raise BadFrames(f"{len(frames)} payload frames", hint=f"this message has {count}")
    return frames
