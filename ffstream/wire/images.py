"""Images and labels: converted to payload frames and back, and checked against the network that receives them.

An image travels as its numbers in row-major order. `shape` in the header is valid if and only if it is the network's
`image_shape`, or flat, `[inputs]`. A different shape with as many numbers is rejected as well: its pixels would be at
other places than the network expects, and nothing else would show that.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffstream.errors import (
    BadDtype,
    BadShape,
    BadSize,
    LabelOutOfRange,
    LabelRequired,
    NotFinite,
    TooLarge,
    ValueOutOfRange,
)
from ffstream.util.labels import UNLABELLED
from ffstream.wire.messages import LABEL_DTYPE, ImageHeader, Samples

FLOAT_TOLERANCE = 1e-6  # a number this far outside 0 to 1 comes from rounding and is clipped
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


class ImageChecker:
    """Checks images and labels against one network and against the limit of a socket.

    `image_shape`: of one image, without a batch axis. `inputs`: its number of values. `max_samples`: of a message.
    `unlabelled`: whether samples without a label are accepted.
    """

    def __init__(
        self, image_shape: Sequence[int], labels: int, max_samples: int, *, unlabelled: bool = False
    ) -> None:
        self.image_shape = list(image_shape)
        self.inputs = math.prod(image_shape)
        self.labels = labels
        self.max_samples = max_samples
        self.unlabelled = unlabelled
        self._shapes = (self.image_shape, [self.inputs])

    def takes(self, shape: list[int]) -> bool:
        """Whether images of this shape are accepted: the network's own shape, or flat."""
        return shape in self._shapes

    def check_images(self, header: ImageHeader, frame: bytes) -> bytes:
        """Returns the frame, with rounding errors of floats clipped to 0.0 to 1.0.

        Raises BadDtype, TooLarge, BadShape, BadSize, NotFinite or ValueOutOfRange.
        """
        dtype = DTYPES.get(header.dtype)
        if dtype is None:
            raise BadDtype("images of an unknown dtype", hint="send uint8 or float32")
        if header.count > self.max_samples:
            raise TooLarge(f"{header.count} samples in a message", hint=f"at most {self.max_samples}")
        if not self.takes(header.shape):
            raise BadShape(f"images of shape {header.shape}", hint=shape_hint(header.shape, self.image_shape))
        expected = header.count * self.inputs * dtype.itemsize
        if len(frame) != expected:
            raise BadSize(f"{len(frame)} bytes of images", hint=f"the header announces {expected}")
        return _clip(frame, dtype) if dtype.kind == "f" else frame

    def check_samples(self, header: Samples, frame: bytes) -> bytes:
        """As `check_images`, and raises BadSize, LabelOutOfRange or LabelRequired for the labels."""
        frame = self.check_images(header, frame)
        if len(header.labels) != 2 * header.count:
            raise BadSize(f"{len(header.labels)} bytes of labels", hint=f"{header.count} uint16 numbers are needed")
        if header.count == 1:  # for a single label numpy costs more than the rest of the check
            highest = int.from_bytes(header.labels, "little")
        else:
            highest = int(np.frombuffer(header.labels, LABEL_DTYPE).max())
        if highest == UNLABELLED:
            self.check_unlabelled()
            known = bytes_to_labels(header.labels)
            highest = int(known.max(where=known != UNLABELLED, initial=0))
        if highest >= self.labels:
            raise LabelOutOfRange(f"label {highest}", hint=f"labels are 0 to {self.labels - 1}")
        return frame

    def check_unlabelled(self) -> None:
        """Raises LabelRequired unless samples without a label are accepted."""
        if not self.unlabelled:
            raise LabelRequired(
                "a sample without a label, and the network needs one for each sample",
                hint=f"labels are 0 to {self.labels - 1}; a network learns samples without one if its negatives are "
                'made from images, for example with network.preset = "unsupervised"',
            )


def shape_hint(shape: Sequence[int], image_shape: Sequence[int]) -> str:
    """What to do about images of `shape` that a network with `image_shape` does not take.

    >>> shape_hint([3, 32, 32], [32, 32, 3])
    'the network takes [32, 32, 3], or flat [3072]; move the channels last: images.transpose(0, 2, 3, 1)'
    """
    found, expected, inputs = list(shape), list(image_shape), math.prod(image_shape)
    takes = f"the network takes {expected}" + (f", or flat [{inputs}]" if len(expected) > 1 else "")
    if len(expected) == 3 and found == [expected[2], *expected[:2]]:
        return f"{takes}; move the channels last: images.transpose(0, 2, 3, 1)"
    if len(expected) == 1 and math.prod(found) == inputs:
        return f"{takes}; flatten the images: images.reshape(-1, {inputs})"
    if _without_ones(found) == _without_ones(expected):
        return f"{takes}; only axes of length 1 differ: images.reshape{(-1, *expected)}"
    if found[1:] == expected:
        return f"{takes}; this is the shape of one image, and `count` is the number of images"
    return takes


def _without_ones(shape: list[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _clip(frame: bytes, dtype: np.dtype[Any]) -> bytes:
    """The same frame when all its floats are within 0 to 1, else a copy with rounding errors clipped."""
    # A single huge number would make every weight NaN, for all clients and for good.
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


def bytes_to_labels(labels: bytes) -> NDArray[Any]:
    """Checked labels as an array."""
    return np.frombuffer(labels, LABEL_DTYPE)


def count_unlabelled(labels: bytes) -> int:
    """How many of these samples have no label."""
    return int((bytes_to_labels(labels) == UNLABELLED).sum())
