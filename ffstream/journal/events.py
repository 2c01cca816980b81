"""Decisions about learning that a person or the clock made. They are on disk before they take effect, so recovery, a
rollback and a standby find them.

An event is its kind and a sample number. Valid if and only if the kind is in KINDS and 0 <= after_seq < next number.

pause, resume  A person's decision, and the last sample on disk then. Only the last one matters, so each replaces all
               earlier ones.
sleep          The stream was quiet: after that sample, and before the next one, SLEEP_MICROBATCHES microbatches are
               learned in the phase `sleep`. Several events after one sample add up. A microbatch ends at that sample.
               An event is deleted when all checkpoints that are needed have learned a later sample, and when a
               rollback skips that sample (see skips.py).

The table stays small however often learning is paused, and however long the stream is quiet.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ffstream.journal import schema
from ffstream.journal.database import UNREADABLE, Transaction, connect, damaged, unusable

PAUSE, RESUME, SLEEP = "pause", "resume", "sleep"
KINDS = (PAUSE, RESUME, SLEEP)
SLEEP_MICROBATCHES = 16  # part of the format: with another number, journals would be learned differently
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
        if event.kind != SLEEP:
            connection.execute("DELETE FROM events WHERE kind IN (?, ?)", (PAUSE, RESUME))
        connection.execute("INSERT INTO events (kind, after_seq) VALUES (?, ?)", event)


def learning_is_paused(journal: Path) -> bool:
    """Whether the last decision was to pause. Raises JournalDamaged or Unavailable."""
    with closing(connect(journal, read_only=True)) as connection:
        kinds = [event.kind for event in read(connection, journal) if event.kind != SLEEP]
    return kinds[-1:] == [PAUSE]


def sleeps(connection: sqlite3.Connection, path: Path) -> list[int]:
    """The samples after which there is sleep, one for each event, ascending. Raises JournalDamaged, Unavailable."""
    return sorted(event.after_seq for event in read(connection, path) if event.kind == SLEEP)


def forget_sleeps(connection: sqlite3.Connection, first: int, last: int) -> None:
    """Within a transaction: deletes the events of the kind `sleep` after the samples first … last."""
    connection.execute("DELETE FROM events WHERE kind = ? AND after_seq BETWEEN ? AND ?", (SLEEP, first, last))
