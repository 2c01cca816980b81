"""The journal's tables, and opening them.

messages  one row an accepted message, in sequence order. Row r holds the samples first_seq … first_seq+count−1.
          Valid if and only if: the rows present follow one another without a gap, each row's blobs have the
          lengths that count and dtype promise, and crc is `checksum` of the rest.
receipts  messages whose row was deleted but whose sender may still ask about them. crc is their row's, and NULL
          where version 1 deleted that: nobody can tell any more what was in it.
clients   for each client, as identity.py writes it, the lowest message number that it may still send (`base`) and
          when it was seen last (`seen`, by the clock of clock.py; 0 when it has given up its name).
skips     ranges of samples that are never learned; see skips.py. Valid if and only if 0 < first ≤ last < next number.
events    what a person decided about learning; see events.py.
probes    empty but for the moment in which a daemon finds out whether a commit succeeds again.
meta      `version` of this schema; `next_seq`, so that numbers are never given twice when all rows are gone;
          `inputs` and `labels` of the network that the images are for; `clock_s`, see clock.py; `closed`, see
          clean_close.py; while a rollback is under way `rollback_to`, see skips.py.

Version 3 added events, probes, `clock_s` and `closed`. Before, `seen` was the time of day, which cannot be trusted:
an upgrade takes every client as just seen.

A message is a duplicate if and only if (client, n) stands in messages or receipts.

WAL with synchronous=FULL: a commit returns after fsync of the log, so what was committed survives power loss.
"""

import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ffstream.errors import DiskFull, JournalDamaged, JournalIncompatible, Unavailable
from ffstream.journal import clock

VERSION = 3

_TABLES = """
CREATE TABLE IF NOT EXISTS messages (
    first_seq INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    client TEXT NOT NULL,
    n INTEGER NOT NULL,
    dtype TEXT NOT NULL,
    crc INTEGER NOT NULL,
    labels BLOB NOT NULL,
    images BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS receipts (
    client TEXT NOT NULL, n INTEGER NOT NULL, first_seq INTEGER NOT NULL, count INTEGER NOT NULL, crc INTEGER,
    PRIMARY KEY (client, n)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clients (
    client TEXT PRIMARY KEY, base INTEGER NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS skips (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, after_seq INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS probes (content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""

_FROM_2 = f"""
UPDATE clients SET seen = {clock.BEGIN_S} WHERE seen != 0;
UPDATE meta SET value = {VERSION} WHERE key = 'version';
"""
_UPGRADES = {1: f"ALTER TABLE receipts ADD COLUMN crc INTEGER; {_FROM_2}", 2: _FROM_2}

_OF_OLD = {"messages", "receipts", "clients", "meta"}  # every journal has them, whatever was added later
_OF_3 = _OF_OLD | {"skips", "events", "probes"}
_FIRST = {"next_seq": 1, "clock_s": clock.BEGIN_S}
_BUSY_MS = 10_000
_LOG_MAX_BYTES = 64 << 20  # that a log keeps once it is folded into the file; a long read may let it grow beyond
SEQ_MAX = 2**62  # a number above it was never given

# What reading a damaged file raises: SQLite's message may quote bytes from it that are no text.
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)

# Where the samples end. NULL when there are none.
LAST = "SELECT first_seq + count FROM messages ORDER BY first_seq DESC LIMIT 1"


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection, for one thread at a time. Raises JournalDamaged (no journal) or Unavailable (not now)."""
    connection = None
    try:
        if read_only:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        else:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # Another connection holds the write lock for one transaction at most.
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        if not read_only:
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 4096")
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_MAX_BYTES}")
            # Deleted rows are nobody's secret, and zeroing them takes as much log as storing them did.
            connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("SELECT count(*) FROM sqlite_master")
    except UNREADABLE as error:
        if connection is not None:
            connection.close()
        raise unusable(path, error) from error
    return connection


def create(connection: sqlite3.Connection, path: Path, inputs: int, labels: int) -> None:
    """Makes the tables of a new file, and adds to those of an older version what they lack.

    Raises JournalIncompatible for another version or network, JournalDamaged for a part.
    """
    try:
        found = _meta_of_whole(connection, path)
        upgrade = _UPGRADES.get(found.get("version", VERSION), "")
        expected = {"version": found["version"] if upgrade else VERSION, "inputs": inputs, "labels": labels}
        for key, value in expected.items():
            if found.get(key, value) != value:
                raise incompatible(path, key, found[key], value)
        values = ", ".join(f"('{key}', {value:d})" for key, value in (expected | _FIRST).items())
        # All or nothing: a table that is missing later was lost.
        connection.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} INSERT OR IGNORE INTO meta VALUES {values};"
            f" {upgrade} DELETE FROM probes; COMMIT"
        )
    except UNREADABLE as error:
        raise unusable(path, error) from error


