"""Backup: a copy of a state folder that a daemon can start on. It works with or without a running daemon.

    journal.sqlite     as one read transaction sees it, copied by SQLite's backup API
    checkpoints/SEQ/   the newest whole checkpoint that this journal continues from
    backup.json        what the copy holds

A backup is valid if and only if it has its final name: it is written beside it, flushed, verified in every byte, and
renamed last. A crash leaves only a folder `.NAME.…`. A backup contains everything that was acked before it began:

    1. open the files of the newest checkpoint: they stay readable even if the daemon removes them
    2. begin the read transaction
    3. check that the checkpoint is still in its place (a rollback may have undone it), and that each sample after it
       is in the journal or skipped; otherwise start over with what is there now
    4. copy both, compare checksums, mark the journal as closed (see journal.clean_close), verify it

The daemon goes on accepting and learning. Only its -wal file cannot be folded meanwhile, and grows by what is acked.

It reads the folder directly and is not a command of the daemon: otherwise a control client could make the daemon
write anywhere its user may, and a backup must also work when no daemon runs.
"""

import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from ffstream import __version__
from ffstream.checkpoint import manifest as manifests
from ffstream.checkpoint.manifest import CHECKPOINTS, MANIFEST, folder_of
from ffstream.errors import CheckpointDamaged, ConfigError, DiskFull, JournalDamaged, Unavailable
from ffstream.journal import clean_close, database, inspection, origin, schema, skips
from ffstream.journal.origin import Origin
from ffstream.journal.schema import JOURNAL
from ffstream.journal.verification import Verification
from ffstream.util.durable import fsync, fsync_tree, make_folder

FORMAT = 1
BACKUP = "backup.json"
_ATTEMPTS = 20  # an attempt fails when a rollback or new checkpoints come in between
_PAUSE_S = 0.1
_PAGES = 512  # per step

OnPages = Callable[[int, int], object]


@dataclass(frozen=True)
class Backup:
    """What a backup holds: samples `first_seq` … `last_seq` in its journal, those up to `checkpoint_seq` learned."""

    path: str
    checkpoint_seq: int  # 0: no checkpoint, learning starts at the journal's first sample
    first_seq: int
    last_seq: int
    bytes: int
    written: float  # time of day, seconds since 1970
    seconds: float


class _Changed(Exception):
    """The state folder changed: the parts that were read do not belong together."""


def make(state: Path, target: Path, on_pages: OnPages = lambda done, total: None) -> Backup:
    """Writes a backup of a state folder to a new folder. `on_pages` gets the pages copied so far, and their total.

    Raises ConfigError (no state folder, target not usable), JournalDamaged, CheckpointDamaged, DiskFull, Unavailable.
    """
    start = time.monotonic()
    if not (state / JOURNAL).is_file():
        raise ConfigError(f"no journal at {state / JOURNAL}", hint="--state names a daemon's state folder")
    _check_target(state, target)
    clean_close.check(state / JOURNAL)
    try:
        make_folder(target.absolute().parent, 0o700)
        with _aside(target) as aside:
            checkpoint_seq = _copy(state, aside, on_pages)
            backup = _describe(aside, target, checkpoint_seq, time.monotonic() - start)
            (aside / BACKUP).write_text(
                json.dumps({"format": FORMAT, "ffstream": __version__, **asdict(backup)}, indent=1) + "\n",
                encoding="utf-8",
            )
            fsync_tree(aside)
            aside.rename(target)  # replaces an empty folder
            fsync(target.absolute().parent)
    except OSError as error:
        raise Unavailable(
            f"{error.filename or target}: {error.strerror}",
            hint="is there room, and may this user read the state folder and write here?",
        ) from error
    return backup


