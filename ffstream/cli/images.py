"""Reads images for `ffstream predict` and gives them the shape that the network takes.

The format is recognised by the content, not by the name: PNG and JPEG; IDX (gzipped or not), npy and npz.

    picture (PNG, JPEG)     its grey values (ITU-R 601) for a network with one channel, its colours for one with
                            three; transparent places count as white. Another height or width is an error, unless it
                            is to be resized: then it is scaled to them, whatever its proportions
    array (IDX, npy, npz)   one image or several along a first axis, as they are: uint8, or floats between 0 and 1
"""

import io
import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ffstream.data.idx import parse_idx
from ffstream.errors import BadDtype, BadShape, DataError
from ffstream.wire.images import shape_hint
from ffstream.wire.messages import Welcome

STDIN = "-"
FILE_MAX_BYTES = 1 << 30

_PICTURE = (b"\x89PNG", b"\xff\xd8\xff")
_NPY = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"
_GZIP = b"\x1f\x8b"
_DEEP = ("I", "F")  # modes with more than 8 bits begin with these
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, TypeError, zipfile.BadZipFile, Image.DecompressionBombError)


class Named(NamedTuple):
    """One image and what to call it."""

    name: str
    image: NDArray[Any]


class Wanted(NamedTuple):
    """How images are to be made fit for the network of `welcome`."""

    welcome: Welcome
    resize: bool = False
    invert: bool = False


def read_images(place: str, wanted: Wanted) -> list[Named]:
    """The images in a file, or on stdin. Raises DataError, BadShape and BadDtype."""
    name = "stdin" if place == STDIN else place
    content = _read(place)
    if content.startswith(_PICTURE):
        images = _picture(content, name, wanted)[None]
    else:
        images = _several(_array(content, name), name, wanted.welcome)
    if wanted.invert:
        images = _inverted(images, name)
    if len(images) == 1:
        return [Named(name, images[0])]
    return [Named(f"{name}[{at}]", image) for at, image in enumerate(images)]


def _read(place: str) -> bytes:
    try:
        if place == STDIN:
            content = sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
        else:
            with Path(place).open("rb") as file:
                content = file.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        why = error.strerror if isinstance(error, OSError) and error.strerror else error  # without the name again
        raise DataError(f"{place}: cannot be read: {why}", hint="check the path and its permissions") from error
    if len(content) > FILE_MAX_BYTES:
        raise DataError(f"{place}: more than {FILE_MAX_BYTES} bytes", hint="divide it")
    return content


# --- pictures ----------------------------------------------------------------------------------------------------


def _picture(content: bytes, name: str, wanted: Wanted) -> NDArray[np.uint8]:
    """A picture as an image of the network's shape."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except (*_DAMAGED, UnidentifiedImageError) as error:
        raise DataError(f"{name}: not a whole PNG or JPEG picture: {error}", hint="get the file again") from error
    if picture.mode.startswith(_DEEP):
        raise BadDtype(f"{name}: a picture with more than 8 bits a value", hint="convert it to 8 bits")
    height, width, channels = _layout(picture, wanted)
    if (picture.height, picture.width) != (height, width):
        if not wanted.resize:
            raise BadShape(
                f"{name}: the picture is {picture.height}×{picture.width}, the network takes {height}×{width}",
                hint="--resize scales it (height × width)",
            )
        picture = _with_channels(picture, channels).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(_with_channels(picture, channels))
    return pixels.reshape(wanted.welcome.image_shape)


def _layout(picture: Image.Image, wanted: Wanted) -> tuple[int, int, int]:
    """Height, width and channels of the picture that the network needs. Raises BadShape."""
    shape, inputs = wanted.welcome.image_shape, wanted.welcome.inputs
    if len(shape) in (2, 3):
        height, width, channels = (*shape, 1)[:3]
        if channels in _MODES:
            return height, width, channels
        raise BadShape(f"the network takes images {shape}", hint="a picture has 1, 3 or 4 channels: send an array")
    for channels in _MODES:
        if picture.height * picture.width * channels == inputs:
            return picture.height, picture.width, channels
    side = math.isqrt(inputs)
    if wanted.resize and side**2 == inputs:
        return side, side, 1
    raise BadShape(
        f"the network takes flat images of {inputs} values, the picture is {picture.height}×{picture.width}",
        hint=f"--resize scales it to {side}×{side}" if side**2 == inputs else "send an array",
    )


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    """The picture with that many channels. Unless they include transparency, it lies on white."""
    mode = _MODES[channels]
    if channels != 4 and ("A" in picture.getbands() or "transparency" in picture.info):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert(mode)


# --- arrays ------------------------------------------------------------------------------------------------------


def _array(content: bytes, name: str) -> NDArray[Any]:
    if content.startswith((_NPY, _ZIP)):
        try:
            loaded = np.load(io.BytesIO(content), allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else _only(loaded, name)
        except _DAMAGED as error:
            raise DataError(f"{name}: cannot be read: {error}", hint="write it with numpy.save or savez") from error
    if content.startswith((b"\0\0", _GZIP)):
        return parse_idx(io.BytesIO(content), name)
    raise DataError(
        f"{name}: neither PNG, JPEG, IDX, npy nor npz", hint="convert it; the content counts, not the name"
    )


def _only(arrays: Any, name: str) -> NDArray[Any]:
    """The array of an npz file: `images`, or the only one."""
    names = list(arrays)
    chosen = "images" if "images" in names else names[0] if len(names) == 1 else None
    if chosen is None:
        raise DataError(
            f"{name}: the arrays are {', '.join(names) or 'none'}", hint="one of them must be called `images`"
        )
    found: NDArray[Any] = arrays[chosen]
    return found


def _several(array: NDArray[Any], name: str, welcome: Welcome) -> NDArray[Any]:
    """The images (N, …) in an array of one or several."""
    shape, takes = list(array.shape), (welcome.image_shape, [welcome.inputs])
    if shape in takes:
        return array[None]
    if shape[1:] in takes:
        return array
    hint = shape_hint(shape[1:], welcome.image_shape)
    raise BadShape(f"{name}: an array of the shape {shape}", hint=f"{hint}; several images go along a first axis")


def _inverted(images: NDArray[Any], name: str) -> NDArray[Any]:
    if images.dtype == np.uint8:
        return np.uint8(255) - images
    if images.dtype.kind == "b":
        return ~images
    if images.dtype.kind == "f":
        return 1 - images
    raise BadDtype(f"{name}: numbers of dtype {images.dtype}", hint="use uint8, 0 to 255, or floats, 0.0 to 1.0")


def in_queries(images: Sequence[Named], welcome: Welcome) -> list[list[Named]]:
    """The images in parts that one query may hold, each of one dtype."""
    parts: list[list[Named]] = []
    for each in images:
        most = max(1, min(welcome.max_samples, welcome.max_bytes // max(1, 4 * welcome.inputs)))
        if not parts or len(parts[-1]) >= most or parts[-1][0].image.dtype != each.image.dtype:
            parts.append([])
        parts[-1].append(each)
    return parts
