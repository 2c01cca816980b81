"""Opening the journal's file, transactions on it, and which of SQLite's errors mean damage.

The journal uses WAL mode with synchronous=FULL: a commit returns after the -wal file was fsynced, so what was
committed survives power loss. Below, "the log" is that -wal file, and "folding" it moves its content into the main
file, which SQLite calls a checkpoint. Here a checkpoint is always one of the network's state.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ffstream.errors import DiskFull, JournalDamaged, Unavailable

_BUSY_MS = 10_000
_LOG_MAX_BYTES = 64 << 20  # the log is cut to this size after it was folded; a long read lets it grow larger

# What reading a damaged file raises. SQLite's message may quote bytes of the file that are not UTF-8.
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)

# SQLITE_IOERR and SQLITE_CANTOPEN are what SQLite reports for an exceeded quota and for too many open files.
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
# A violated constraint is damage: the file holds a number that was not assigned yet.
_WRITE_VERSION_AT = 18  # in the header of a file (SQLite's "Database File Format", section 1.3)
_WAL_VERSION = 2
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}
_ENVIRONMENT = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,  # the folder for temporary files is full
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,  # a full disk has no room for the -shm file
}
# These I/O errors are damage: the disk does not return what was written.
_BAD_MEDIUM = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection, which one thread may use at a time. Raises JournalDamaged or Unavailable."""
    connection = None
    try:
        if read_only:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        else:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # Another connection holds the write lock for at most one transaction.
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        if not read_only:
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 4096")
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_MAX_BYTES}")
            # Deleted rows are not secret, and overwriting them with zeros would double what is written to the log.
            connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("SELECT count(*) FROM sqlite_master")
    except UNREADABLE as error:
        if connection is not None:
            connection.close()
        raise unusable(path, error) from error
    return connection


class Transaction:
    """BEGIN IMMEDIATE … COMMIT. Rolls back on any error; a full disk raises DiskFull."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, wait_ms: int | None = None) -> None:
        """`wait_ms`: how long to wait for the write lock. None: the connection's own timeout."""
        self._db = connection
        self._path = path
        self._wait_ms = wait_ms

    def __enter__(self) -> None:
        try:
            with _busy_timeout(self._db, self._wait_ms):
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
                    f"{self._path}: {error}", hint="free disk space; samples are then accepted again"
                ) from error
            if code == sqlite3.SQLITE_BUSY:
                raise Unavailable(
                    f"{self._path}: another program holds its write lock ({error})",
                    hint=f"end that program; `fuser -v {self._path}` shows which one it is",
                ) from error
        with damage_as_error(self._path):
            raise error


def bytes_used(connection: sqlite3.Connection) -> int:
    """The pages in use times their size. Free pages are reused, so they do not count."""
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


def bytes_free(connection: sqlite3.Connection) -> int:
    """How many bytes can be stored before the file grows."""
    return _pragma(connection, "freelist_count") * _pragma(connection, "page_size")


def log_bytes(path: Path) -> int:
    """The size of the log beside a journal; 0 if there is none."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0


def fold_log(connection: sqlite3.Connection, path: Path) -> bool:
    """Moves the content of the log into the main file and empties the log, without waiting.

    False if a reader or another writer prevents it, or if there is no room.
    """
    with damage_as_error(path):
        try:
            with _busy_timeout(connection, 0):
                (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:
            return False
    return not busy


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _busy_timeout(connection: sqlite3.Connection, wait_ms: int | None) -> Iterator[None]:
    """Sets how long the connection waits for a lock within the block. None: no change."""
    if wait_ms is None:
        yield
        return
    connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")


@contextmanager
def damage_as_error(path: Path) -> Iterator[None]:
    """Raises JournalDamaged if SQLite reports damage within the block. Other errors pass unchanged."""
    try:
        yield
    except UNREADABLE as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF not in _DAMAGE and not isinstance(error, UnicodeDecodeError):
            raise
        raise damaged(path, str(error)) from error


def is_environment_error(error: Exception) -> bool:
    """Whether the error says nothing about the file's content: no access, room, descriptors or memory."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _ENVIRONMENT and code not in _BAD_MEDIUM


def unusable(path: Path, error: Exception) -> JournalDamaged | Unavailable:
    """The error to raise when SQLite cannot open or read the file: JournalDamaged only if the content is to blame."""
    if _is_readonly(error) and _asks_for_another_sqlite(path):
        return damaged(path, "its header says that this version of SQLite must not write to it")
    if is_environment_error(error):
        return Unavailable(
            f"{path}: {error}",
            hint="check free disk space, file descriptors, this user's permissions, and what other program uses it",
        )
    return damaged(path, str(error))


def _is_readonly(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY


def _asks_for_another_sqlite(path: Path) -> bool:
    """Whether the format's write version in the file's header is not that of a database in WAL mode."""
    try:
        with path.open("rb") as file:
            header = file.read(_WRITE_VERSION_AT + 1)
    except OSError:
        return False
    return len(header) > _WRITE_VERSION_AT and header[_WRITE_VERSION_AT] > _WAL_VERSION


def damaged(path: Path, what: str) -> JournalDamaged:
    """The error for a journal whose content is not what ffstream wrote."""
    return JournalDamaged(f"{path}: {what}", hint="restore it from a backup, or use another --state folder")
