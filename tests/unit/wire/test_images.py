"""Images and labels in payload frames: which shapes, sizes and values a network takes."""

import math
import re
from typing import Any

import numpy as np
import pytest

from ffstream.errors import (
    BadDtype,
    BadShape,
    BadSize,
    LabelOutOfRange,
    LabelRequired,
    NotFinite,
    ProtocolError,
    TooLarge,
    ValueOutOfRange,
)
from ffstream.wire.images import ImageChecker, bytes_to_labels, count_unlabelled, images_to_array, shape_hint
from ffstream.wire.messages import Samples

CHECKER = ImageChecker([2, 3], labels=10, max_samples=100)


def samples(**other: Any) -> Samples:
    fields: dict[str, Any] = {
        "client": "a",
        "n": 1,
        "base": 1,
        "count": 2,
        "dtype": "uint8",
        "shape": [2, 3],
        "labels": b"\1\0\2\0",
    }
    return Samples(**(fields | other))


@pytest.mark.parametrize("shape", [[2, 3], [6]])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_images_are_accepted_in_the_networks_shape_and_flat(shape: list[int], dtype: str) -> None:
    CHECKER.check_samples(samples(shape=shape, dtype=dtype), bytes(12 if dtype == "uint8" else 48))


@pytest.mark.parametrize(
    ("shape", "image_shape", "hint"),
    [
        ([14, 56], [28, 28], "takes [28, 28], or flat [784]"),
        ([28, 32], [32, 28], "takes [32, 28], or flat [896]"),
        ([784, 1], [28, 28], "takes [28, 28], or flat [784]"),
        ([1, 784], [28, 28], "takes [28, 28], or flat [784]"),
        ([1, 28, 28], [28, 28], "only axes of length 1 differ: images.reshape(-1, 28, 28)"),
        ([28, 28], [28, 28, 1], "only axes of length 1 differ: images.reshape(-1, 28, 28, 1)"),
        ([3, 32, 32], [32, 32, 3], "move the channels last: images.transpose(0, 2, 3, 1)"),
        ([1, 28, 28], [28, 28, 1], "move the channels last: images.transpose(0, 2, 3, 1)"),
        ([2, 2, 2, 2], [4, 4], "takes [4, 4], or flat [16]"),
        ([28, 28], [784], "takes [784]; flatten the images: images.reshape(-1, 784)"),
        ([64, 28, 28], [28, 28], "`count` is the number of images"),
        ([64, 784], [28, 28], "takes [28, 28], or flat [784]"),
    ],
)
def test_any_other_shape_is_rejected_and_the_hint_says_what_to_do(
    shape: list[int], image_shape: list[int], hint: str
) -> None:
    checker = ImageChecker(image_shape, labels=10, max_samples=100)
    with pytest.raises(BadShape, match=re.escape(f"{shape}")) as caught:
        checker.check_images(samples(shape=shape), bytes(2 * math.prod(shape)))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "image_shape", "axes"), [((3, 4, 5), (4, 5, 3), (0, 2, 3, 1)), ((1, 4, 5), (4, 5, 1), (0, 2, 3, 1))]
)
def test_the_suggested_transposition_leads_to_the_expected_shape(
    shape: tuple[int, ...], image_shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    assert f"images.transpose{axes}" in shape_hint(shape, image_shape)
    assert np.zeros((7, *shape)).transpose(axes).shape[1:] == image_shape


def floats(*values: float) -> bytes:
    return np.array([*values, *[0.5] * (12 - len(values))], "<f4").tobytes()


BAD_IMAGES: dict[str, tuple[dict[str, Any], bytes, type[ProtocolError]]] = {
    "dtype unknown": ({"dtype": "float64"}, bytes(96), BadDtype),
    "dtype empty": ({"dtype": ""}, bytes(12), BadDtype),
    "dtype in numpy's short form": ({"dtype": "<f4"}, bytes(48), BadDtype),
    "dtype of the other byte order": ({"dtype": ">f4"}, bytes(48), BadDtype),
    "101 samples": ({"count": 101, "labels": bytes(202)}, bytes(606), TooLarge),
    "2^63-1 samples": ({"count": 2**63 - 1}, bytes(12), TooLarge),
    "five numbers": ({"shape": [5]}, bytes(10), BadShape),
    "seven numbers": ({"shape": [7]}, bytes(14), BadShape),
    "as many numbers in another shape": ({"shape": [3, 2]}, bytes(12), BadShape),
    "a product that wraps at 64 bits": ({"shape": [2**31, 2**31, 4, 3]}, bytes(12), BadShape),
    "a product of 6 modulo 2^32": ({"shape": [2**31, 2, 1, 6]}, bytes(12), BadShape),
    "no bytes": ({}, b"", BadSize),
    "a byte short": ({}, bytes(11), BadSize),
    "a byte more": ({}, bytes(13), BadSize),
    "uint8 said, float32 sent": ({}, bytes(48), BadSize),
    "float32 said, uint8 sent": ({"dtype": "float32"}, bytes(12), BadSize),
    "NaN": ({"dtype": "float32"}, floats(float("nan")), NotFinite),
    "NaN at the end": ({"dtype": "float32"}, floats(*[0.0] * 11, float("nan")), NotFinite),
    "infinity": ({"dtype": "float32"}, floats(float("inf")), NotFinite),
    "minus infinity": ({"dtype": "float32"}, floats(0.0, float("-inf")), NotFinite),
    "the largest float": ({"dtype": "float32"}, floats(3.4e38), ValueOutOfRange),
    "over one": ({"dtype": "float32"}, floats(0.0, 1.0000011), ValueOutOfRange),
    "below zero": ({"dtype": "float32"}, floats(0.0, -1.1e-6), ValueOutOfRange),
    "a byte of labels short": ({"labels": bytes(3)}, bytes(12), BadSize),
    "a label short": ({"labels": bytes(2)}, bytes(12), BadSize),
    "a label more": ({"labels": bytes(6)}, bytes(12), BadSize),
    "no labels": ({"labels": b""}, bytes(12), BadSize),
    "label 10 of 10": ({"labels": b"\0\0\x0a\0"}, bytes(12), LabelOutOfRange),
    "label 256: the second byte counts": ({"labels": b"\0\0\0\1"}, bytes(12), LabelOutOfRange),
    "label 65534": ({"labels": b"\xfe\xff\0\0"}, bytes(12), LabelOutOfRange),
    "no label": ({"labels": b"\xff\xff\0\0"}, bytes(12), LabelRequired),
    "no label, alone": ({"count": 1, "labels": b"\xff\xff"}, bytes(6), LabelRequired),
    "label 10, alone": ({"count": 1, "labels": b"\x0a\0"}, bytes(6), LabelOutOfRange),
    "label 256, alone": ({"count": 1, "labels": b"\0\1"}, bytes(6), LabelOutOfRange),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_invalid_images_and_labels_raise_the_specified_error(name: str) -> None:
    fields, frame, kind = BAD_IMAGES[name]
    with pytest.raises(ProtocolError) as caught:
        CHECKER.check_samples(samples(**fields), frame)
    assert type(caught.value) is kind
    assert caught.value.hint


def test_values_at_the_limits_are_accepted() -> None:
    CHECKER.check_samples(samples(dtype="float32"), floats(0.0, -0.0, 1.0, np.nextafter(np.float32(0), 1)))
    CHECKER.check_samples(samples(labels=b"\x09\0\0\0"), b"\xff" * 12)
    CHECKER.check_samples(samples(count=1, labels=b"\x09\0"), bytes(6))
    CHECKER.check_samples(samples(count=100, labels=bytes(200)), bytes(600))


def test_samples_without_a_label_are_accepted_where_the_network_needs_none() -> None:
    checker = ImageChecker([2, 3], labels=10, max_samples=100, unlabelled=True)
    for labels in (b"\xff\xff\0\0", b"\x09\0\xff\xff", b"\xff\xff\xff\xff"):
        checker.check_samples(samples(labels=labels), bytes(12))
    checker.check_samples(samples(count=1, labels=b"\xff\xff"), bytes(6))
    for labels in (b"\xff\xff\x0a\0", b"\xfe\xff\xff\xff"):
        with pytest.raises(LabelOutOfRange):
            checker.check_samples(samples(labels=labels), bytes(12))
    assert count_unlabelled(b"\xff\xff\0\0\xff\xff") == 2
    assert count_unlabelled(b"\xff\0\0\xff") == 0


def test_floats_outside_by_a_rounding_error_are_clipped() -> None:
    above, below = np.nextafter(np.float32(1), np.float32(2)), -1e-9
    for outside, clipped in (
        ((above, 0.25), (1.0, 0.25)),
        ((0.5, below), (0.5, 0.0)),
        ((1 + 9e-7, -1e-6), (1.0, 0.0)),
    ):
        header, frame = samples(dtype="float32"), floats(*outside)
        assert CHECKER.check_samples(header, frame) == floats(*clipped)
        assert CHECKER.check_images(header, frame) == floats(*clipped)


def test_floats_in_range_are_not_copied() -> None:
    frame = floats(0.0, 1.0)
    assert CHECKER.check_samples(samples(dtype="float32"), frame) is frame


@pytest.mark.parametrize(("value", "shown"), [(1.0000011, "1.0000011"), (-1.1e-6, "-1.1e-06"), (255.0, "255.0")])
def test_the_error_shows_a_float_out_of_range_with_all_digits(value: float, shown: str) -> None:
    with pytest.raises(ValueOutOfRange, match=re.escape(shown)):
        CHECKER.check_samples(samples(dtype="float32"), floats(0.0, value))


def test_images_and_labels_share_the_memory_of_their_frames() -> None:
    frame = bytes(range(12))
    images = images_to_array("uint8", 2, frame)
    assert images.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert np.shares_memory(images, np.frombuffer(frame, np.uint8))
    assert images_to_array("float32", 1, floats(0.25)).tolist() == [[0.25, *[0.5] * 11]]
    assert bytes_to_labels(b"\1\0\0\1").tolist() == [1, 256]