def check_format(state: Path) -> None:
    """Raises ConfigError if the state folder was restored from a backup of another format."""
    try:
        restored = json.loads((state / BACKUP).read_bytes())
        found, writer = restored["format"], restored["ffstream"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # only a description: what is missing in the folder is found when that is opened
    if found != FORMAT:
        raise ConfigError(
            f"{state} was restored from a backup of format {found!r}, and this ffstream reads format {FORMAT}",
            hint=f"use ffstream {writer}, which wrote the backup",
        )


def _check_target(state: Path, target: Path) -> None:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise ConfigError(f"{target} exists", hint="name a folder that does not exist yet")
    if not target.name or target.name == ".." or target.is_mount():  # a folder beside it is renamed to it
        raise ConfigError(f"{target} cannot be replaced", hint="name a new folder inside it")
    if target.resolve().is_relative_to(state.resolve()):
        raise ConfigError(f"{target} is inside the state folder", hint="name a folder outside, on another disk")


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A private folder beside the target; removed unless it was renamed."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy(state: Path, aside: Path, on_pages: OnPages) -> int:
    """Copies journal and checkpoint, once they belong together. Returns the checkpoint's number, 0 for none."""
    damaged: set[int] = set()
    for _ in range(_ATTEMPTS):
        try:
            with ExitStack() as stack:
                return _copy_now(state, aside, damaged, on_pages, stack)
        except _Changed:
            time.sleep(_PAUSE_S)
        for left in aside.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    raise Unavailable(f"{state} changed in each of {_ATTEMPTS} attempts", hint="is a rollback under way? try again")


def _copy_now(state: Path, aside: Path, damaged: set[int], on_pages: OnPages, stack: ExitStack) -> int:
    path, folder = state / JOURNAL, state / CHECKPOINTS
    listed = manifests.seqs(folder)
    held = [stack.enter_context(each) for each in _hold(folder, [seq for seq in listed if seq not in damaged])]
    before = _fingerprint(path)
    with inspection.opened(path) as source:
        source.execute("BEGIN")
        view = _View.of(source, path)
        chosen = next((each for each in held if view.goes_on_from(each.seq)), None)
        if manifests.seqs(folder) != listed or (chosen is not None and not chosen.is_in_place()):
            raise _Changed
        if chosen is None and view.origin is not None:
            raise CheckpointDamaged(
                f"the stream began from the weights in {view.origin.source}, and there is no whole checkpoint in"
                f" {folder}: a daemon would not start on the copy",
                hint="ffstream checkpoint verify; restore a checkpoint or an earlier backup",
            )
        if chosen is None and not view.goes_on_from(0):
            raise JournalDamaged(
                f"the journal begins at sample {view.first_seq}, and no whole checkpoint in {folder} has learned"
                " what came before: a daemon would not start on the copy",
                hint="ffstream checkpoint verify, ffstream journal verify",
            )
        if chosen is not None and not chosen.copy_to(aside / CHECKPOINTS):
            damaged.add(chosen.seq)
            raise _Changed
        _copy_journal(source, aside / JOURNAL, on_pages)
    if before != _fingerprint(path):
        raise _Changed  # it was closed and read without locks; now a daemon has opened it
    clean_close.accept(aside / JOURNAL)
    _verify(aside / JOURNAL, path)
    return 0 if chosen is None else chosen.seq


def _fingerprint(path: Path) -> object:
    """Identifies a closed journal's content; None while it has a log, whose readers hold locks."""
    found = path.stat()
    return None if clean_close.has_log(path) else (found.st_ino, found.st_mtime_ns, found.st_size)


@dataclass(frozen=True)
class _View:
    """What the read transaction sees."""

    first_seq: int
    last_seq: int
    skipped: skips.Skips
    rollback_to: int | None
    origin: Origin | None

    @classmethod
    def of(cls, source: sqlite3.Connection, path: Path) -> "_View":
        try:
            (first,) = source.execute("SELECT min(first_seq) FROM messages").fetchone()
            last = source.execute(schema.LAST).fetchone()
            (stored,) = source.execute("SELECT value FROM meta WHERE key = 'next_seq'").fetchone()
            end = last[0] if last else stored
            skipped, rollback_to = skips.read(source, path), skips.unfinished(source)
            return cls(first or end, end - 1, skipped, rollback_to, origin.read(source, path))
        except (*database.UNREADABLE, TypeError) as error:
            raise database.unusable(path, error) from error

    def goes_on_from(self, seq: int) -> bool:
        """Whether a daemon can continue from that checkpoint."""
        is_undone = self.rollback_to is not None and seq > self.rollback_to
        return seq <= self.last_seq and self.skipped.next_wanted(seq) >= self.first_seq and not is_undone


class _Held:
    """A checkpoint whose files are open."""

    def __init__(self, folder: Path, seq: int) -> None:
        self.seq = seq
        self._here = folder_of(folder, seq)
        self._manifest = manifests.read(folder, seq)
        self._raw = (self._here / MANIFEST).read_bytes()
        self._files: dict[str, IO[bytes]] = {}
        with ExitStack() as stack:
            for name in self._manifest["files"]:
                self._files[name] = stack.enter_context((self._here / Path(name).name).open("rb"))
            self._opened = stack.pop_all()

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def is_in_place(self) -> bool:
        """Whether it was neither removed nor replaced after a rollback."""
        try:
            return (self._here / MANIFEST).exists() and all(
                os.path.samestat(os.fstat(file.fileno()), (self._here / Path(name).name).stat())
                for name, file in self._files.items()
            )
        except OSError:
            return False

    def copy_to(self, folder: Path) -> bool:
        """Whether the copy is whole."""
        there = folder_of(folder, self.seq)
        there.mkdir(parents=True)
        for name, file in self._files.items():
            with (there / Path(name).name).open("xb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        (there / MANIFEST).write_bytes(self._raw)
        try:
            manifests.verify(folder, self.seq)
        except CheckpointDamaged:
            return False
        return True


def _hold(folder: Path, seqs: list[int]) -> Iterator[_Held]:
    """Opens checkpoints, the newest first; damaged and removed ones are passed over."""
    for seq in reversed(seqs):
        with suppress(CheckpointDamaged, FileNotFoundError):
            yield _Held(folder, seq)


def _copy_journal(source: sqlite3.Connection, path: Path, on_pages: OnPages) -> None:
    def tell(status: int, remaining: int, total: int) -> None:
        on_pages(total - remaining, total)

    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            source.backup(copy, pages=_PAGES, progress=tell)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            raise DiskFull(f"{path.parent.parent}: {error}", hint="free disk space, or use another disk") from error
        raise database.unusable(path, error) from error


def _verify(copy: Path, original: Path) -> None:
    with inspection.opened(copy) as connection:
        verification = Verification(connection)
        verification.run()
    if verification.findings.count:
        problem = verification.findings.named[0]
        where = f"samples {problem.first_seq} to {problem.last_seq} " if problem.last_seq else ""
        raise JournalDamaged(f"{original}: {where}{problem.what}", hint="ffstream journal verify says more")


def _describe(aside: Path, target: Path, checkpoint_seq: int, seconds: float) -> Backup:
    with inspection.opened(aside / JOURNAL) as connection:
        view = _View.of(connection, aside / JOURNAL)
    size = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    return Backup(str(target), checkpoint_seq, view.first_seq, view.last_seq, size, time.time(), seconds)
