"""Journals of older versions: they are upgraded in one transaction, and go on."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ffstream.errors import JournalDamaged, JournalIncompatible
from ffstream.journal import events, schema
from ffstream.journal.journal import Journal, Receipt
from tests.unit.journal.conftest import Clocks
from tests.unit.journal.entries import LABELS, crash_image, entry, stored, write_version_1, write_version_2

OpenJournal = Callable[..., Journal]


def test_clients_of_version_2_count_as_just_seen(tmp_path: Path, open_journal: OpenJournal, clocks: Clocks) -> None:
    """Their times are times of day: here of a machine that had no clock, and of one that is ahead."""
    write_version_2(tmp_path / "journal.sqlite", {"early": 5.0, "late": 4e9, "ended": 0.0})
    journal = open_journal()
    assert version(journal.path) == 3
    assert journal.forget_clients(3600) == 1, "the one that has ended"
    clocks.go_on(3599)
    assert journal.forget_clients(3600) == 0
    clocks.go_on(1)
    assert journal.forget_clients(3600) == 2


def test_a_journal_of_version_2_goes_on(tmp_path: Path, open_journal: OpenJournal) -> None:
    path = tmp_path / "journal.sqlite"
    write_version_2(path, {"a": 1.7e9})
    with closing(sqlite3.connect(path)) as connection:
        before = connection.execute("SELECT * FROM messages").fetchall()
    journal = open_journal()
    assert stored(path)[: len(before)] == before
    assert not events.learning_is_paused(path)
    assert [journal.receipt("a", n) for n in (2, 3)] == [Receipt(n, n, 1) for n in (2, 3)]


@pytest.mark.parametrize("table", ["skips", "events", "probes"])
def test_a_table_that_version_3_has_is_not_made_again(
    journal: Journal, open_journal: OpenJournal, table: str
) -> None:
    journal.close()
    with closing(sqlite3.connect(journal.path)) as connection:
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(JournalDamaged, match=f"table {table} is missing"):
        open_journal()


def version(path: Path) -> int:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)  # does not fold the log
    (found,) = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
    connection.close()
    return int(found)


def test_a_journal_of_version_1_goes_on(tmp_path: Path, open_journal: OpenJournal) -> None:
    write_version_1(tmp_path / "journal.sqlite")
    for journal in (open_journal(), open_journal()):
        assert version(journal.path) == 3
        assert [journal.receipt("a", n) for n in (1, 2, 3)] == [Receipt(n, n, 1) for n in (1, 2, 3)]
        other = b"\x09\0"
        assert journal.holds(Receipt(1, 1, 1), entry("a", 1)._replace(labels=other)), "nobody can tell"
        assert not journal.holds(Receipt(2, 2, 1), entry("a", 2)._replace(labels=other))
        journal.trim(2)
        assert not journal.holds(Receipt(2, 2, 1), entry("a", 2)._replace(labels=other))
        assert journal.holds(Receipt(2, 2, 1), entry("a", 2))
    assert journal.append([entry("a", 4, base=1)]) == [Receipt(4, 4, 1)]


def test_of_another_network_a_journal_of_version_1_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    write_version_1(path)
    before = stored(path)
    with pytest.raises(JournalIncompatible, match=r"network\.image_shape: .* have 4"):
        Journal(path, inputs=5, labels=LABELS)
    assert stored(path) == before


def test_a_crash_amid_the_upgrade_leaves_the_old_or_the_new(
    tmp_path: Path, open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its one transaction, torn wherever it may be."""
    path = tmp_path / "journal.sqlite"
    write_version_1(path)
    monkeypatch.setattr(schema, "fold_log", lambda *arguments: False)  # the crash comes before it
    open_journal(path)
    size = path.with_name("journal.sqlite-wal").stat().st_size
    found = set()
    for end in (*range(0, size, 1000), size):
        image = crash_image(path, tmp_path / str(end))
        os.truncate(image.with_name("journal.sqlite-wal"), end)
        columns = len(stored(image)[2])  # of the one receipt
        assert (version(image), columns) in ((1, 4), (3, 5))
        found.add(columns)
        journal = open_journal(image)
        assert [journal.receipt("a", n) for n in (1, 2, 3)] == [Receipt(n, n, 1) for n in (1, 2, 3)]
        assert version(image) == 3
    assert found == {4, 5}
