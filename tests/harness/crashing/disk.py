"""A model of what a disk may hold after power loss: a folder, and everything that was done in it.

Data is durable if and only if a completed fsync covers it: the bytes of a file by an fsync of the file that began
after they were written, a name (new, changed or removed) by an fsync of its folder. Everything else is undetermined.
Each write that is not durable may be there, absent, there in part (any choice of sectors of 512 bytes), or there as
length without data. Of the changes to the names in one folder, the first few may be there, because file systems keep
them in order. Folders are independent of each other and of the bytes of files.

Not modelled: disks that acknowledge an fsync without doing it (except with `honors_fsync=False`), bit rot, and
sectors that are lost while a neighbouring sector is written.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

Kept = Literal["nothing", "everything", "anything"]  # how much is kept of what is not durable
KEPT: tuple[Kept, ...] = ("nothing", "everything", "anything", "anything")
_SECTOR = 512


class Write(NamedTuple):
    """Bytes written to a file."""

    path: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A new length of a file."""

    path: str
    size: int


class Create(NamedTuple):
    """A new file, or a new folder."""

    path: str
    folder: bool


class Remove(NamedTuple):
    """The name of a file or of an empty folder is removed."""

    path: str


class Rename(NamedTuple):
    """A rename within one folder."""

    path: str
    to: str


class FsyncBegins(NamedTuple):
    """A call of fsync. Its end has the same ticket."""

    path: str
    ticket: int


class FsyncEnds(NamedTuple):
    """The fsync with this ticket has returned."""

    ticket: int


Operation = Write | Truncate | Create | Remove | Rename | FsyncBegins | FsyncEnds


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)

    def sync(self, count: int) -> None:
        for each in self.pending[:count]:
            _apply(self.durable, each)
        del self.pending[:count]

    def after_power_loss(self, kept: Kept, rng: random.Random) -> bytes:
        content = bytearray(self.durable)
        for each in self.pending:
            if kept == "everything":
                _apply(content, each)
            elif kept == "anything":
                _apply_randomly(content, each, rng)
        return bytes(content)


def _apply(content: bytearray, operation: Write | Truncate) -> None:
    if isinstance(operation, Truncate):
        _resize(content, operation.size)
        return
    end = operation.offset + len(operation.data)
    if len(content) < end:
        _resize(content, end)
    content[operation.offset : end] = operation.data


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _apply_randomly(content: bytearray, operation: Write | Truncate, rng: random.Random) -> None:
    fate = rng.choice(("there", "absent", "torn", "length"))
    if fate == "there":
        _apply(content, operation)
    elif isinstance(operation, Truncate) or fate == "absent":
        return
    elif fate == "length":
        _resize(content, max(len(content), operation.offset + len(operation.data)))
    else:
        at = 0
        while at < len(operation.data):
            length = _SECTOR - (operation.offset + at) % _SECTOR
            if rng.random() < 0.5:
                _apply(content, Write("", operation.offset + at, operation.data[at : at + length]))
            at += length


@dataclass
class _Folder:
    durable: "dict[str, _File | _Folder]" = field(default_factory=dict)
    current: "dict[str, _File | _Folder]" = field(default_factory=dict)
    pending: "list[Callable[[dict[str, _File | _Folder]], object]]" = field(default_factory=list)

    def change(self, how: "Callable[[dict[str, _File | _Folder]], object]") -> None:
        how(self.current)
        self.pending.append(how)

    def sync(self, count: int) -> None:
        for each in self.pending[:count]:
            each(self.durable)
        del self.pending[:count]

    def after_power_loss(self, kept: Kept, rng: random.Random) -> "dict[str, _File | _Folder]":
        names = dict(self.durable)
        counts = {"nothing": 0, "everything": len(self.pending), "anything": rng.randint(0, len(self.pending))}
        for each in self.pending[: counts[kept]]:
            each(names)
        return names


class _Fsync(NamedTuple):
    target: _File | _Folder
    pending: int  # how much was pending when it began
    synced: int  # how much earlier fsyncs had made durable by then


class Disk:
    """Everything below the folder `root`. At first `root` itself is durable, and empty."""

    def __init__(self, root: Path, *, honors_fsync: bool = True) -> None:
        self._root = PurePosixPath(root)
        self._top = _Folder()
        self._fsyncs: dict[int, _Fsync] = {}
        self._synced: dict[int, int] = {}  # by identity of a file or folder: operations that are durable
        self._honors_fsync = honors_fsync

    def apply(self, operation: Operation) -> None:
        """Does one operation."""
        match operation:
            case FsyncBegins(path, ticket):
                target = self._find(path)
                self._fsyncs[ticket] = _Fsync(target, len(target.pending), self._synced.get(id(target), 0))
            case FsyncEnds(ticket):
                self._end_fsync(self._fsyncs.pop(ticket))
            case Write() | Truncate():
                file = self._find(operation.path)
                assert isinstance(file, _File)
                file.pending.append(operation)
            case Create(path, is_folder):
                created = _Folder() if is_folder else _File()
                folder, name = self._parent(path)
                folder.change(lambda names: names.setdefault(name, created))
            case Remove(path):
                folder, name = self._parent(path)
                folder.change(lambda names: names.pop(name, None))
            case Rename(path, to):
                folder, name = self._parent(path)
                target_folder, new = self._parent(to)
                assert target_folder is folder, "a rename from one folder to another is not modelled"
                moved = folder.current[name]
                folder.change(lambda names: (names.pop(name, None), names.update({new: moved})))

    def _end_fsync(self, fsync: _Fsync) -> None:
        if self._honors_fsync:
            before = self._synced.get(id(fsync.target), 0)
            by_others = before - fsync.synced  # fsyncs of the same target that ended while this one ran
            count = max(0, fsync.pending - by_others)
            fsync.target.sync(count)
            self._synced[id(fsync.target)] = before + count

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder of this name now."""
        try:
            self._find(path)
        except KeyError:
            return False
        return True

    def _find(self, path: str) -> _File | _Folder:
        found: _File | _Folder = self._top
        for name in PurePosixPath(path).relative_to(self._root).parts:
            if not isinstance(found, _Folder):
                raise KeyError(path)
            found = found.current[name]
        return found

    def _parent(self, path: str) -> tuple[_Folder, str]:
        folder = self._find(str(PurePosixPath(path).parent))
        assert isinstance(folder, _Folder)
        return folder, PurePosixPath(path).name

    def files(self) -> dict[str, bytes]:
        """The content of each file now, without power loss."""
        return dict(_files(self._top, self._root))

    def write_after_power_loss(self, folder: Path, kept: Kept, rng: random.Random) -> None:
        """Creates one of the folders that may be there after power loss now."""
        _write_folder(self._top, folder, kept, rng)


def _files(folder: _Folder, path: PurePosixPath) -> Iterator[tuple[str, bytes]]:
    for name, each in folder.current.items():
        if isinstance(each, _Folder):
            yield from _files(each, path / name)
        else:
            yield str(path / name), each.after_power_loss("everything", random.Random(0))


def _write_folder(folder: _Folder, path: Path, kept: Kept, rng: random.Random) -> None:
    path.mkdir(mode=0o700)
    for name, each in folder.after_power_loss(kept, rng).items():
        if isinstance(each, _Folder):
            _write_folder(each, path / name, kept, rng)
        else:
            (path / name).write_bytes(each.after_power_loss(kept, rng))
