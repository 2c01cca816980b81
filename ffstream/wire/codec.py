"""Messages to frames and back. Everything that comes from outside is distrusted here, once.

Knows no socket: a message is a list of frames, the header first.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ffstream.errors import (
    BadDtype,
    BadFrames,
    BadHeader,
    BadShape,
    BadSize,
    LabelOutOfRange,
    NotFinite,
    TooLarge,
    UnknownType,
    UnsupportedVersion,
    ValueOutOfRange,
)
from ffstream.wire.messages import LABEL_DTYPE, MAX_HEADER_BYTES, SENT_TO, VERSION, ImageHeader, Message, Samples

# Entries of a list or map. msgpack makes room for as many as are announced, at every level.
_LIST_MAX = 64
_MAP_MAX = 64
_UNREADABLE = (ValueError, RecursionError, msgpack.UnpackException)  # what msgpack raises
_NAME_MAX = 100  # characters of a field's name, which may come from the sender, in an error

FLOAT_TOLERANCE = 1e-6  # so far outside 0 to 1, rounding may have taken a number: it is clipped
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}


def table(*types: type[Message]) -> dict[str, type[Message]]:
    """The types that a socket understands, by their name on the wire."""
    return {each.type: each for each in types}


def encode(message: Message) -> bytes:
    """The header frame of a message."""
    header: bytes = msgpack.packb({"v": VERSION, "type": message.type, **message.__dict__})
    return header


def decode(header: bytes, types: dict[str, type[Message]], *, socket: str = "", list_max: int = _LIST_MAX) -> Message:
    """The message a header stands for. Raises a ProtocolError for anything but a good header of these types.

    `socket` is the one that received it: an error about a message for another socket names both.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise TooLarge(f"header of {len(header)} bytes", hint=f"at most {MAX_HEADER_BYTES}")
    try:
        fields: Any = msgpack.unpackb(
            header, strict_map_key=True, max_map_len=_MAP_MAX, max_array_len=list_max, max_ext_len=0
        )
    except _UNREADABLE:
        # An unknown key may hold what is not taken from a known one: read it again without those.
        fields = _known_fields(header, types, list_max)
    if not isinstance(fields, dict):
        raise BadHeader("the header is not a map", hint="send the header as a msgpack map")
    kind = _kind(fields, types, socket)
    try:
        # model_validate, without its detour in Python.
        message: Message = kind.__pydantic_validator__.validate_python(fields)
        return message
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:_NAME_MAX]
        raise BadHeader(f"{kind.type}.{field}: {first['msg']}", hint="see wire/SPEC.md") from error


def _kind(fields: dict[str, Any], types: dict[str, type[Message]], socket: str) -> type[Message]:
    version = fields.get("v")
    if type(version) is not int or version != VERSION:  # 1.0 and true equal 1
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
    kind = _kind(_read(header, ("v", "type"), list_max), types, "")
    return _read(header, ("v", "type", *kind.model_fields), list_max)


def _read(header: bytes, names: Container[Any], list_max: int) -> dict[str, Any]:
    """The values of some keys. Raises BadHeader, with the key whose value is the fault."""
    fields: dict[str, Any] = {}
    walk = _Walk(header, names, list_max)
    try:
        fields.update(walk)
    except _UNREADABLE as error:
        if walk.key is None:
            raise BadHeader("the first frame is not a msgpack map", hint="send the header as one") from error
        raise BadHeader(
            f"the header cannot be read at {walk.key[:_NAME_MAX]!r}", hint="see wire/SPEC.md, Header"
        ) from error
    return fields


class _Walk:
    """Goes through a header key by key, and yields those in `names`. What another key holds is not looked at.

    `key` is the one at hand. Raises one of _UNREADABLE.
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
            raise ValueError("something follows the map")


class Subject(NamedTuple):
    """What an error is about: a message number, or a request's id."""

    n: int | None
    id: int | None


def subject(header: bytes) -> Subject:
    """`n` and `id` of a header that may be wrong in every other way; None for what cannot be read."""
    found: dict[str, Any] = {}
    with suppress(*_UNREADABLE):
        # One at a time: what stands before the fault is kept.
        for key, value in _Walk(header[:MAX_HEADER_BYTES], ("n", "id"), _LIST_MAX):
            found[key] = value
    return Subject(_number(found.get("n")), _number(found.get("id")))


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def expect_payload(frames: Sequence[bytes], count: int) -> Sequence[bytes]:
    """The frames after the header, of which there must be `count`."""
    if len(frames) != count:
        raise BadFrames(f"{len(frames)} payload frames", hint=f"this message has {count}")
    return frames


