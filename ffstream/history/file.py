"""The file of the history: `history.sqlite` in the state folder. Nothing that learns depends on it.

points  One row for each point of each level (see levels.py). `number` is its interval, `point` is what `Points.pack`
        made. Valid if and only if the bytes have the length that the number of layers determines and begin with
        the same number.
marks   The newest marks of each kind (see marks.py).
meta    `version` of this format; `layers` of the network; `columns`, the names of what a point holds; `interval_s` of
        the level of the whole stream; `open`, 1 while a daemon writes.

A transaction writes what has changed, every few seconds, and is not flushed to the disk by itself (WAL,
synchronous=NORMAL). A kill loses the seconds since the last one, power loss perhaps more; the file stays valid.

A file that is damaged, of another version or of another network is renamed to `history.sqlite.old`, and a new one
begins. So the history never keeps a daemon from starting. It is not in a backup.
"""

import errno
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ffstream.history.history import SPANS, History
from ffstream.history.levels import Changes
from ffstream.history.marks import MARKS_MAX, Mark
from ffstream.history.points import COUNTS, FIGURES, VALUES, Packed, packed_kind
from ffstream.util.sqlite_files import readable

log = logging.getLogger(__name__)

HISTORY: Final = "history.sqlite"  # in a state folder
VERSION: Final = 1
_COLUMNS = json.dumps([COUNTS, VALUES, FIGURES])
_BUSY_MS = 2000  # another program reads the file
_LOG_PAGES = 128  # of the -wal file, after which it is folded into the file
_LOG_MAX_BYTES = 1 << 20  # to which it shrinks
_LOG_PINNED_BYTES = 16 << 20  # a larger one is not folded, because a program reads in one long transaction
_CACHE_KIB = 256

_TABLES = {
    "points": "(level TEXT NOT NULL, number INTEGER NOT NULL, point BLOB NOT NULL, PRIMARY KEY (level, number))",
    "marks": "(kind TEXT NOT NULL, time REAL NOT NULL, seq INTEGER NOT NULL, text TEXT NOT NULL,"
    " PRIMARY KEY (kind, time, seq))",
    "meta": "(key TEXT PRIMARY KEY, value NOT NULL)",
}


class Unfit(Exception):
    """The file is damaged, or another version or network wrote it."""


class Loaded(NamedTuple):
    """`ended_properly`: whether the daemon before did. None: there was none."""

    history: History
    ended_properly: bool | None


