"""A copy of a journal that lacks its `-wal` file is refused: the last commits are in that file alone.

`closed` in the table meta is 1 if and only if the main file holds every commit. Absent: of an earlier version.

    open      `closed` = 0 is committed and folded into the main file before anything else is committed
    close     the log is folded into the main file, `closed` = 1 is committed; SQLite folds that, and deletes the log

So a main file that says 0 has a -wal file beside it, after a kill and after power loss, too: SQLite syncs the folder
when it first syncs a new log. An empty -wal file counts, everything in it was folded. Without one, either the file
was copied alone, or after a kill another program (the sqlite3 shell, say) opened the journal and folded the log when
it closed it. Nothing in the file tells these apart: the daemon refuses, and `ffstream journal accept` overrides it.

Where `closed` = 1 cannot be committed, because the disk is full, the log must stay. SQLite deletes it when the last
connection is closed, so a read-only one stays open until the process ends.
"""

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from ffstream.errors import JournalDamaged, Unavailable
from ffstream.journal import schema

log = logging.getLogger(__name__)

_KEY = "closed"
_LOCK_MS = 1000  # a start or a stop waits for another writer
_kept_open: list[sqlite3.Connection] = []


def has_log(path: Path) -> bool:
    """Whether there is a -wal file beside a journal; an empty one is one."""
    return path.with_name(path.name + "-wal").exists()


def lacks_its_log(path: Path) -> bool:
    """Whether commits are missing as far as that shows. Changes nothing. False for what cannot be read."""
    if has_log(path) or not path.is_file():
        return False
    with (
        suppress(*schema.UNREADABLE),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection,
    ):
        return bool(connection.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone() == (0,))
    return False


HINT = (
    "copy both files, or restore a folder that `ffstream backup` made; if another SQLite program opened the journal"
    " after a crash, nothing is lost: `ffstream journal accept`"
)


def check(path: Path) -> None:
    """Raises JournalDamaged when the journal's log is missing. Before anything opens the file: that makes one."""
    if lacks_its_log(path):
        raise JournalDamaged(
            f"{path} was not closed cleanly and {path.name}-wal is missing: acked samples may be lost, as in a copy"
            " that was made without that file",
            hint=HINT,
        )


def mark_open(connection: sqlite3.Connection, path: Path) -> None:
    """From now on the main file alone is not enough."""
    try:
        _mark(connection, path, closed=False)
        schema.fold_log(connection, path)
    except (Unavailable, JournalDamaged, *schema.UNREADABLE) as error:
        log.warning("a copy of the journal without its -wal file will not be detected error=%s", error)


def close(connection: sqlite3.Connection, path: Path) -> None:
    """Closes the writing connection; then the main file alone is enough, unless somebody else has it open."""
    try:
        schema.fold_log(connection, path)  # makes room for the commit
        _mark(connection, path, closed=True)
    except sqlite3.ProgrammingError:  # it is closed
        return
    except (Unavailable, JournalDamaged, *schema.UNREADABLE) as error:
        log.warning("the journal's -wal file stays error=%s", error)
        keep_log(path)
    connection.close()


def keep_log(path: Path) -> None:
    """Closing a connection does not fold the log from now on. A folder that is refused stays as it is."""
    with suppress(Unavailable, JournalDamaged):
        _kept_open.append(schema.connect(path, read_only=True))


def accept(path: Path) -> None:
    """Takes the main file for whole. Raises JournalDamaged, Unavailable."""
    with closing(schema.connect(path)) as connection:
        _mark(connection, path, closed=True)


def _mark(connection: sqlite3.Connection, path: Path, *, closed: bool) -> None:
    with schema.Transaction(connection, path, wait_ms=_LOCK_MS):
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, int(closed)))
