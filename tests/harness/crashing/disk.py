"""What a disk may hold after power loss: a model of a folder and of everything that was done in it.

Safe is what a completed fsync covers, and nothing else: a file's bytes by an fsync of the file that began after
they were written, a name (new, changed, removed) by an fsync of its folder. What is not safe may be there or not:
each write whole, absent, in part (sectors of 512 bytes, in any choice), or as length without data; and of the changes
to the names in one folder the first so many, since file systems keep these in order. Folders are independent of each
other and of the files' bytes.

Not in the model: disks that lie about flushes, rot, and sectors that are lost while a neighbour is written.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

Kept = Literal["nothing", "everything", "anything"]  # of what is not safe
KEPT: tuple[Kept, ...] = ("nothing", "everything", "anything", "anything")
_SECTOR = 512


class Write(NamedTuple):
    """Bytes that go into a file."""

    path: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A new length for a file."""

    path: str
    size: int


class Make(NamedTuple):
    """A new file, or a new folder."""

    path: str
    folder: bool


class Remove(NamedTuple):
    """A name that goes, of a file or of an empty folder."""

    path: str


class Rename(NamedTuple):
    """Within one folder."""

    path: str
    to: str


class SyncBegins(NamedTuple):
    """An fsync is called; `ticket` tells which."""

    path: str
    ticket: int


class SyncEnds(NamedTuple):
    """That fsync has returned."""

    ticket: int


Operation = Write | Truncate | Make | Remove | Rename | SyncBegins | SyncEnds


@dataclass
class _File:
    safe: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)

    def sync(self, count: int) -> None:
        for each in self.pending[:count]:
            _apply(self.safe, each)
        del self.pending[:count]

    def after(self, kept: Kept, chance: random.Random) -> bytes:
        content = bytearray(self.safe)
        for each in self.pending:
            if kept == "everything":
                _apply(content, each)
            elif kept == "anything":
                _apply_perhaps(content, each, chance)
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


def _apply_perhaps(content: bytearray, operation: Write | Truncate, chance: random.Random) -> None:
    fate = chance.choice(("there", "absent", "torn", "length"))
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
            if chance.random() < 0.5:
                _apply(content, Write("", operation.offset + at, operation.data[at : at + length]))
            at += length


@dataclass
class _Folder:
    safe: "dict[str, _File | _Folder]" = field(default_factory=dict)
    now: "dict[str, _File | _Folder]" = field(default_factory=dict)
    pending: "list[Callable[[dict[str, _File | _Folder]], object]]" = field(default_factory=list)

    def change(self, how: "Callable[[dict[str, _File | _Folder]], object]") -> None:
        how(self.now)
        self.pending.append(how)

    def sync(self, count: int) -> None:
        for each in self.pending[:count]:
            each(self.safe)
        del self.pending[:count]

    def after(self, kept: Kept, chance: random.Random) -> "dict[str, _File | _Folder]":
        names = dict(self.safe)
        lasting = {"nothing": 0, "everything": len(self.pending), "anything": chance.randint(0, len(self.pending))}
        for each in self.pending[: lasting[kept]]:
            each(names)
        return names


class _Sync(NamedTuple):
    what: _File | _Folder
    size: int
    since: int


class Disk:
    """Everything below the folder `root`, which is there and safe, and empty at first."""

    def __init__(self, root: Path, *, honest: bool = True) -> None:
        self._root = PurePosixPath(root)
        self._top = _Folder()
        self._syncs: dict[int, _Sync] = {}
        self._synced: dict[int, int] = {}  # by identity: how much earlier syncs took from the front of `pending`
        self._honest = honest

    def do(self, operation: Operation) -> None:
        """One step further."""
        match operation:
            case SyncBegins(path, ticket):
                what = self._find(path)
                self._syncs[ticket] = _Sync(what, len(what.pending), self._synced.get(id(what), 0))
            case SyncEnds(ticket):
                self._end_sync(self._syncs.pop(ticket))
            case Write() | Truncate():
                file = self._find(operation.path)
                assert isinstance(file, _File)
                file.pending.append(operation)
            case Make(path, folder):
                made = _Folder() if folder else _File()
                within, name = self._within(path)
                within.change(lambda names: names.setdefault(name, made))
            case Remove(path):
                within, name = self._within(path)
                within.change(lambda names: names.pop(name, None))
            case Rename(path, to):
                within, name = self._within(path)
                target, new = self._within(to)
                assert target is within, "the model knows no rename from folder to folder"
                moved = within.now[name]
                within.change(lambda names: (names.pop(name, None), names.update({new: moved})))

    def _end_sync(self, sync: _Sync) -> None:
        if self._honest:
            taken = self._synced.get(id(sync.what), 0) - sync.since  # by another fsync meanwhile
            count = max(0, sync.size - taken)
            sync.what.sync(count)
            self._synced[id(sync.what)] = self._synced.get(id(sync.what), 0) + count

    def exists(self, path: str) -> bool:
        """Whether there is such a name now."""
        try:
            self._find(path)
        except KeyError:
            return False
        return True

    def _find(self, path: str) -> _File | _Folder:
        what: _File | _Folder = self._top
        for name in PurePosixPath(path).relative_to(self._root).parts:
            if not isinstance(what, _Folder):
                raise KeyError(path)
            what = what.now[name]
        return what

    def _within(self, path: str) -> tuple[_Folder, str]:
        folder = self._find(str(PurePosixPath(path).parent))
        assert isinstance(folder, _Folder)
        return folder, PurePosixPath(path).name

    def files(self) -> dict[str, bytes]:
        """What is in each file now, as long as power stays on."""
        return dict(_files(self._top, self._root))

    def write_after_power_loss(self, folder: Path, kept: Kept, chance: random.Random) -> None:
        """Makes one of the folders that may be there after power loss now."""
        _write_folder(self._top, folder, kept, chance)


def _files(folder: _Folder, path: PurePosixPath) -> Iterator[tuple[str, bytes]]:
    for name, each in folder.now.items():
        if isinstance(each, _Folder):
            yield from _files(each, path / name)
        else:
            yield str(path / name), each.after("everything", random.Random(0))


def _write_folder(what: _Folder, path: Path, kept: Kept, chance: random.Random) -> None:
    path.mkdir(mode=0o700)
    for name, each in what.after(kept, chance).items():
        if isinstance(each, _Folder):
            _write_folder(each, path / name, kept, chance)
        else:
            (path / name).write_bytes(each.after(kept, chance))
