"""The IDX files of MNIST and its relatives, under the names that people and libraries usually give them.

A file is recognised if and only if its name, in upper or lower case, is

    [NAME-](train|t10k|test)(-|.)(images|labels)(-|.)idxN(-|.)TYPE[.gz]

Files in one folder and with one NAME belong together. A folder that itself has such a name is ignored as a level,
because some archives unpack each file into a folder of its own. A collection without a NAME gets its name from the
folders above it (torchvision's `FashionMNIST/raw`), if one of them has the name of a known data set.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ffstream.data.collection import Collection
from ffstream.data.dataset import Part, Split, UInt8Array
from ffstream.data.files import Files, Member, Progress
from ffstream.data.idx import IdxArray, parse_idx
from ffstream.errors import DataError

PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")

_PREFIXES: dict[Part, str] = {"train": "train", "test": "t10k"}
_FILE = re.compile(
    r"(?:(?P<name>.+?)[-_.])?(?P<split>train|t10k|test)(?P<separator>[-.])(?P<what>images|labels)"
    r"[-.]idx(?P<dimensions>\d)[-.][a-z0-9]+(?P<gz>\.gz)?",
    re.IGNORECASE,
)
_BY_FOLDER = {"mnist": "mnist", "fashionmnist": "fashion-mnist", "fashion": "fashion-mnist", "kmnist": "kmnist"}


class IdxFiles(Collection):
    """Four IDX files: images and labels for training and for test. EMNIST's images are transposed back."""

    expected = (
        "a data set's folder contains train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
        "and t10k-labels-idx1-ubyte, each gzipped (.gz) or not"
    )

    def __init__(self, files: Files, folder: str, name: str | None, members: dict[str, Member]) -> None:
        super().__init__(files, folder, name)
        self._members = members
        self._is_emnist = (name or "").startswith("emnist")
        if self._is_emnist:
            self.notes = ("the files of EMNIST hold transposed images; they were transposed back",)

    @classmethod
    def find(cls, files: Files) -> Sequence[Self]:
        """Return a collection for each folder and NAME."""
        found: dict[tuple[str, str], list[tuple[tuple[bool, ...], str, Member]]] = {}
        for member in files.members:
            match = _FILE.fullmatch(member.name)
            if match is None:
                continue
            is_t10k = match["split"].lower() == "t10k"
            part = f"{'train' if match['split'].lower() == 'train' else 't10k'}-{match['what'].lower()}"
            name = (match["name"] or "").lower().replace("_", "-")
            # If a file exists in several forms, the first one in this order is used.
            order = (not is_t10k, match["separator"] == ".", bool(match["gz"]))
            found.setdefault((_folder_of(member), name), []).append((order, part, member))
        result = []
        for (folder, name), each in found.items():
            members: dict[str, Member] = {}
            for _, part, member in sorted(each, key=lambda entry: entry[:2]):
                members.setdefault(part, member)
            result.append(cls(files, folder, name or _name_of(files.place, folder), members))
        return result

    @property
    def missing(self) -> Sequence[str]:
        """The files that were not found."""
        return [
            f"{part}-idx{3 if part.endswith('images') else 1}-ubyte[.gz]"
            for part in PARTS
            if part not in self._members
        ]

    @property
    def found(self) -> Sequence[str]:
        """The files that were found."""
        return sorted(member.name for member in self._members.values())

    def may_be(self, name: str) -> bool:
        """Whether the files of that data set have no NAME."""
        return name in _BY_FOLDER.values()

    def read(self, part: Part, progress: Progress | None = None) -> Split:
        """Read one part.

        Raises DataError for a damaged or empty file, counts that do not match, pixels outside 0 to 255 (or 0.0 to
        1.0), and labels outside 0 to 255.
        """
        members = [self._members[f"{_PREFIXES[part]}-{what}"] for what in ("images", "labels")]
        contents = dict(self.files.contents(members, progress))
        where = [self.files.label(member.path) for member in members]
        images, labels = (
            parse_idx(io.BytesIO(contents.pop(member)), each) for member, each in zip(members, where, strict=True)
        )
        if images.size == 0:
            raise DataError(f"{where[0]}: contains no pixels, shape {images.shape}", hint=self.expected)
        if labels.ndim == 2 and labels.shape[1:] == (8,) and labels.dtype == np.int32:
            labels = labels[:, 0]  # QMNIST: the class, followed by seven columns about the writer
        pixels, classes = _pixels(images, where[0]), _classes(labels, where[1])
        try:
            split = Split(pixels, classes)
        except DataError as error:
            raise DataError(f"{where[0]} and {members[1].name}: {error.message}", hint=self.expected) from error
        if not self._is_emnist:
            return split
        if split.images.ndim < 3:
            raise DataError(f"{where[0]}: the images have no rows and columns", hint=self.expected)
        return Split(np.ascontiguousarray(split.images.swapaxes(1, 2)), split.labels)


def _folder_of(member: Member) -> str:
    """The folder of a file, without one that was unpacked for this file alone."""
    above, _, last = member.folder.rpartition("/")
    return above if _FILE.fullmatch(last) else member.folder


def _name_of(place: Path, folder: str) -> str | None:
    top = place.resolve().name
    for part in (*reversed(folder.split("/")), top if place.is_dir() else top.partition(".")[0]):
        if name := _BY_FOLDER.get(re.sub(r"[-_. ]", "", part.lower())):
            return name
    return None


def _pixels(images: IdxArray, where: str) -> UInt8Array:
    """Pixels as uint8. Numbers from 0 to 255 are rounded; floats from 0.0 to 1.0 are scaled to 0 to 255."""
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    low, high = _range(images)
    if images.dtype.kind == "f" and low >= 0.0 and high <= 1.0:
        return np.rint(images * 255).astype(np.uint8)
    if not (low >= 0 and high <= 255):
        expected = "0.0 to 1.0 or 0 to 255" if images.dtype.kind == "f" else "0 to 255"
        raise DataError(f"{where}: pixels are {low:g} to {high:g}, expected {expected}", hint="rescale the images")
    return np.rint(images).astype(np.uint8)


def _classes(labels: IdxArray, where: str) -> UInt8Array:
    if labels.size == 0 or labels.dtype == np.uint8:
        return labels.astype(np.uint8, copy=False)
    low, high = _range(labels)
    if not (low >= 0 and high <= 255) or (labels.dtype.kind == "f" and np.any(labels != np.rint(labels))):
        what = f"{low:g} to {high:g}"
        raise DataError(
            f"{where}: labels are {what}, expected whole numbers from 0 to 255", hint="renumber the classes from 0"
        )
    return labels.astype(np.uint8)


def _range(array: npt.NDArray[Any]) -> tuple[float, float]:
    """Minimum and maximum. They are NaN if any number is, and NaN passes no comparison."""
    return float(array.min()), float(array.max())
