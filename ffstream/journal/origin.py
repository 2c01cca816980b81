"""The weights that a stream began from, if it was started with `ffstream serve --from`.

The first checkpoint, at seq 0, then holds these weights. While there is a row in `origin`, learning may only begin at
a checkpoint: without one it would begin from random weights, which nobody would notice. The row is committed before
the first checkpoint is written, and both before the first sample is accepted.
"""

import sqlite3
from pathlib import Path
from typing import NamedTuple

from ffstream.journal.database import UNREADABLE, damaged, unusable


class Origin(NamedTuple):
    """`source` is the absolute path that was given, `checksum` that of the weights it held."""

    source: str
    checksum: str


def read(connection: sqlite3.Connection, path: Path) -> Origin | None:
    """The origin in a journal; None if the stream began from random weights. Raises JournalDamaged or Unavailable."""
    try:
        rows = connection.execute("SELECT source, checksum FROM origin").fetchall()
    except UNREADABLE as error:
        raise unusable(path, error) from error
    if len(rows) > 1 or not all(isinstance(value, str) for row in rows for value in row):
        raise damaged(path, f"the table origin holds {rows!r}")
    return Origin(*rows[0]) if rows else None


def write(connection: sqlite3.Connection, origin: Origin) -> None:
    """Records the origin, in a transaction of the caller."""
    connection.execute("DELETE FROM origin")
    connection.execute("INSERT INTO origin VALUES (?, ?)", origin)