class Transaction:
    """BEGIN IMMEDIATE … COMMIT, with a full disk turned into DiskFull and everything else undone."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, wait_ms: int | None = None) -> None:
        """`wait_ms`: how long to wait for the write lock; None: as long as the connection waits for anything."""
        self._db = connection
        self._path = path
        self._wait_ms = wait_ms

    def __enter__(self) -> None:
        try:
            with _waiting(self._db, self._wait_ms):
                self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as failure:
            self._raise(failure)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._db.execute("COMMIT")
                return
        except UNREADABLE as failure:
            error = failure
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._raise(error)

    def _raise(self, error: BaseException | None) -> NoReturn:
        assert error is not None
        if isinstance(error, sqlite3.OperationalError):
            code = error.sqlite_errorcode & 0xFF
            if code in _NO_ROOM:
                raise DiskFull(
                    f"{self._path}: {error}", hint="free disk space; learning goes on by itself"
                ) from error
            if code == sqlite3.SQLITE_BUSY:
                raise Unavailable(
                    f"{self._path}: another program holds its write lock ({error})",
                    hint=f"end that program; fuser -v {self._path} names it",
                ) from error
        with only_damage(self._path):
            raise error


# IOERR and CANTOPEN: what SQLite makes of a quota, and of too many open files.
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


def _meta_of_whole(connection: sqlite3.Connection, path: Path) -> dict[str, Any]:
    """What the table meta says; nothing in a new file."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return {}
    if lost := _OF_OLD - tables:
        raise damaged(path, f"the table {min(lost)} is missing")
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if lost := {"version", "inputs", "labels", "next_seq"} - meta.keys():
        raise damaged(path, f"{min(lost)} is missing in the table meta")
    if meta["version"] == VERSION:
        if lost := _OF_3 - tables:
            raise damaged(path, f"the table {min(lost)} is missing")
        if "clock_s" not in meta:
            raise damaged(path, "clock_s is missing in the table meta")
    return meta


def end_of_samples(connection: sqlite3.Connection) -> int:
    """The number that the next sample gets, as far as the file says."""
    last = connection.execute(LAST).fetchone()
    (stored,) = connection.execute("SELECT value FROM meta WHERE key = 'next_seq'").fetchone()
    end: int = max(last[0] if last else 1, stored)
    return end


def checksum(first_seq: int, count: int, dtype: str, labels: bytes, images: bytes) -> int:
    """CRC-32 of what a reader takes from a row."""
    return zlib.crc32(images, zlib.crc32(labels, zlib.crc32(f"{first_seq} {count} {dtype}".encode())))


def bytes_used(connection: sqlite3.Connection) -> int:
    """Pages in use times their size; free pages are reused, so they do not count."""
    return (_pragma(connection, "page_count") - _pragma(connection, "freelist_count")) * _pragma(
        connection, "page_size"
    )


def bytes_free(connection: sqlite3.Connection) -> int:
    """What can be stored before the file grows."""
    return _pragma(connection, "freelist_count") * _pragma(connection, "page_size")


@contextmanager
def _waiting(connection: sqlite3.Connection, wait_ms: int | None) -> Iterator[None]:
    """In the block the connection waits that long for a lock; None: as always."""
    if wait_ms is None:
        yield
        return
    connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")


def log_bytes(path: Path) -> int:
    """Size of the write-ahead log beside that file; 0 when there is none."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0


def fold_log(connection: sqlite3.Connection, path: Path) -> bool:
    """Moves what is in the log to the file and empties the log, without waiting. False while a reader or another
    writer is in the way, or there is no room.
    """
    with only_damage(path):
        try:
            with _waiting(connection, 0):
                (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:
            return False
    return not busy


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def only_damage(path: Path) -> Iterator[None]:
    """What SQLite finds wrong with the file, as JournalDamaged."""
    try:
        yield
    except UNREADABLE as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF not in _DAMAGE and not isinstance(error, UnicodeDecodeError):
            raise
        raise damaged(path, str(error)) from error


# A constraint: the file holds a number that was not given yet.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}


# What SQLite says that is no damage of the file.
_NOT_ITS_FAULT = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,  # of the folder for temporary files
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,  # a full disk has no room for -shm
}
# But these are: the disk does not give the file's bytes back.
_BAD_MEDIUM = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}


def is_not_its_fault(error: Exception) -> bool:
    """Whether SQLite says nothing about the file: no access, no room, no descriptors, no memory."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _NOT_ITS_FAULT and code not in _BAD_MEDIUM


def unusable(path: Path, error: Exception) -> JournalDamaged | Unavailable:
    """The error for a file that SQLite does not open or read, whoever's fault it is."""
    if is_not_its_fault(error):
        return Unavailable(
            f"{path}: {error}",
            hint="is there room on the disk, are descriptors left, may this user write, which other program has it?",
        )
    return damaged(path, str(error))


def damaged(path: Path, what: str) -> JournalDamaged:
    """The error for a file that SQLite cannot read."""
    return JournalDamaged(f"{path}: {what}", hint="put it back from a copy, or use another --state folder")


def incompatible(path: Path, key: str, found: Any, wanted: int) -> JournalDamaged | JournalIncompatible:
    """The error for a value in the table meta that is not the one this daemon was asked for."""
    if not isinstance(found, int) or found < 1 or (key == "version" and found < wanted):
        return damaged(path, f"{key} is {found!r} in the table meta")
    if key == "version":
        return JournalIncompatible(
            f"{path} is a journal of version {found}, and this ffstream reads versions up to {wanted}",
            hint="use the newer ffstream that wrote it, or another --state folder",
        )
    if key == "inputs":
        return JournalIncompatible(
            f"network.image_shape: its images have {wanted} numbers, those in the journal {path} have {found}",
            hint=f"set a shape of {found} numbers, or use another --state folder for the new network",
        )
    return JournalIncompatible(
        f"network.{key} = {wanted}: the journal {path} was begun with network.{key} = {found}",
        hint=f"set network.{key}={found}, or use another --state folder for the new network",
    )


def expect_network(path: Path, found: Mapping[str, Any], inputs: int, labels: int) -> None:
    """Raises JournalIncompatible unless the table meta says that the journal is of this network."""
    for key, value in {"inputs": inputs, "labels": labels}.items():
        if found.get(key, value) != value:
            raise incompatible(path, key, found[key], value)
    if isinstance(version := found.get("version"), int) and version > VERSION:
        raise incompatible(path, "version", version, VERSION)