class ImageChecker:
    """Holds images and labels against the network that they are for and the limits of a socket."""

    def __init__(self, inputs: int, labels: int, max_samples: int) -> None:
        self.inputs = inputs
        self.labels = labels
        self.max_samples = max_samples

    def check_images(self, header: ImageHeader, frame: bytes) -> bytes:
        """The frame, with floats a hair outside 0 to 1 clipped.

        Raises the ProtocolError that fits when it is not what the header says or the network takes.
        """
        dtype = DTYPES.get(header.dtype)
        if dtype is None:
            raise BadDtype("images of an unknown dtype", hint="send uint8 or float32")
        if header.count > self.max_samples:
            raise TooLarge(f"{header.count} samples in a message", hint=f"at most {self.max_samples}")
        size = 1
        for dimension in header.shape:
            size *= dimension
        if size != self.inputs:
            raise BadShape(
                f"images of shape {header.shape}", hint=f"the network takes {self.inputs} numbers an image"
            )
        expected = header.count * size * dtype.itemsize
        if len(frame) != expected:
            raise BadSize(f"{len(frame)} bytes of images", hint=f"the header promises {expected}")
        return _clip(frame, dtype) if dtype.kind == "f" else frame

    def check_samples(self, header: Samples, frame: bytes) -> bytes:
        """The same for labelled images."""
        frame = self.check_images(header, frame)
        if len(header.labels) != 2 * header.count:
            raise BadSize(f"{len(header.labels)} bytes of labels", hint=f"{header.count} uint16 numbers are needed")
        if header.count == 1:  # numpy costs more than the rest of the check for a single label
            highest = int.from_bytes(header.labels, "little")
        else:
            highest = int(np.frombuffer(header.labels, LABEL_DTYPE).max())
        if highest >= self.labels:
            raise LabelOutOfRange(f"label {highest}", hint=f"labels are 0 to {self.labels - 1}")
        return frame


def _clip(frame: bytes, dtype: np.dtype[Any]) -> bytes:
    """The same frame when all its floats are within 0 to 1, else a copy with those a hair outside clipped."""
    # One huge number would make every weight NaN, for everybody and for good.
    numbers = np.frombuffer(frame, dtype)
    low, high = numbers.min(), numbers.max()  # NaN if any number is
    if not np.isfinite(low) or not np.isfinite(high):
        raise NotFinite("an image holds NaN or infinity", hint="send finite numbers, 0.0 to 1.0")
    if low >= 0.0 and high <= 1.0:
        return frame
    if float(low) < -FLOAT_TOLERANCE or float(high) > 1.0 + FLOAT_TOLERANCE:
        raise ValueOutOfRange(f"an image holds numbers from {low!s} to {high!s}", hint="scale them to 0.0 to 1.0")
    return numbers.clip(0.0, 1.0).tobytes()


def images_to_array(dtype: str, count: int, frame: bytes) -> NDArray[Any]:
    """Checked images as a (count, inputs) array that shares the frame's memory."""
    return np.frombuffer(frame, DTYPES[dtype]).reshape(count, -1)


def array_to_images(images: NDArray[Any]) -> tuple[str, list[int], bytes]:
    """dtype, shape of one image, and frame of images (count, …). Raises BadDtype or BadShape."""
    if not 2 <= images.ndim <= 5 or not images.size:
        raise BadShape(f"images of shape {images.shape}", hint="send an array (count, …) of one image at least")
    if images.dtype == np.float64:
        images = images.astype("<f4")
    name = _NAMES.get((images.dtype.kind, images.dtype.itemsize))
    if name is None:
        raise BadDtype(f"images of dtype {images.dtype}", hint="use uint8 or float32")
    return name, list(images.shape[1:]), images.astype(DTYPES[name], copy=False).tobytes()  # little-endian


def labels_to_bytes(labels: Any, count: int) -> bytes:
    """Labels as the header carries them. Raises LabelOutOfRange or BadShape."""
    if type(labels) is int and count == 1 and 0 <= labels < 2**16:  # the common single sample, without numpy
        return labels.to_bytes(2, "little")
    array = np.atleast_1d(np.asarray(labels))
    if array.shape != (count,):
        raise BadShape(f"labels of shape {array.shape} for {count} images", hint="one label an image")
    if array.dtype.kind not in "iu" or (count and not 0 <= array.min() <= array.max() < 2**16):
        raise LabelOutOfRange("labels must be whole numbers from 0 to 65535", hint="send class numbers")
    return array.astype(LABEL_DTYPE).tobytes()


def bytes_to_labels(labels: bytes) -> NDArray[Any]:
    """Checked labels as an array."""
    return np.frombuffer(labels, LABEL_DTYPE)
