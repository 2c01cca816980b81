"""Samples that are on disk but are never learned, because a rollback skipped them.

They keep their numbers and stay in the journal until rows of that age are deleted. The ranges in the table may
overlap; their union counts. They are read once, when a training run is built: a rollback builds a new one.

`rollback_to` in the table meta is present from the commit of a skip until the checkpoints after that sample are
removed. Those have learned what is to be skipped, so recovery removes them first.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ffstream.journal import events, schema
from ffstream.journal.database import UNREADABLE, Transaction, connect, damaged, unusable

_ROLLBACK_TO = "rollback_to"


class Skip(NamedTuple):
    """The samples first … last."""

    first: int
    last: int


class Skips:
    """Disjoint ranges, in order."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.ranges: list[Skip] = []
        for first, last in sorted(ranges):
            if self.ranges and first <= self.ranges[-1].last + 1:
                self.ranges[-1] = Skip(self.ranges[-1].first, max(last, self.ranges[-1].last))
            else:
                self.ranges.append(Skip(first, last))

    def after(self, seq: int) -> Skip | None:
        """The first range that ends after `seq`."""
        at = bisect_right(self.ranges, seq, key=lambda skip: skip.last)
        return self.ranges[at] if at < len(self.ranges) else None

    def next_wanted(self, seq: int) -> int:
        """The number of the first sample after `seq` that is not skipped, whether it exists yet or not."""
        skip = self.after(seq)
        return skip.last + 1 if skip is not None and skip.first <= seq + 1 else seq + 1

    def count(self, seq: int) -> int:
        """How many of the samples 1 … seq are skipped."""
        return sum(min(skip.last, seq) - skip.first + 1 for skip in self.ranges if skip.first <= seq)


def read(connection: sqlite3.Connection, path: Path) -> Skips:
    """The skips in a journal. Raises JournalDamaged for an invalid range, or Unavailable."""
    try:
        end = schema.end_of_samples(connection)
        ranges = connection.execute("SELECT first_seq, last_seq FROM skips").fetchall()
        for first, last_seq in ranges:
            # A rollback skips samples that are on disk, and rows are deleted from the front.
            if not (type(first) is type(last_seq) is int and 0 < first <= last_seq < end):
                raise damaged(
                    path, f"samples {first} to {last_seq} are marked as skipped, but samples end before {end}"
                )
    except (*UNREADABLE, TypeError) as error:
        raise unusable(path, error) from error
    return Skips(ranges)


def add(journal: Path, skip: Skip) -> None:
    """Makes a skip durable, and the fact that learning goes back to the sample before it. May run while another
    thread writes messages. What the clock decided after a skipped sample is forgotten.

    Raises Unavailable; then nothing has changed.
    """
    with closing(connect(journal)) as connection, Transaction(connection, journal):
        connection.execute(
            "INSERT INTO skips VALUES (?, ?) ON CONFLICT (first_seq) DO UPDATE"
            " SET last_seq = max(last_seq, excluded.last_seq)",
            skip,
        )
        events.forget_sleeps(connection, *skip)
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_ROLLBACK_TO, skip.first - 1))


def unfinished(connection: sqlite3.Connection) -> int | None:
    """The sample after which an interrupted rollback still has to remove checkpoints; None if there is none."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_ROLLBACK_TO,)).fetchone()
    return int(row[0]) if row else None


def finish(journal: Path) -> None:
    """Notes that the rollback has removed the checkpoints. Raises Unavailable."""
    with closing(connect(journal)) as connection, Transaction(connection, journal):
        connection.execute("DELETE FROM meta WHERE key = ?", (_ROLLBACK_TO,))
