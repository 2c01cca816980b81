"""Decisions about learning that a person made. They are on disk before they take effect, so recovery and a standby
find them.

An event is its kind and the last sample that was on disk when it was decided. Valid if and only if the kind is in
KINDS and 0 <= after_seq < next number.

Of `pause` and `resume` only the last one matters, so each replaces all earlier ones. The table stays small however
often learning is paused.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ffstream.journal import schema
from ffstream.journal.database import UNREADABLE, Transaction, connect, damaged, unusable

PAUSE, RESUME = "pause", "resume"
KINDS = (PAUSE, RESUME)
_WAIT_MS = 5000  # for the write lock; less than the usual timeout of a control command


class Event(NamedTuple):
    """One decision."""

    kind: str
    after_seq: int


def read(connection: sqlite3.Connection, path: Path) -> list[Event]:
    """The events in a journal, oldest first. Raises JournalDamaged for an invalid event, or Unavailable."""
    try:
        end = schema.end_of_samples(connection)
        events = [Event(*row) for row in connection.execute("SELECT kind, after_seq FROM events ORDER BY number")]
        for event in events:
            if event.kind not in KINDS or type(event.after_seq) is not int or not 0 <= event.after_seq < end:
                raise damaged(path, f"event {event.kind!r} after sample {event.after_seq!r} (next is {end})")
    except (*UNREADABLE, TypeError) as error:
        raise unusable(path, error) from error
    return events


def add(journal: Path, event: Event) -> None:
    """Makes an event durable. May run while another thread writes messages.

    Raises Unavailable; then nothing has changed.
    """
    with closing(connect(journal)) as connection, Transaction(connection, journal, wait_ms=_WAIT_MS):
        connection.execute(f"DELETE FROM events WHERE kind IN ({', '.join('?' * len(KINDS))})", KINDS)
        connection.execute("INSERT INTO events (kind, after_seq) VALUES (?, ?)", event)


def learning_is_paused(journal: Path) -> bool:
    """Whether the last decision was to pause. Raises JournalDamaged or Unavailable."""
    with closing(connect(journal, read_only=True)) as connection:
        events = read(connection, journal)
    return bool(events) and events[-1].kind == PAUSE
