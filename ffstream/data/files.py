"""The files in a place: in and below a folder, or in an archive (zip, tar, tar.gz), which is never unpacked on disk.

Names are relative to the place. Hidden files and those that macOS adds to archives (`__MACOSX`) are left out, and so
are files more than `_MAX_DEPTH` folders deep.
"""

import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from ffstream.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Called with (what is done, such as `downloading x.gz`; bytes so far; bytes in total, None if unknown)."""

MEMBER_MAX_BYTES = 1 << 30

_MAX_DEPTH = 5
_MAX_MEMBERS = 2_000_000
# What zipfile and tarfile raise for damaged archives (IndexError: an empty name; TypeError: a gzip header that ends
# too early), for encrypted ones, and for compressions that they do not know.
_DAMAGED = (
    EOFError,
    IndexError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Member:
    """A file: its path relative to the place, with slashes, and its size without compression."""

    path: str
    size_bytes: int

    @property
    def folder(self) -> str:
        """The path of the folder that it is in; empty if that is the place itself."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


class Files(ABC):
    """The files in a place. Raises DataError for a place that cannot be read or has too many files."""

    def __init__(self, place: Path) -> None:
        self.place = place
        with _readable(place):
            self.members = sorted(self._checked(self._list()), key=lambda member: member.path)

    @property
    def is_archive(self) -> bool:
        """Whether the place is a file."""
        return not isinstance(self, _Folder)

    def label(self, path: str) -> str:
        """How a file or folder in this place is called in messages."""
        return str(self.place / path)

    def contents(self, wanted: Iterable[Member], progress: Progress | None = None) -> Iterator[tuple[Member, bytes]]:
        """Yield each wanted file with its bytes, in the order in which they are stored.

        Raises DataError for a file that cannot be read or has more than MEMBER_MAX_BYTES.
        """
        left = {member.path: member for member in wanted}
        total, done = sum(member.size_bytes for member in left.values()), 0
        for member in left.values():
            if member.size_bytes > MEMBER_MAX_BYTES:
                raise DataError(
                    f"{self.label(member.path)}: {member.size_bytes} bytes, the limit is {MEMBER_MAX_BYTES}",
                    hint="divide the file",
                )
        with _readable(self.place):
            for path, content in self._read(set(left)):
                yield (member := left.pop(path)), content
                done += member.size_bytes
                if progress:
                    progress(f"reading {self.place.name}", done, total)
        if left:
            raise DataError(
                f"{self.label(min(left))}: is no longer there", hint="do not change files while they are read"
            )

    def _checked(self, members: Iterator[Member]) -> Iterator[Member]:
        for count, member in enumerate(members):
            if count >= _MAX_MEMBERS:
                raise DataError(f"{self.place}: has more than {_MAX_MEMBERS:,} files", hint="give a smaller folder")
            parts = member.path.split("/")
            if len(parts) <= _MAX_DEPTH + 1 and not any(
                part[:1] in (".", "") or part == "__MACOSX" for part in parts
            ):
                yield member

    @abstractmethod
    def _list(self) -> Iterator[Member]: ...

    @abstractmethod
    def _read(self, paths: set[str]) -> Iterator[tuple[str, bytes]]: ...


class _Folder(Files):
    def _list(self) -> Iterator[Member]:
        for root, folders, files in os.walk(self.place):
            here = Path(root).relative_to(self.place)
            folders[:] = [each for each in folders if not each.startswith(".")]
            if len(here.parts) >= _MAX_DEPTH:
                folders.clear()
            for name in files:
                path = Path(root, name)
                if path.is_file():  # neither a pipe nor a broken link
                    yield Member((here / name).as_posix(), path.stat().st_size)

    def _read(self, paths: set[str]) -> Iterator[tuple[str, bytes]]:
        for path in sorted(paths):
            yield path, (self.place / path).read_bytes()


class _Zip(Files):
    def _list(self) -> Iterator[Member]:
        with zipfile.ZipFile(self.place) as archive:
            for each in archive.infolist():
                if not each.is_dir():
                    yield Member(_plain(each.filename), each.file_size)

    def _read(self, paths: set[str]) -> Iterator[tuple[str, bytes]]:
        with zipfile.ZipFile(self.place) as archive:
            for each in archive.infolist():
                if (path := _plain(each.filename)) in paths and not each.is_dir():
                    paths.discard(path)  # a path may be there twice
                    yield path, archive.read(each)


class _Tar(Files):
    """Read as a stream: going back in a gzipped archive would decompress it from the start."""

    def _list(self) -> Iterator[Member]:
        with self._open() as archive:
            for each in archive:
                if each.isfile():
                    yield Member(_plain(each.name), each.size)

    def _read(self, paths: set[str]) -> Iterator[tuple[str, bytes]]:
        with self._open() as archive:
            for each in archive:
                if (path := _plain(each.name)) in paths and each.isfile() and (file := archive.extractfile(each)):
                    paths.discard(path)
                    yield path, _whole(file, each.size)

    def _open(self) -> tarfile.TarFile:
        mode: Literal["r|", "r|gz"] = "r|" if self.place.name.lower().endswith(".tar") else "r|gz"
        return tarfile.open(self.place, mode, encoding="utf-8")  # of the names


def is_archive(place: Path) -> bool:
    """Whether the file's name says that it is an archive that can be read."""
    return place.name.lower().endswith(_ZIP + _TAR)


def files_in(place: Path) -> Files:
    """Return the files in a folder or an archive. Raises DataError when there is none or it is damaged."""
    if place.is_dir():
        return _Folder(place)
    if not place.exists():
        raise DataError(f"{place}: no such file or folder", hint="check the path")
    if not is_archive(place):
        raise DataError(
            f"{place}: neither a folder nor an archive that can be read",
            hint=f"give a folder, or a file whose name ends in {', '.join(_ZIP + _TAR)}",
        )
    return _Zip(place) if place.name.lower().endswith(_ZIP) else _Tar(place)


def _plain(path: str) -> str:
    return path.removeprefix("./")  # `tar -c .` writes it


def _whole(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise EOFError(f"ends after {len(content)} of {size} bytes")
    return content


@contextmanager
def _readable(place: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise DataError(f"{place}: cannot be read: {error}", hint="is it damaged? get it again") from error
