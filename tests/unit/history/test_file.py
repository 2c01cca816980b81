"""The file continues the history, and one that is unfit is set aside, loudly."""

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ffstream.history.file import HISTORY, HistoryFile, Unfit, read
from ffstream.history.history import SPANS, History
from ffstream.history.marks import MARKS_MAX, Mark
from tests.unit.history.recorded import BEGIN_S, LAYERS, record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / HISTORY


def documents(history: History) -> dict[str, Any]:
    return {span: history.document(span) for span in SPANS}


def recorded(path: Path, *, properly: bool = True) -> History:
    """A history of 700 seconds in a file, which was closed properly or left as a kill leaves it."""
    file = HistoryFile(path, LAYERS)
    history, _ = file.load()
    for first in range(0, 700, 70):
        record(history, first, 70)
        file.save(history)
    history.mark(Mark(BEGIN_S + 3.0, 5, "checkpoint", "up to sample 5"))
    file.save(history)
    if properly:
        file.close(history)
    else:
        file.abandon()
    return history


@pytest.mark.parametrize("properly", [True, False])
def test_a_history_continues_and_knows_how_the_daemon_before_has_ended(path: Path, properly: bool) -> None:
    before = recorded(path, properly=properly)
    file = HistoryFile(path, LAYERS)
    again, ended_properly = file.load()
    assert ended_properly is properly
    assert documents(again) == documents(before)
    for history in (before, again):
        record(history, 700, 2000)
    assert documents(again) == documents(before), "points that were growing go on growing"
    file.close(again)
    assert documents(read(path)) == documents(before)


def test_without_a_file_there_was_no_daemon_before(path: Path) -> None:
    history, ended_properly = HistoryFile(path, LAYERS).load()
    assert ended_properly is None
    assert history.newest_time() is None
    assert not path.exists(), "nothing is written before there is something to store"


def test_what_leaves_the_history_leaves_the_file(path: Path) -> None:
    file = HistoryFile(path, LAYERS)
    history, _ = file.load()
    for number in range(MARKS_MAX + 10):
        history.mark(Mark(BEGIN_S + number, number, "checkpoint", ""))
    record(history, 0, 3000)
    file.save(history)
    record(history, 3000, 1)
    file.close(history)
    with closing(sqlite3.connect(path)) as db:
        levels = dict(db.execute("SELECT level, count(*) FROM points GROUP BY level"))
        (marks,) = db.execute("SELECT count(*) FROM marks").fetchone()
    assert levels == {"10m": 600, "3h": 301, "1d": 51, "30d": 6, "all": 751}
    assert marks == MARKS_MAX


def overwrite_a_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xa5" * 4096
    path.write_bytes(data)


def run(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()

    return change


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no database": lambda path: path.write_bytes(b"not a database at all" * 100),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "a page": overwrite_a_page,
    "no points": run("DROP TABLE points"),
    "no meta": run("DROP TABLE meta"),
    "another version": run("UPDATE meta SET value = 99 WHERE key = 'version'"),
    "another network": run("UPDATE meta SET value = 7 WHERE key = 'layers'"),
    "other columns": run("UPDATE meta SET value = '[]' WHERE key = 'columns'"),
    "a length": run("UPDATE points SET point = x'00' WHERE level = '3h'"),
    "a number": run("UPDATE points SET number = number + 1000000 WHERE level = '1d'"),
    "a type": run("UPDATE meta SET value = 'x' WHERE key = 'interval_s'"),
    "an interval": run("UPDATE meta SET value = 0 WHERE key = 'interval_s'"),
    "a kind": run("UPDATE marks SET kind = 'nonsense'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unfit_file_is_set_aside_and_a_new_one_begins(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(path)
    DAMAGES[damage](path)
    unfit = path.read_bytes()
    with pytest.raises((Unfit, sqlite3.Error)):
        read(path)
    caplog.set_level(logging.WARNING)
    file = HistoryFile(path, LAYERS)
    history, ended_properly = file.load()
    assert ended_properly is None
    assert documents(history) == documents(History(LAYERS))
    assert "history begins again" in caplog.text
    assert path.with_name("history.sqlite.old").read_bytes()[:100] == unfit[:100]
    record(history, 0, 5)
    file.close(history)
    assert documents(read(path)) == documents(history)


def test_damage_that_is_found_while_storing_is_repaired_from_memory(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(path)
    file = HistoryFile(path, LAYERS)
    history, _ = file.load()
    with path.open("r+b") as pages:
        pages.seek(4096)
        pages.write(b"\xa5" * (path.stat().st_size - 4096))
    record(history, 700, 5)
    history.lost()  # so that every page is read again
    with pytest.raises(sqlite3.DatabaseError):
        file.save(history)
    record(history, 705, 1)
    file.save(history)
    file.close(history)
    assert documents(read(path)) == documents(history)
    assert "history begins again" in caplog.text


def test_a_file_that_another_program_has_locked_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffstream.history.file._BUSY_MS", 10)
    before = recorded(path)
    file = HistoryFile(path, LAYERS)
    history, _ = file.load()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for each in (before, history):
            record(each, 700, 5)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            file.save(history)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            HistoryFile(path, LAYERS).load()
    assert not path.with_name("history.sqlite.old").exists()
    file.close(history)
    assert documents(read(path)) == documents(before), "what could not be stored is stored later"


def test_a_program_that_reads_for_long_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffstream.history.file._BUSY_MS", 10)
    monkeypatch.setattr("ffstream.history.file._LOG_PINNED_BYTES", 300_000)
    path, history = tmp_path / HISTORY, History(LAYERS)
    file = HistoryFile(path, LAYERS)
    file.load()
    record(history, 0, 10)
    file.save(history)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM points").fetchone()
    refused: list[str] = []
    for second in range(10, 60):
        record(history, second, 1)
        try:
            file.save(history)
        except OSError as error:
            refused.append(str(error))
    assert "fuser" in refused[0]
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 1_000_000
    reader.close()
    file.save(history)
    assert read(path).document("10m") == history.document("10m")
