"""PNG files show the pixels and weights that they are made of."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ffstream.serving.pictures import SIDE_MAX, image_png, picture_shape, weights_png


def read(png: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ([3, 4], (3, 4)),
        ([3, 4, 1], (3, 4)),
        ([3, 4, 3], (3, 4, 3)),
        ([3, 4, 2], (3, 8)),
        ([3, 4, 5], (6, 12)),
        ([16], (4, 4)),
        ([15], (1, 15)),
        ([2, 2, 2, 2], (4, 4)),
    ],
)
def test_images_of_every_shape_are_drawn(shape: list[int], drawn: tuple[int, ...]) -> None:
    values = torch.arange(int(np.prod(shape)), dtype=torch.uint8)
    pixels = read(image_png(values, shape))
    assert pixels.shape == drawn
    if pixels.size == values.numel() and shape != [3, 4, 2]:
        assert pixels.ravel().tolist() == values.tolist()


def test_channels_lie_beside_each_other() -> None:
    values = torch.arange(24, dtype=torch.uint8)
    pixels = read(image_png(values, [3, 4, 2]))
    assert pixels[:, :4].ravel().tolist() == values[::2].tolist()
    assert pixels[:, 4:].ravel().tolist() == values[1::2].tolist()


def test_floats_are_scaled() -> None:
    assert read(image_png(torch.tensor([0.0, 0.5, 1.0, 0.2]), [4])).ravel().tolist() == [0, 128, 255, 51]


def test_a_large_image_is_reduced() -> None:
    assert read(image_png(torch.zeros(400 * 800, dtype=torch.uint8), [400, 800])).shape == (SIDE_MAX // 2, SIDE_MAX)


def test_weights_are_grey_at_zero_and_scaled_by_the_largest() -> None:
    png, scale = weights_png(torch.tensor([[[-0.5], [0.0]], [[0.25], [0.1]]]))
    assert scale == 0.5
    assert read(png).tolist() == [[1, 128], [192, 153]]
    png, scale = weights_png(torch.zeros(2, 2, 3))
    assert scale == 0
    assert (read(png) == 128).all()


def test_the_shape_of_a_picture_has_channels() -> None:
    assert picture_shape([28, 28]) == (28, 28, 1)
    assert picture_shape([32, 16, 3]) == (32, 16, 3)
    assert picture_shape([784]) == (28, 28, 1)
