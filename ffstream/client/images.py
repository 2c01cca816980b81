"""Images and labels as callers have them, checked against the daemon's `welcome` and encoded for a message.

Everything that the daemon would reject for good is rejected here, before it is sent.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ffstream.errors import BadDtype, BadShape, LabelOutOfRange, TooLarge
from ffstream.util.labels import UNLABELLED
from ffstream.wire.images import ImageChecker, shape_hint
from ffstream.wire.messages import LABEL_DTYPE, ImageHeader, Welcome


class EncodedImages(NamedTuple):
    """What a message says about its images, and the payload frame that holds them."""

    samples: int
    dtype: str
    shape: list[int]
    frame: bytes


class Encoder:
    """Checks and encodes images and labels for the network and the limits in one `welcome`."""

    def __init__(self, welcome: Welcome) -> None:
        self._welcome = welcome
        self._checker = ImageChecker(
            welcome.image_shape, welcome.labels, welcome.max_samples, unlabelled=welcome.unlabelled
        )

    def images(self, images: Any) -> EncodedImages:
        """Encodes images (B, …), or a single one, of uint8, float or bool.

        Raises BadDtype, BadShape, TooLarge, NotFinite or ValueOutOfRange.
        """
        array = _as_array(images)
        self._check_bytes(array.nbytes)
        array = self._with_batch_axis(array)
        self._check_count(len(array))
        shape, frame = list(array.shape[1:]), array.tobytes()
        if array.dtype == np.uint8:
            return EncodedImages(len(array), "uint8", shape, frame)
        header = ImageHeader.model_construct(count=len(array), dtype="float32", shape=shape)
        frame = self._checker.check_images(header, frame)
        return EncodedImages(len(array), "float32", shape, frame)

    def labels(self, labels: Any, count: int) -> bytes:
        """Encodes labels (B), or a number for a single image. UNLABELLED or None stands for a sample without a label,
        and None alone for labels that are all unknown.

        Raises LabelOutOfRange, LabelRequired or BadShape.
        """
        highest = self._welcome.labels - 1
        if type(labels) is int and count == 1 and 0 <= labels <= highest:  # the common single sample, without numpy
            return labels.to_bytes(2, "little")
        try:
            array = _without_none(np.full(count, None) if labels is None else np.atleast_1d(np.asarray(labels)))
        except (ValueError, TypeError) as error:
            raise LabelOutOfRange(f"labels of type {type(labels).__name__}: {error}", hint="send numbers") from error
        if array.shape != (count,):
            raise BadShape(
                f"labels of shape {array.shape} for {count} images", hint="send one label for each image, as a list"
            )
        if array.dtype.kind not in "iu":
            raise LabelOutOfRange(
                f"labels of dtype {array.dtype}",
                hint=f"labels are whole numbers, 0 to {highest}; use labels.astype(int)",
            )
        is_unlabelled = array == UNLABELLED
        if is_unlabelled.any():
            self._checker.check_unlabelled()
        wrong = array[((array < 0) | (array > highest)) & ~is_unlabelled]
        if wrong.size:
            raise LabelOutOfRange(
                f"label {wrong[0]}" + (f" and {wrong.size - 1} more" if wrong.size > 1 else ""),
                hint=f"labels are 0 to {highest}",
            )
        return array.astype(LABEL_DTYPE).tobytes()

    def _with_batch_axis(self, array: NDArray[Any]) -> NDArray[Any]:
        shape = list(array.shape)
        if self._checker.takes(shape):
            return array[None]
        if self._checker.takes(shape[1:]):
            return array
        of_one = shape if math.prod(shape) == self._checker.inputs else shape[1:]
        hint = shape_hint(of_one, self._checker.image_shape)
        raise BadShape(f"images of shape {array.shape}", hint=f"{hint}; several images go along a first axis")

    def _check_bytes(self, size: int) -> None:
        # The daemon does not answer a frame far over its limit: the connection breaks, and would break again.
        most = self._welcome.max_bytes
        if size > most:
            raise TooLarge(
                f"{size} bytes of images", hint=f"the daemon takes at most {most} bytes; send fewer at a time"
            )

    def _check_count(self, count: int) -> None:
        most = self._welcome.max_samples
        if not count:
            raise BadShape("no images", hint="send at least one")
        if count > most:
            raise TooLarge(f"{count} images", hint=f"the daemon takes at most {most}; send fewer at a time")


def _without_none(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels with None replaced by UNLABELLED; unchanged if they are not whole numbers and None."""
    if labels.dtype.kind != "O":
        return labels
    known = [UNLABELLED if label is None else label for label in labels.tolist()]
    return np.asarray(known) if labels.ndim == 1 else labels


def _as_array(images: Any) -> NDArray[Any]:
    """The images as uint8 or little-endian float32. Raises BadDtype."""
    try:
        array: NDArray[Any] = np.asarray(images)
    except (ValueError, TypeError, RuntimeError) as error:  # a ragged list; a tensor on a GPU
        raise BadDtype(f"images of type {type(images).__name__}: {error}", hint="send a numpy array") from error
    kind = array.dtype.kind
    if kind == "b":
        return array * np.uint8(255)
    if kind == "f":
        with np.errstate(over="ignore"):  # infinity is rejected later
            return array.astype("<f4", copy=False)
    if array.dtype != np.uint8:
        raise BadDtype(
            f"images of dtype {array.dtype}",
            hint="use uint8, 0 to 255 (`images.astype(numpy.uint8)`), or floats, 0.0 to 1.0",
        )
    return array
