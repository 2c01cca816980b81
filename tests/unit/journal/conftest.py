from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffstream.journal.journal import Journal
from ffstream.journal.reader import Reader
from tests.unit.journal.entries import INPUTS, LABELS


class Clocks:
    """The time of day, which may jump, and the monotonic clock, which does not. A test sets both."""

    def __init__(self, today: float) -> None:
        self.today = today
        self.now = 5000.0

    def time(self) -> float:
        return self.today

    def monotonic(self) -> float:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.today += seconds
        self.now += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks(1.7e9)
    monkeypatch.setattr("time.time", clocks.time)
    monkeypatch.setattr("ffstream.journal.clock.time", clocks)
    return clocks


@pytest.fixture
def open_journal(tmp_path: Path) -> Iterator[Callable[..., Journal]]:
    opened: list[Journal] = []

    def open_it(path: Path | None = None) -> Journal:
        opened.append(Journal(path or tmp_path / "journal.sqlite", inputs=INPUTS, labels=LABELS))
        return opened[-1]

    yield open_it
    for journal in opened:
        journal.close()


@pytest.fixture
def journal(open_journal: Callable[..., Journal]) -> Journal:
    return open_journal()


@pytest.fixture
def open_reader() -> Iterator[Callable[[Path], Reader]]:
    opened: list[Reader] = []

    def open_it(path: Path) -> Reader:
        opened.append(Reader(path))
        return opened[-1]

    yield open_it
    for reader in opened:
        reader.close()
