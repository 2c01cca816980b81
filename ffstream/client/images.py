"""Images and labels as callers have them, made into what a header and a frame carry.

Everything that the daemon would refuse for good is refused here, before it is sent: against its `welcome`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ffstream.errors import BadDtype, BadShape, LabelOutOfRange, TooLarge
from ffstream.wire import codec
from ffstream.wire.messages import ImageHeader, Welcome


class Prepared(NamedTuple):
    """Images as they travel: `frame` holds `samples` images of `shape`."""

    samples: int
    dtype: str
    shape: list[int]
    frame: bytes


class Preparer:
    """Holds images and labels against one `welcome`."""

    def __init__(self, welcome: Welcome) -> None:
        self._limits = welcome
        self._checker = codec.ImageChecker(welcome.inputs, welcome.labels, welcome.max_samples)

    def images(self, images: Any) -> Prepared:
        """Images (B, …), or a single one, of uint8, float or bool. Raises BadDtype, BadShape, TooLarge,
        NotFinite, ValueOutOfRange."""
        array = _as_array(images)
        self._check_size(array.nbytes)
        array = self._with_count(array)
        self._check_count(len(array))
        dtype, shape, frame = codec.array_to_images(array)
        if dtype != "uint8":  # the range of its numbers matters
            self._checker.check_images(ImageHeader.model_construct(count=len(array), dtype=dtype, shape=shape), frame)
        return Prepared(len(array), dtype, shape, frame)

    def labels(self, labels: Any, count: int) -> bytes:
        """Labels (B), or a number for a single image. Raises LabelOutOfRange, BadShape."""
        highest = self._limits.labels - 1
        if type(labels) is int and count == 1:  # the common single sample, without numpy
            if not 0 <= labels <= highest:
                raise LabelOutOfRange(f"label {labels}", hint=f"labels are 0 to {highest}")
            return labels.to_bytes(2, "little")
        try:
            array = np.atleast_1d(np.asarray(labels))
        except (ValueError, TypeError) as error:
            raise LabelOutOfRange(f"labels of type {type(labels).__name__}: {error}", hint="send numbers") from error
        if array.shape != (count,):
            raise BadShape(
                f"labels of shape {array.shape} for {count} images", hint="one label for each image, in one dimension"
            )
        if array.dtype.kind not in "iu":
            raise LabelOutOfRange(
                f"labels of dtype {array.dtype}",
                hint=f"labels are whole numbers, 0 to {highest}; use labels.astype(int)",
            )
        wrong = array[(array < 0) | (array > highest)]
        if wrong.size:
            raise LabelOutOfRange(
                f"label {wrong[0]}" + (f" and {wrong.size - 1} more" if wrong.size > 1 else ""),
                hint=f"labels are 0 to {highest}",
            )
        return codec.labels_to_bytes(array, count)

    def _with_count(self, array: NDArray[Any]) -> NDArray[Any]:
        inputs = self._limits.inputs
        if array.ndim > 1 and math.prod(array.shape[1:]) == inputs:
            return array.reshape(len(array), inputs) if array.ndim > _DIMENSIONS_MAX else array
        if array.size == inputs:
            return array[None]
        raise BadShape(
            f"images of shape {array.shape}",
            hint=f"the network takes {inputs} numbers an image: send an array (count, …), or one image",
        )

    def _check_size(self, size: int) -> None:
        # The daemon cannot answer a message over its byte limit: the connection breaks, and would again and again.
        most = self._limits.max_bytes
        if size > most:
            raise TooLarge(
                f"{size} bytes of images", hint=f"the daemon takes at most {most} bytes; send fewer at a time"
            )

    def _check_count(self, count: int) -> None:
        most = self._limits.max_samples
        if not count:
            raise BadShape("no images", hint="send one at least")
        if count > most:
            raise TooLarge(f"{count} images", hint=f"the daemon takes at most {most}; send fewer at a time")


_DIMENSIONS_MAX = 5  # with that of the images


def _as_array(images: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.asarray(images)
    except (
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:  # lists of lists that are not equally long, a tensor on a GPU
        raise BadDtype(f"images of type {type(images).__name__}: {error}", hint="send a numpy array") from error
    kind = array.dtype.kind
    if kind == "b":
        return array * np.uint8(255)
    if kind == "f":
        with np.errstate(over="ignore"):  # what is infinite then is refused
            return array.astype("<f4", copy=False)
    if array.dtype != np.uint8:
        raise BadDtype(
            f"images of dtype {array.dtype}",
            hint="use uint8, 0 to 255 (`images.astype(numpy.uint8)`), or floats, 0.0 to 1.0",
        )
    return array
