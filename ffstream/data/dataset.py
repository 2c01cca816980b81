"""Labelled images in memory, and the folder of four IDX files they are read from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ffstream.data.idx import read_idx
from ffstream.errors import DataError

UInt8Array = npt.NDArray[np.uint8]

_FOLDER_HINT = (
    "a dataset folder holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
    "and t10k-labels-idx1-ubyte, each gzipped (.gz) or not"
)


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, H, W) and their labels (N,), both uint8. Raises DataError when they do not fit together."""

    images: UInt8Array
    labels: UInt8Array

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.labels.dtype != np.uint8:
            raise DataError(f"images are {self.images.dtype} and labels {self.labels.dtype}, expected uint8")
        if self.images.ndim != 3:
            raise DataError(f"images have {self.images.ndim} dimensions, expected 3 (N, H, W)")
        if self.labels.ndim != 1:
            raise DataError(f"labels have {self.labels.ndim} dimensions, expected 1 (N)")
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with images of one size. Raises DataError when the sizes differ."""

    name: str
    train: Split
    test: Split

    def __post_init__(self) -> None:
        train_HW, test_HW = self.train.images.shape[1:], self.test.images.shape[1:]
        if train_HW != test_HW:
            raise DataError(f"{self.name}: training images are {train_HW} pixels, test images {test_HW}")


def load_folder(folder: Path, name: str) -> Dataset:
    """Read the four IDX files of a folder, named as MNIST names them.

    Also takes the dotted names (`train-images.idx3-ubyte`). Of several forms of one file the plain one is
    read. Raises DataError for a missing, damaged or empty file and for counts or sizes that do not fit.
    """
    return Dataset(name, _read_split(folder, "train"), _read_split(folder, "t10k"))


def _read_split(folder: Path, prefix: str) -> Split:
    images_path = _find(folder, f"{prefix}-images", "idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels", "idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    try:
        split = Split(images, labels)
    except DataError as error:
        raise DataError(f"{images_path} and {labels_path.name}: {error.message}", hint=_FOLDER_HINT) from error
    if images.size == 0:
        raise DataError(f"{images_path}: holds no pixels, shape {images.shape}", hint=_FOLDER_HINT)
    return split


def _find(folder: Path, stem: str, kind: str) -> Path:
    for path in _candidates(folder, stem, kind):
        if path.is_file():
            return path
    raise DataError(f"{folder}: no file {stem}-{kind}[.gz]", hint=_FOLDER_HINT)


def _candidates(folder: Path, stem: str, kind: str) -> Iterator[Path]:
    for separator in "-.":
        yield folder / f"{stem}{separator}{kind}"
        yield folder / f"{stem}{separator}{kind}.gz"
