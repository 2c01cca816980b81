"""Images and weights as PNG files.

An image of the shape (I) has no height: it is drawn as a square if I is a square, and otherwise as one row. One
channel is grey, three are red, green and blue; any other number of channels lie beside each other as grey tiles.

Shapes: I inputs, images (h, w, c).
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIDE_MAX = 256  # pixels; a larger image is reduced
_MODES = {1: "L", 3: "RGB"}


def image_png(image_I: Tensor, image_shape: Sequence[int]) -> bytes:
    """An image: uint8, or float32 between 0 and 1."""
    return _png(to_bytes(image_I).numpy().reshape(picture_shape(image_shape)))


def to_bytes(image_I: Tensor) -> Tensor:
    """The values of an image as uint8, 0 to 255."""
    return image_I if image_I.dtype == torch.uint8 else (image_I * 255).round().to(torch.uint8)


def weights_png(weights_HWC: Tensor) -> tuple[bytes, float]:
    """Weights: 0 is grey 128, and the largest absolute weight, which is returned, 1 or 255."""
    largest = float(weights_HWC.abs().max())
    grey = 128 + weights_HWC * (127 / largest if largest else 0.0)
    return _png(grey.round().to(torch.uint8).numpy()), largest


def picture_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """The height, width and channels with which an image of this shape is drawn."""
    if len(image_shape) in (2, 3):
        height, width, channels = (*image_shape, 1)[:3]
        return height, width, channels
    inputs = math.prod(image_shape)
    side = math.isqrt(inputs)
    return (side, side, 1) if side**2 == inputs else (1, inputs, 1)


def _png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    channels = pixels_HWC.shape[2]
    pixels = pixels_HWC if channels == 3 else _tiled(pixels_HWC)
    image = Image.fromarray(pixels, _MODES[3 if pixels.ndim == 3 else 1])
    image.thumbnail((SIDE_MAX, SIDE_MAX))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _tiled(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The channels as tiles of one grey image (H·rows, W·columns). Tiles that are left over are grey 128."""
    height, width, channels = pixels_HWC.shape
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    tiles = np.full((rows * columns, height, width), 128, np.uint8)
    tiles[:channels] = pixels_HWC.transpose(2, 0, 1)
    grid: NDArray[np.uint8] = tiles.reshape(rows, columns, height, width).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width)
