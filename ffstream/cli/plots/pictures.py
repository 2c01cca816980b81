"""Images in the records of `/api`: lists of values, and PNG files in base64."""

import io
import math
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pixels(values: Sequence[int], shape: Sequence[int]) -> NDArray[np.uint8]:
    """An image (H, W) or (H, W, 3) to draw. One without height is a square, or a row; other channels become grey."""
    image = np.array(values, np.uint8)
    if len(shape) not in (2, 3):
        side = math.isqrt(len(image))
        return image.reshape((side, side) if side**2 == len(image) else (1, -1))
    image = image.reshape(shape)
    return image if image.ndim == 2 or image.shape[2] == 3 else image.mean(2).astype(np.uint8)


def of_png(encoded: str) -> NDArray[Any]:
    """The pixels of a PNG file in base64."""
    with Image.open(io.BytesIO(b64decode(encoded))) as image:
        return np.asarray(image)
