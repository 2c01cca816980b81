"""Decisions about learning are durable at once, the last one counts, and the table does not grow."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ffstream.errors import JournalDamaged, Unavailable
from ffstream.journal import database, events
from ffstream.journal.events import Event
from ffstream.journal.inspection import opened
from ffstream.journal.journal import Journal
from ffstream.journal.verification import Verification
from tests.unit.journal.entries import crash_image, entry


def test_the_last_event_is_durable_and_counts(journal: Journal, tmp_path: Path) -> None:
    assert not events.learning_is_paused(journal.path)
    journal.append([entry("a", 1, samples=5)])
    for index, (kind, paused) in enumerate([("pause", True), ("pause", True), ("resume", False), ("pause", True)]):
        events.add(journal.path, Event(kind, 5))
        image = crash_image(journal.path, tmp_path / str(index))
        assert events.learning_is_paused(image) is paused


def test_the_table_of_events_does_not_grow(journal: Journal) -> None:
    for n in range(1, 20):
        journal.append([entry("a", n)])
        events.add(journal.path, Event("pause", n - 1))
        events.add(journal.path, Event("resume", n))
    with closing(database.connect(journal.path, read_only=True)) as connection:
        assert events.read(connection, journal.path) == [Event("resume", 19)]


def sleeps(journal: Journal) -> list[int]:
    with closing(database.connect(journal.path, read_only=True)) as connection:
        return events.sleeps(connection, journal.path)


def test_a_pause_and_sleep_do_not_replace_each_other(journal: Journal) -> None:
    journal.append([entry("a", 1, samples=5)])
    for kind, seq in (("sleep", 2), ("pause", 5), ("sleep", 2), ("sleep", 4), ("resume", 5)):
        events.add(journal.path, Event(kind, seq))
    assert sleeps(journal) == [2, 2, 4]
    assert not events.learning_is_paused(journal.path)
    events.add(journal.path, Event("pause", 5))
    events.add(journal.path, Event("sleep", 5))
    assert events.learning_is_paused(journal.path)


def test_sleep_is_forgotten_with_the_samples_before_it(journal: Journal) -> None:
    for n in range(1, 6):
        journal.append([entry("a", n, samples=2)])
        events.add(journal.path, Event("sleep", 2 * n))
    journal.trim(6)
    assert sleeps(journal) == [6, 8, 10], "a run may begin after sample 6, and sleep first"


def test_an_event_is_kept_when_earlier_samples_are_deleted(
    journal: Journal, open_journal: Callable[..., Journal]
) -> None:
    journal.append([entry("a", 1, samples=5)])
    events.add(journal.path, Event("pause", 5))
    journal.trim(5)
    journal.close()
    open_journal()
    assert events.learning_is_paused(journal.path)


@pytest.mark.parametrize(
    "row", [("pause", -1), ("pause", 6), ("pause", "x"), ("pause", 1.5), ("puase", 1), (b"x", 1)]
)
def test_an_invalid_event_is_damage(journal: Journal, row: tuple[Any, Any]) -> None:
    journal.append([entry("a", 1, samples=5)])
    with closing(sqlite3.connect(journal.path)) as connection:
        connection.execute("INSERT INTO events (kind, after_seq) VALUES (?, ?)", row)
        connection.commit()
    with pytest.raises(JournalDamaged, match="event"):
        events.learning_is_paused(journal.path)
    with opened(journal.path) as connection:
        verification = Verification(connection)
        verification.run()
    assert [problem.what for problem in verification.findings.named if "event" in problem.what]


def test_an_event_that_cannot_be_stored_changes_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    events.add(journal.path, Event("pause", 0))
    monkeypatch.setattr(events, "_WAIT_MS", 10)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            events.add(journal.path, Event("resume", 0))
    assert caught.value.hint
    assert events.learning_is_paused(journal.path)
