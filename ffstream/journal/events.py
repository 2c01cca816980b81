"""What a person decided about learning, on disk before it takes effect: recovery and a standby find it there.

An event is its kind and the last sample that was on disk when it was decided. Valid if and only if the kind is one of
KINDS and 0 <= after_seq < next number.

Of `pause` and `resume` only the last one decides, so each replaces those before it: the table stays small however
often somebody pauses.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ffstream.journal import schema

PAUSE, RESUME = "pause", "resume"
KINDS = (PAUSE, RESUME)
_WAIT_MS = 5000  # for the write lock: who decides hears within the time that a command usually has


class Event(NamedTuple):
    """One decision."""

    kind: str
    after_seq: int


def read(connection: sqlite3.Connection, path: Path) -> list[Event]:
    """Those in a journal, oldest first.

    Raises JournalDamaged for an event that no daemon could have written, or Unavailable.
    """
    try:
        end = schema.end_of_samples(connection)
        events = [Event(*row) for row in connection.execute("SELECT kind, after_seq FROM events ORDER BY number")]
        for event in events:
            if event.kind not in KINDS or type(event.after_seq) is not int or not 0 <= event.after_seq < end:
                raise schema.damaged(path, f"event {event.kind!r} after sample {event.after_seq!r} (next is {end})")
    except (*schema.UNREADABLE, TypeError) as error:
        raise schema.unusable(path, error) from error
    return events


def add(journal: Path, event: Event) -> None:
    """Makes an event durable. May run beside the thread that writes messages.

    Raises Unavailable; then nothing has changed.
    """
    with (
        closing(schema.connect(journal)) as connection,
        schema.Transaction(connection, journal, wait_ms=_WAIT_MS),
    ):
        connection.execute(f"DELETE FROM events WHERE kind IN ({', '.join('?' * len(KINDS))})", KINDS)
        connection.execute("INSERT INTO events (kind, after_seq) VALUES (?, ?)", event)


def learning_is_paused(journal: Path) -> bool:
    """Whether the last decision was to pause. Raises JournalDamaged or Unavailable."""
    with closing(schema.connect(journal, read_only=True)) as connection:
        events = read(connection, journal)
    return bool(events) and events[-1].kind == PAUSE
