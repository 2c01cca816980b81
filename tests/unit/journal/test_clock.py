"""The time since a client was seen counts only while a daemon runs, and does not depend on the time of day."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ffstream.errors import JournalDamaged
from ffstream.journal.clients import Receipt
from ffstream.journal.journal import Journal
from tests.unit.journal.conftest import Clocks
from tests.unit.journal.entries import crash_image, entry

OpenJournal = Callable[..., Journal]
WEEK_S = 7 * 86_400.0


def known(journal: Journal) -> set[str]:
    return {name for name in ("early", *"abc") if name in journal.clients}


@pytest.mark.parametrize("jump", [(0.0, 1.7e9), (1.7e9, 0.0), (1.7e9, 4e9)])
def test_a_clock_jump_during_a_run_forgets_no_client(
    clocks: Clocks, open_journal: OpenJournal, jump: tuple[float, float]
) -> None:
    clocks.today, after = jump
    journal = open_journal()
    journal.append([entry("a", 1, base=1)])
    journal.trim(1)
    clocks.today = after
    assert journal.forget_clients(3600) == 0
    assert journal.clients.receipt("a", 1) == Receipt(1, 1, 1), "sent again, it is acked and not stored again"
    clocks.go_on(3600)
    assert journal.forget_clients(3600) == 1


@pytest.mark.parametrize("jump", [(0.0, 1.7e9), (1.7e9, 0.0), (1.7e9, 4e9)])
def test_a_clock_jump_between_two_runs_forgets_no_client(
    clocks: Clocks, open_journal: OpenJournal, jump: tuple[float, float]
) -> None:
    """A machine without a clock battery starts in 1970 and gets the date from the network later."""
    clocks.today, after = jump
    journal = open_journal()
    journal.append([entry("a", 1, base=1)])
    journal.trim(1)
    journal.close()
    clocks.today, clocks.now = after, 3.0
    again = open_journal()
    assert again.forget_clients(WEEK_S) == 0
    assert again.clients.receipt("a", 1) == Receipt(1, 1, 1)
    clocks.go_on(WEEK_S)
    assert again.forget_clients(WEEK_S) == 1


def test_only_time_while_a_daemon_runs_counts(clocks: Clocks, open_journal: OpenJournal) -> None:
    journal = open_journal()
    journal.append([entry("a", 1)])
    journal.trim(1)
    for _ in range(3):
        clocks.go_on(1200)
        assert journal.forget_clients(3601) == 0
        journal.close()
        clocks.go_on(1e7)
        journal = open_journal()
    clocks.go_on(1)
    assert journal.forget_clients(3601) == 1


def test_a_kill_loses_at_most_a_minute_of_running_time(
    clocks: Clocks, open_journal: OpenJournal, tmp_path: Path
) -> None:
    journal = open_journal()
    journal.append([entry("a", 1), entry("b", 1)])
    journal.trim(2)
    for second in range(3600):
        if second == 1800:
            journal.append([entry("b", 2)])
        clocks.go_on(1)
        journal.keep_time()
    again = open_journal(crash_image(journal.path, tmp_path / "image"))
    clocks.go_on(60)
    again.trim(3)
    assert again.forget_clients(3600) == 1
    assert known(again) == {"b"}


def test_clients_are_forgotten_in_order_after_a_restart(clocks: Clocks, open_journal: OpenJournal) -> None:
    journal = open_journal()
    for name in ("early", "b", "a"):
        journal.append([entry(name, 1)])
        clocks.go_on(600)
    journal.append([entry("early", 2)])
    journal.trim(4)
    journal.close()
    again = open_journal()
    for left in ({"early", "a"}, {"early"}, set()):
        assert again.forget_clients(600, at_most=1) == 1
        assert known(again) == left
        clocks.go_on(600)


@pytest.mark.parametrize("seen", ["9e999", "1e300", "4611686018427387905"])
def test_a_damaged_time_does_not_affect_other_clients(clocks: Clocks, open_journal: OpenJournal, seen: str) -> None:
    journal = open_journal()
    journal.append([entry("a", 1), entry("b", 1)])
    journal.trim(2)
    journal.close()
    with closing(sqlite3.connect(journal.path)) as connection:
        connection.execute(f"UPDATE clients SET seen = {seen} WHERE client = 'b'")
        connection.commit()
    assert open_journal().forget_clients(3600) == 0


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "'x'", "4611686018427387905"])
def test_a_damaged_clock_is_detected(open_journal: OpenJournal, value: str) -> None:
    journal = open_journal()
    journal.close()
    with closing(sqlite3.connect(journal.path)) as connection:
        connection.execute(f"UPDATE meta SET value = {value} WHERE key = 'clock_s'")
        connection.commit()
    with pytest.raises(JournalDamaged, match="clock_s is"):
        open_journal()