class HistoryFile:
    """The file while a daemon writes it. For one thread. Methods raise sqlite3.Error and OSError for a bad disk."""

    def __init__(self, path: Path, layers: int) -> None:
        self._path = path
        self._layers = layers
        self._db: sqlite3.Connection | None = None

    def load(self) -> Loaded:
        """The history that the file holds; an empty one if it holds none."""
        try:
            if self._path.exists():
                self._db = self._open()
                return _load(self._db, self._layers)
        except Exception as error:
            self.abandon()
            if not _is_unfit(error):
                raise
            self._set_aside(str(error))
        return Loaded(History(self._layers), None)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None)
        try:
            db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            db.execute(f"PRAGMA journal_size_limit = {_LOG_MAX_BYTES}")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            with _transaction(db):
                if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    self._create(db)
        except BaseException:
            db.close()
            raise
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        for name, columns in _TABLES.items():
            db.execute(f"CREATE TABLE {name} {columns} WITHOUT ROWID")
        _write_meta(db, {"version": VERSION, "columns": _COLUMNS, "layers": self._layers})

    def _set_aside(self, reason: str) -> None:
        aside = self._path.with_name(f"{self._path.name}.old")
        log.warning("history begins again path=%s reason=%r old=%s", self._path, reason, aside.name)
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def save(self, history: History) -> None:
        """Stores what has changed since the last call. A file that turns out to be damaged is set aside."""
        try:
            if self._db is None:
                self._db = self._open()
            db = self._db
            self._check_log(db)
            history.store(lambda *changes: _write(db, *changes))
        except BaseException as error:
            history.lost()
            self.abandon()
            if _is_damage(error):
                self._set_aside(str(error))
            raise

    def _check_log(self, db: sqlite3.Connection) -> None:
        """Raises OSError while a reader would make the -wal file grow without a limit."""
        log_file = self._path.with_name(f"{self._path.name}-wal")
        if not log_file.exists() or log_file.stat().st_size <= _LOG_PINNED_BYTES:
            return
        is_pinned, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_pinned:
            raise OSError(errno.EBUSY, f"end the program that reads the history: fuser -v {log_file} names it")

    def close(self, history: History) -> None:
        """Stores what has changed, and that the daemon ended properly."""
        self.save(history)
        if self._db is not None:
            _write_meta(self._db, {"open": 0})
        self.abandon()

    def abandon(self) -> None:
        """Closes the file as it is."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()


def read(path: Path) -> History:
    """The history in a file, which a daemon may be writing. Nothing is written. Raises Unfit, sqlite3.Error, and
    ConfigError as `readable`."""
    with readable(path) as uri, closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        try:
            return _load(db, None).history
        except Exception as error:
            if not _is_unfit(error):
                raise
            raise Unfit(f"{path}: {error}") from error


def _load(db: sqlite3.Connection, layers: int | None) -> Loaded:
    """`layers`: how many there must be."""
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Unfit(verdict)
    with _transaction(db, "BEGIN"):
        meta = dict(db.execute("SELECT key, value FROM meta"))
        history = History(int(meta["layers"]))
        for key, wanted in {"version": VERSION, "columns": _COLUMNS, "layers": layers or history.layers}.items():
            if meta.get(key) != wanted:
                raise Unfit(f"{key} is {meta.get(key)!r}, expected {wanted!r}")
        rows = {span: _points(db, span, history.layers) for span in SPANS}
        marks = db.execute("SELECT time, seq, kind, text FROM marks ORDER BY time")
        history.restore(
            int(meta.get("interval_s", 1)),
            rows,
            [Mark(float(time), int(seq), *texts) for time, seq, *texts in marks],
        )
    return Loaded(history, not meta["open"] if "open" in meta else None)


def _points(db: sqlite3.Connection, span: str, layers: int) -> Packed:
    query = "SELECT number, point FROM points WHERE level = ? ORDER BY number"
    found = db.execute(query, (span,)).fetchall()
    rows = np.frombuffer(b"".join(point for _, point in found), packed_kind(layers))
    if rows["number"].tolist() != [number for number, _ in found]:
        raise Unfit(f"points of the level {span} have wrong lengths or numbers")
    return rows


def _write(db: sqlite3.Connection, interval_s: int, changes: Mapping[str, Changes], marks: list[Mark]) -> None:
    with _transaction(db):
        for span, change in changes.items():
            if change.replace:
                db.execute("DELETE FROM points WHERE level = ?", (span,))
            elif change.oldest is not None:
                db.execute("DELETE FROM points WHERE level = ? AND number < ?", (span, change.oldest))
            rows = ((span, int(row["number"]), row.tobytes()) for row in change.rows)
            db.executemany("INSERT OR REPLACE INTO points (level, number, point) VALUES (?, ?, ?)", rows)
        db.executemany("INSERT OR REPLACE INTO marks (time, seq, kind, text) VALUES (?, ?, ?, ?)", marks)
        for kind in {mark.kind for mark in marks}:
            newest = "SELECT time FROM marks WHERE kind = ? ORDER BY time DESC LIMIT 1 OFFSET ?"
            db.execute(f"DELETE FROM marks WHERE kind = ? AND time < ({newest})", (kind, kind, MARKS_MAX - 1))
        _write_meta(db, {"interval_s": interval_s, "open": 1})


def _write_meta(db: sqlite3.Connection, values: Mapping[str, Any]) -> None:
    db.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", values.items())


@contextmanager
def _transaction(db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _is_damage(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_unfit(error: BaseException) -> bool:
    """Whether the content of the file is to blame, not the disk: then a table or a value is missing or wrong."""
    if isinstance(error, Unfit | ValueError | TypeError | KeyError) or _is_damage(error):
        return True
    return isinstance(error, sqlite3.OperationalError) and _code(error) == sqlite3.SQLITE_ERROR


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; SQLITE_MISUSE for what the module itself raises."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)) & 0xFF
