"""The reading side: rows in sequence order. One thread owns a reader, which holds no lock between calls."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ffstream.journal import events, schema, skips
from ffstream.journal.database import UNREADABLE, connect, damaged, unusable


class Row(NamedTuple):
    """One stored message."""

    first_seq: int
    samples: int
    dtype: str
    labels: bytes
    images: bytes


class Reader:
    """Reads what has been committed. `skips` and `sleeps` are those that existed when the reader was made."""

    def __init__(self, path: Path, connection: sqlite3.Connection | None = None) -> None:
        """`connection`: to read with; by default a new one."""
        self.path = path
        self._db = connection or connect(path, read_only=True)
        try:
            self.skips = skips.read(self._db, path)
            self.sleeps = events.sleeps(self._db, path)
            self.unfinished_rollback = skips.unfinished(self._db)
        except BaseException:
            self._db.close()
            raise

    def read(self, beyond: int, max_samples: int) -> list[Row]:
        """The rows with samples after `beyond`, in order, until they hold `max_samples` or there are no more.

        The first row may begin at or before `beyond`. Raises JournalDamaged if rows are missing, out of order or have
        a wrong checksum, Unavailable if the file cannot be read now.
        """
        rows: list[Row] = []
        try:
            # The row that holds sample beyond+1 is the last one that begins at or before it; rows have no gaps.
            cursor = self._db.execute(
                "SELECT first_seq, count, dtype, crc, labels, images FROM messages WHERE first_seq >="
                " coalesce((SELECT max(first_seq) FROM messages WHERE first_seq <= ?), 0) ORDER BY first_seq",
                (beyond + 1,),
            )
            with closing(cursor):  # always: an open cursor prevents the log from being folded
                for row in self._checked(cursor, beyond):
                    rows.append(row)
                    if row.first_seq + row.samples - 1 - beyond >= max_samples:
                        break
        except (*UNREADABLE, TypeError) as error:  # TypeError: a damaged value has another type
            raise unusable(self.path, error) from error
        return rows

    def _checked(self, cursor: sqlite3.Cursor, beyond: int) -> Iterator[Row]:
        expected = None
        for first_seq, count, dtype, crc, labels, images in cursor:
            last_seq = first_seq + count - 1
            if first_seq > (beyond + 1 if expected is None else expected):
                raise damaged(self.path, f"samples {expected or beyond + 1} to {first_seq - 1} are missing")
            if expected is not None and first_seq < expected:
                raise damaged(self.path, f"samples from {first_seq} on come after {expected - 1}")
            if schema.checksum(first_seq, count, dtype, labels, images) != crc:
                raise damaged(self.path, f"samples {first_seq} to {last_seq} have a wrong checksum")
            if last_seq <= beyond:
                continue
            expected = first_seq + count
            yield Row(first_seq, count, dtype, labels, images)

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()
