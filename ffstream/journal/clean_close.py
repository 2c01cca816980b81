"""Detects a journal that was copied without its -wal file, "the log". The last commits are in that file only.

`closed` in the table meta is 1 if and only if the main file holds every commit.

    open      `closed` = 0 is committed and folded into the main file before anything else is committed
    close     the log is folded into the main file and `closed` = 1 is committed, which SQLite folds; then it
              deletes the log

So a main file with `closed` = 0 has a log beside it, also after a kill or power loss, because SQLite syncs the folder
when it first syncs a new log. An empty log counts: everything in it was folded. If there is none, either the file was
copied alone, or another program (the sqlite3 shell, say) opened the journal after a kill and folded the log when it
closed it. Nothing in the file distinguishes the two, so the daemon refuses the journal, and the user can override
this with `ffstream journal accept`.

If `closed` = 1 cannot be committed because the disk is full, the log must stay. SQLite deletes it when the last
connection is closed, so a read-only connection then stays open until the process ends.
"""

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from ffstream.errors import JournalDamaged, Unavailable
from ffstream.journal import database
from ffstream.journal.database import UNREADABLE, Transaction, connect

log = logging.getLogger(__name__)

_KEY = "closed"
_LOCK_MS = 1000  # how long a start or a stop waits for another writer
_kept_open: list[sqlite3.Connection] = []

HINT = (
    "copy both files, or restore a backup that `ffstream backup` made; if another SQLite program opened the journal"
    " after a crash, nothing is lost: run `ffstream journal accept`"
)


def has_log(path: Path) -> bool:
    """Whether there is a -wal file beside a journal, be it empty."""
    return path.with_name(path.name + "-wal").exists()


def lacks_its_log(path: Path) -> bool:
    """Whether the journal was not closed and has no log. Changes nothing. False if the file cannot be read."""
    if has_log(path) or not path.is_file():
        return False
    with (
        suppress(*UNREADABLE),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection,
    ):
        return bool(connection.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone() == (0,))
    return False


def check(path: Path) -> None:
    """Raises JournalDamaged if the log is missing. Call it before SQLite opens the file, which would create a log."""
    if lacks_its_log(path):
        raise JournalDamaged(
            f"{path} was not closed cleanly and {path.name}-wal is missing: acked samples may be lost, as in a copy"
            " that was made without that file",
            hint=HINT,
        )


def mark_open(connection: sqlite3.Connection, path: Path) -> None:
    """Notes that from now on the main file alone is not the whole journal."""
    try:
        _mark(connection, path, closed=False)
        database.fold_log(connection, path)
    except (Unavailable, JournalDamaged, *UNREADABLE) as error:
        log.warning("a copy of the journal without its -wal file will not be detected error=%s", error)


def close(connection: sqlite3.Connection, path: Path) -> None:
    """Closes the writing connection. After that the main file is the whole journal, unless another program has it
    open."""
    try:
        database.fold_log(connection, path)  # makes room for the commit
        _mark(connection, path, closed=True)
    except sqlite3.ProgrammingError:  # already closed
        return
    except (Unavailable, JournalDamaged, *UNREADABLE) as error:
        log.warning("the journal's -wal file stays error=%s", error)
        keep_log(path)
    connection.close()


def keep_log(path: Path) -> None:
    """Prevents SQLite from folding and deleting the log when connections are closed, until the process ends."""
    with suppress(Unavailable, JournalDamaged):
        _kept_open.append(connect(path, read_only=True))


def accept(path: Path) -> None:
    """Marks the main file as the whole journal. Raises JournalDamaged, Unavailable."""
    with closing(connect(path)) as connection:
        _mark(connection, path, closed=True)


def _mark(connection: sqlite3.Connection, path: Path, *, closed: bool) -> None:
    with Transaction(connection, path, wait_ms=_LOCK_MS):
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", (int(closed), _KEY))
