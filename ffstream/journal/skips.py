"""Samples that are on disk and are never learned, because a rollback said so.

They keep their numbers and stay in the journal until rows that old are deleted. The ranges in the table may overlap;
what counts is their union. They are read once, when a learner is built: a rollback builds another one.

`rollback_to` in the table meta is there from the commit of a skip until the checkpoints beyond that sample are gone.
These have learned what is to be skipped, so whoever recovers meanwhile removes them first.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ffstream.journal import schema

_ROLLBACK_TO = "rollback_to"


class Skip(NamedTuple):
    """Samples first … last."""

    first: int
    last: int


class Skips:
    """Disjoint ranges in order."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.ranges: list[Skip] = []
        for first, last in sorted(ranges):
            if self.ranges and first <= self.ranges[-1].last + 1:
                self.ranges[-1] = Skip(self.ranges[-1].first, max(last, self.ranges[-1].last))
            else:
                self.ranges.append(Skip(first, last))

    def after(self, seq: int) -> Skip | None:
        """The first range that ends beyond `seq`."""
        at = bisect_right(self.ranges, seq, key=lambda skip: skip.last)
        return self.ranges[at] if at < len(self.ranges) else None

    def next_wanted(self, seq: int) -> int:
        """The first sample beyond `seq` that is to be learned, whether it is there yet or not."""
        skip = self.after(seq)
        return skip.last + 1 if skip is not None and skip.first <= seq + 1 else seq + 1

    def count(self, seq: int) -> int:
        """How many of the samples 1 … seq are skipped."""
        return sum(min(skip.last, seq) - skip.first + 1 for skip in self.ranges if skip.first <= seq)


def read(connection: sqlite3.Connection, path: Path) -> Skips:
    """Those in a journal. Raises JournalDamaged for ranges that no rollback could have written, or Unavailable."""
    try:
        end = schema.end_of_samples(connection)
        ranges = connection.execute("SELECT first_seq, last_seq FROM skips").fetchall()
        for first, last_seq in ranges:
            # A rollback skips samples that are on disk, and rows go from the front.
            if not (type(first) is type(last_seq) is int and 0 < first <= last_seq < end):
                raise schema.damaged(path, f"samples {first} to {last_seq} are to be skipped, and end before {end}")
    except (*schema.UNREADABLE, TypeError) as error:
        raise schema.unusable(path, error) from error
    return Skips(ranges)


def add(journal: Path, skip: Skip) -> None:
    """Makes a range durable, and that learning goes back to before it. Beside whoever writes messages.

    Raises DiskFull; then nothing has changed.
    """
    with closing(schema.connect(journal)) as connection, schema.Transaction(connection, journal):
        connection.execute(
            "INSERT INTO skips VALUES (?, ?) ON CONFLICT (first_seq) DO UPDATE"
            " SET last_seq = max(last_seq, excluded.last_seq)",
            skip,
        )
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_ROLLBACK_TO, skip.first - 1))


def unfinished(connection: sqlite3.Connection) -> int | None:
    """The sample beyond which checkpoints are to be removed, if a rollback was cut short."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_ROLLBACK_TO,)).fetchone()
    return int(row[0]) if row else None


def finish(journal: Path) -> None:
    """The checkpoints are removed. Raises DiskFull."""
    with closing(schema.connect(journal)) as connection, schema.Transaction(connection, journal):
        connection.execute("DELETE FROM meta WHERE key = ?", (_ROLLBACK_TO,))
