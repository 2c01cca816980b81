"""The rate of the journal alone, which `tools/bench ingest` shows beside that of a daemon."""

from collections.abc import Sequence

import pytest

from ffstream.journal.clients import Receipt
from ffstream.journal.journal import Entry, Journal
from tools.benchmarks import ingest


@pytest.mark.parametrize(("samples", "batch"), [(100, 1), (1000, 1), (640, 64)])
def test_the_journal_alone_stores_as_many_samples_as_are_counted(
    monkeypatch: pytest.MonkeyPatch, samples: int, batch: int
) -> None:
    stored: list[Entry] = []
    append = Journal.append

    def recorded(self: Journal, entries: Sequence[Entry]) -> list[Receipt]:
        stored.extend(entries)
        return append(self, entries)

    monkeypatch.setattr(Journal, "append", recorded)
    assert ingest._journal_rate(samples, batch) > 0
    assert sum(each.samples for each in stored) == samples
