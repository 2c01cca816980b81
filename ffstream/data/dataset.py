"""Labelled images in memory, and the splits of a data set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ffstream.errors import DataError

UInt8Array = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]

Part = Literal["train", "test"]
"""What is stored."""

SplitName = Literal["train", "train_without_validation", "validation", "test"]
"""What can be asked for. `validation` is a part of `train`, `train_without_validation` the rest of it."""

VALIDATION_MAX = 10_000
_VALIDATION_SHARE = 5  # not more than a fifth


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

    def __getitem__(self, mask: Mask) -> "Split":
        """The samples that a mask (N,) selects."""
        return Split(self.images[mask], self.labels[mask])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.images.shape[1:]


def last_of(count: int, most: int) -> int:
    """How many of `count` samples are held out for validation: `most`, but not more than a fifth."""
    return min(most, count // _VALIDATION_SHARE)


def last_samples(train: Split) -> Mask:
    """Mask (N,) of the last VALIDATION_MAX samples, but not more than a fifth of them."""
    return np.arange(len(train)) >= len(train) - last_of(len(train), VALIDATION_MAX)


@dataclass(eq=False)
class Dataset:
    """A training and a test split. Each is read when it is asked for first, and kept in memory.

    `read` reads one, `held_out` says which training samples are for validation. `class_names`: the name of each
    label, if known. `folder`: where the files are. `notes`: what a user should know about them.
    The properties and `split` raise DataError for files that are damaged or do not belong together.
    """

    name: str
    read: Callable[[Part], Split]
    held_out: Callable[[Split], Mask] = last_samples
    class_names: tuple[str, ...] = ()
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    _parts: dict[Part, Split] = field(default_factory=dict, init=False, repr=False)

    @property
    def train(self) -> Split:
        """All training samples."""
        return self._part("train")

    @property
    def test(self) -> Split:
        """All test samples."""
        return self._part("test")

    def split(self, name: SplitName) -> Split:
        """Return a split, such as `validation`: training samples that `train_without_validation` does not have."""
        match name:
            case "train" | "test":
                return self._part(name)
            case "validation":
                return self.train[self._held_out()]
            case "train_without_validation":
                return self.train[~self._held_out()]

    def _held_out(self) -> Mask:
        mask = self.held_out(self.train)
        if not mask.any():
            raise DataError(
                f"{self.name}: {len(self.train)} training samples are too few to hold some out for validation",
                hint="use the split train",
            )
        return mask

    def _part(self, part: Part) -> Split:
        if part not in self._parts:
            self._parts[part] = self.read(part)
            shapes = {name: split.image_shape for name, split in self._parts.items()}
            if len(set(shapes.values())) > 1:
                raise DataError(
                    f"{self.name}: training images have the shape {shapes['train']}, test images {shapes['test']}"
                )
        return self._parts[part]
