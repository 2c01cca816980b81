"""The base class of the formats in which data sets lie in files. Each has a module in `ffstream/data/formats/`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from ffstream.data.dataset import Dataset, Mask, Part, Split, last_samples
from ffstream.data.files import Files, Progress


class Collection(ABC):
    """Files that belong together as one data set. A subclass is a format, and is registered by being defined.

    `folder`: their path, relative to the place. `name`: the name of the data set that they are, if the files
    say so. `missing`: what is not there. `class_names`: the name of each label, if known. `notes`: what a user should
    know.
    """

    expected: ClassVar[str]
    """What a folder contains in this format, for hints."""

    formats: ClassVar[list[type["Collection"]]] = []

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Collection.formats.append(cls)

    def __init__(self, files: Files, folder: str, name: str | None) -> None:
        self.files = files
        self.folder = folder
        self.name = name
        self.class_names: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def find(cls, files: Files) -> Sequence[Self]:
        """Return what is there in this format, complete or not."""

    @property
    @abstractmethod
    def missing(self) -> Sequence[str]:
        """The files that were not found."""

    @property
    @abstractmethod
    def found(self) -> Sequence[str]:
        """Names of files that were found."""

    @abstractmethod
    def read(self, part: Part, progress: Progress | None = None) -> Split:
        """Read one part. Raises DataError for damaged files, and for a part that is not there."""

    def held_out(self, train: Split) -> Mask:
        """Return which training samples are for validation."""
        return last_samples(train)

    def may_be(self, name: str) -> bool:
        """Whether files that do not say what they are may be this data set."""
        return False

    @property
    def location(self) -> str:
        """Where the files are, for messages."""
        return self.files.label(self.folder)

    @property
    def depth(self) -> int:
        """How many folders below the given one the files are. Those in an archive are where the archive is."""
        return 0 if self.files.is_archive or not self.folder else 1 + self.folder.count("/")

    def dataset(self, name: str, progress: Progress | None = None) -> Dataset:
        """Return the data set, which reads its splits when they are asked for."""
        return Dataset(
            name,
            lambda part: self.read(part, progress),
            self.held_out,
            self.class_names,
            Path(self.location),
            self.notes,
        )
