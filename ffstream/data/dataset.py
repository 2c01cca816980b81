"""Labelled images in memory, and reading them from a folder of IDX files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffstream.data import folder as folders
from ffstream.data.folder import HINT, Collection
from ffstream.data.idx import IdxArray, read_idx
from ffstream.errors import DataError

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels (N,), both uint8. Raises DataError when they do not belong together.

    Images are (N, H, W), (N, H, W, C) with the channels last, or (N, V) for V values without rows and columns.
    """

    images: UInt8Array
    labels: UInt8Array

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.labels.dtype != np.uint8:
            raise DataError(f"images are {self.images.dtype} and labels {self.labels.dtype}, expected uint8")
        if not 2 <= self.images.ndim <= 4:
            raise DataError(
                f"images have {self.images.ndim} dimensions, expected 3 (N, H, W), 4 (N, H, W, C) or 2 (N, values)"
            )
        if self.labels.ndim != 1:
            raise DataError(f"labels have {self.labels.ndim} dimensions, expected 1 (N)")
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.images.shape[1:]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with images of one shape. Raises DataError when the shapes differ.

    `folder`: where the files are. `notes`: what a user should know about them.
    """

    name: str
    train: Split
    test: Split
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        train, test = self.train.image_shape, self.test.image_shape
        if train != test:
            raise DataError(f"{self.name}: training images have the shape {train}, test images {test}")


def load_folder(folder: Path, name: str) -> Dataset:
    """Read the four IDX files of the only data set in a folder (see `ffstream.data.folder`), and name it `name`.

    Raises DataError for a missing, damaged or empty file, counts or shapes that do not match, pixels outside 0 to 255
    (or 0.0 to 1.0), and labels outside 0 to 255.
    """
    return read_collection(folders.choose(folder), name)


def read_collection(collection: Collection, name: str) -> Dataset:
    """Read a complete collection. EMNIST's files hold transposed images, which are transposed back.

    Raises DataError as `load_folder` does.
    """
    is_emnist = (collection.name or "").startswith("emnist")
    train, test = (_read_split(collection, prefix, transpose=is_emnist) for prefix in ("train", "t10k"))
    notes = ("the files of EMNIST hold transposed images; they were transposed back",) if is_emnist else ()
    return Dataset(name, train, test, collection.folder, notes)


def _read_split(collection: Collection, prefix: str, *, transpose: bool) -> Split:
    images_path, labels_path = (collection.files[f"{prefix}-{what}"] for what in ("images", "labels"))
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.size == 0:
        raise DataError(f"{images_path}: contains no pixels, shape {images.shape}", hint=HINT)
    if labels.ndim == 2 and labels.shape[1:] == (8,) and labels.dtype == np.int32:
        labels = labels[:, 0]  # QMNIST: the class, followed by seven columns about the writer
    pixels, classes = _pixels(images, images_path), _classes(labels, labels_path)
    try:
        split = Split(pixels, classes)
    except DataError as error:
        raise DataError(f"{images_path} and {labels_path.name}: {error.message}", hint=HINT) from error
    if not transpose:
        return split
    if split.images.ndim < 3:
        raise DataError(f"{images_path}: the images have no rows and columns", hint=HINT)
    return Split(np.ascontiguousarray(split.images.swapaxes(1, 2)), split.labels)


def _pixels(images: IdxArray, path: Path) -> UInt8Array:
    """Pixels as uint8. Numbers from 0 to 255 are rounded; floats from 0.0 to 1.0 are scaled to 0 to 255."""
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    low, high = _range(images)
    if images.dtype.kind == "f" and low >= 0.0 and high <= 1.0:
        return np.rint(images * 255).astype(np.uint8)
    if not (low >= 0 and high <= 255):
        expected = "0.0 to 1.0 or 0 to 255" if images.dtype.kind == "f" else "0 to 255"
        raise DataError(f"{path}: pixels are {low:g} to {high:g}, expected {expected}", hint="rescale the images")
    return np.rint(images).astype(np.uint8)


def _classes(labels: IdxArray, path: Path) -> UInt8Array:
    if labels.size == 0 or labels.dtype == np.uint8:
        return labels.astype(np.uint8, copy=False)
    low, high = _range(labels)
    if not (low >= 0 and high <= 255) or (labels.dtype.kind == "f" and np.any(labels != np.rint(labels))):
        what = f"{low:g} to {high:g}"
        raise DataError(
            f"{path}: labels are {what}, expected whole numbers from 0 to 255", hint="renumber the classes from 0"
        )
    return labels.astype(np.uint8)


def _range(array: npt.NDArray[Any]) -> tuple[float, float]:
    """Minimum and maximum. They are NaN if any number is, and NaN passes no comparison."""
    return float(array.min()), float(array.max())
