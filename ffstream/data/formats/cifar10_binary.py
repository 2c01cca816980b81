"""CIFAR-10's binary version (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

    data_batch_1.bin … data_batch_5.bin   the training samples
    test_batch.bin                        the test samples

Each file is a sequence of records of 3,073 bytes: the label (0 to 9), then 32 · 32 pixels of red, of green and of
blue, row by row. A file is valid if and only if it has at least one record, has whole records only, and no label is
above 9.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np

from ffstream.data.collection import Collection
from ffstream.data.dataset import Part, Split
from ffstream.data.files import Files, Member, Progress
from ffstream.errors import DataError

NAME = "cifar-10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_FILES: dict[Part, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CHANNELS, _SIDE = 3, 32
_RECORD = 1 + _CHANNELS * _SIDE * _SIDE


class Cifar10Binary(Collection):
    """CIFAR-10's binary files. Images are (32, 32, 3)."""

    expected = "CIFAR-10's binary version is data_batch_1.bin to data_batch_5.bin and test_batch.bin"

    def __init__(self, files: Files, folder: str, batches: dict[str, Member]) -> None:
        super().__init__(files, folder, NAME)
        self._batches = batches
        self.class_names = CLASSES

    @classmethod
    def find(cls, files: Files) -> Sequence[Self]:
        """Return a collection for each folder with one of the files."""
        known = {name for names in _FILES.values() for name in names}
        folders: dict[str, dict[str, Member]] = {}
        for member in files.members:
            if member.name in known:
                folders.setdefault(member.folder, {})[member.name] = member
        return [cls(files, folder, batches) for folder, batches in folders.items()]

    @property
    def missing(self) -> Sequence[str]:
        """The files that were not found."""
        return [name for names in _FILES.values() for name in names if name not in self._batches]

    @property
    def found(self) -> Sequence[str]:
        """The files that were found."""
        return sorted(self._batches)

    def read(self, part: Part, progress: Progress | None = None) -> Split:
        """Read one part, in the order of the files. Raises DataError for a file that is not valid."""
        wanted = [self._batches[name] for name in _FILES[part]]
        contents = dict(self.files.contents(wanted, progress))
        records = np.concatenate([self._records(member, contents[member]) for member in wanted])
        pixels = records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)
        return Split(np.ascontiguousarray(pixels), records[:, 0].copy())

    def _records(self, member: Member, content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        where, hint = self.files.label(member.path), "the file is damaged or of another data set: get it again"
        if not content or len(content) % _RECORD:
            raise DataError(f"{where}: {len(content)} bytes, expected records of {_RECORD} bytes", hint=hint)
        records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
        if (highest := int(records[:, 0].max())) >= len(CLASSES):
            raise DataError(f"{where}: contains the label {highest}, expected 0 to {len(CLASSES) - 1}", hint=hint)
        return records
