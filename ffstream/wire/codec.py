"""Messages to frames and back. Everything that comes from outside is distrusted here, once.

Knows no socket: a message is a list of frames, the header first.
"""

from collections.abc import Sequence
from typing import Any

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
from ffstream.wire.messages import LABEL_DTYPE, MAX_HEADER_BYTES, VERSION, ImageHeader, Message, Samples

# In a client's list, of a few dimensions: msgpack makes room for as many as are announced, at every level.
_LIST_MAX = 64
_NAME_MAX = 100  # characters of a field's name, which may come from the sender, in an error

DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}


def table(*types: type[Message]) -> dict[str, type[Message]]:
    """The types that a socket understands, by their name on the wire."""
    return {each.type: each for each in types}


def encode(message: Message) -> bytes:
    """The header frame of a message."""
    header: bytes = msgpack.packb({"v": VERSION, "type": message.type, **message.__dict__})
    return header


def decode(header: bytes, types: dict[str, type[Message]], *, list_max: int = _LIST_MAX) -> Message:
    """The message a header stands for. Raises a ProtocolError for anything but a good header of these types."""
    if len(header) > MAX_HEADER_BYTES:
        raise TooLarge(f"header of {len(header)} bytes", hint=f"at most {MAX_HEADER_BYTES}")
    try:
        fields: Any = msgpack.unpackb(
            header, strict_map_key=True, max_map_len=64, max_array_len=list_max, max_ext_len=0
        )
    except (ValueError, RecursionError) as error:  # all of msgpack's errors are ValueErrors
        raise BadHeader("the first frame is not msgpack", hint="send the header as a msgpack map") from error
    if not isinstance(fields, dict):
        raise BadHeader("the header is not a map", hint="send the header as a msgpack map")
    version = fields.get("v")
    if type(version) is not int or version != VERSION:  # 1.0 and true equal 1
        raise UnsupportedVersion("unknown protocol version", hint=f"this daemon speaks v={VERSION}")
    name = fields.get("type")
    kind = types.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UnknownType("unknown message type", hint=f"this socket understands {', '.join(sorted(types))}")
    try:
        # model_validate, without its detour in Python.
        message: Message = kind.__pydantic_validator__.validate_python(fields)
        return message
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:_NAME_MAX]
        raise BadHeader(f"{kind.type}.{field}: {first['msg']}", hint="see wire/SPEC.md") from error


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

    def check_images(self, header: ImageHeader, frame: bytes) -> None:
        """Raises the ProtocolError that fits when the frame is not what the header says or the network takes."""
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
        if dtype.kind == "f":
            _check_range(np.frombuffer(frame, dtype))

    def check_samples(self, header: Samples, frame: bytes) -> None:
        """The same for labelled images."""
        self.check_images(header, frame)
        if len(header.labels) != 2 * header.count:
            raise BadSize(f"{len(header.labels)} bytes of labels", hint=f"{header.count} uint16 numbers are needed")
        if header.count == 1:  # numpy costs more than the rest of the check for a single label
            highest = int.from_bytes(header.labels, "little")
        else:
            highest = int(np.frombuffer(header.labels, LABEL_DTYPE).max())
        if highest >= self.labels:
            raise LabelOutOfRange(f"label {highest}", hint=f"labels are 0 to {self.labels - 1}")


def _check_range(numbers: NDArray[Any]) -> None:
    # One huge number would make every weight NaN, for everybody and for good.
    low, high = numbers.min(), numbers.max()  # NaN if any number is
    if not np.isfinite(low) or not np.isfinite(high):
        raise NotFinite("an image holds NaN or infinity", hint="send finite numbers, 0.0 to 1.0")
    if low < 0.0 or high > 1.0:
        raise ValueOutOfRange(f"an image holds numbers from {low:g} to {high:g}", hint="scale them to 0.0 to 1.0")


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
