"""The journal agrees with a simple model of it after any sequence of operations."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ffstream.errors import BelowBase, DiskFull
from ffstream.journal import identity
from ffstream.journal.clients import Receipt
from ffstream.journal.journal import Entry, Journal
from ffstream.journal.reader import Reader
from tests.unit.journal.entries import INPUTS, LABELS, crash_image, entry

CLIENTS = ["a", identity.join("key", "a"), identity.join("key", "b")]
OWNERS = {identity.owner(client) for client in CLIENTS}
clients = st.sampled_from(CLIENTS)


class Model:
    """A journal without a file: simple enough to be obviously correct."""

    def __init__(self) -> None:
        self.seq = 0
        self.base: dict[str, int] = {}
        self.receipts: dict[tuple[str, int], Receipt] = {}
        self.entries: dict[tuple[str, int], Entry] = {}
        self.samples: dict[int, tuple[bytes, bytes]] = {}  # by sequence number
        self.ended: set[str] = set()
        self.trimmed = 0

    def receipt(self, client: str, n: int) -> Receipt | type[BelowBase] | None:
        return BelowBase if n < self.base.get(client, 1) else self.receipts.get((client, n))

    def next_n(self, client: str) -> int:
        return max([self.base.get(client, 1), *(n + 1 for name, n in self.receipts if name == client)])

    def names(self, owner: str) -> int:
        return sum(identity.owner(client) == owner for client in self.base.keys() - self.ended)

    def unresolved(self, owner: str) -> int:
        return sum(identity.owner(client) == owner and n >= self.base[client] for client, n in self.receipts)

    def end(self, client: str) -> None:
        if client in self.base:
            self.ended.add(client)
            self.base[client] = self.next_n(client)

    def append(self, entries: list[Entry]) -> list[Receipt]:
        given = []
        for each in entries:
            receipt = Receipt(each.n, self.seq + 1, each.samples)
            self.receipts[each.client, each.n] = receipt
            self.entries[each.client, each.n] = each
            for index in range(each.samples):
                self.seq += 1
                image = each.images[index * INPUTS : (index + 1) * INPUTS]
                self.samples[self.seq] = (each.labels[2 * index : 2 * index + 2], image)
            self.base[each.client] = max(each.base, self.base.get(each.client, 1))
            self.ended.discard(each.client)
            given.append(receipt)
        return given


class JournalMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ffstream-"))
        self.images = 0
        self.model = Model()
        self.open(self.folder / "journal.sqlite")

    def open(self, path: Path) -> None:
        self.journal = Journal(path, inputs=INPUTS, labels=LABELS)
        self.reader = Reader(path)

    def shut(self) -> None:
        self.reader.close()
        self.journal.close()

    def new(self, client: str, skipped: int, samples: int, answered: int, taken: dict[str, int]) -> Entry:
        """A message that a client may send: its number is new and its base is valid."""
        n = max(self.model.next_n(client), taken.get(client, 0) + 1) + skipped
        taken[client] = n
        base = min(n, self.model.base.get(client, 1) + answered)
        return entry(client, n, base=base, samples=samples)

    group = st.lists(st.tuples(clients, st.integers(0, 2), st.integers(1, 5), st.integers(0, 6)), max_size=5)

    @rule(group=group)
    def append(self, group: list[tuple[str, int, int, int]]) -> None:
        taken: dict[str, int] = {}
        entries = [self.new(*each, taken) for each in group]
        assert self.journal.append(entries) == self.model.append(entries)

    @rule(client=clients, data=st.data(), samples=st.integers(1, 3))
    def fill_a_hole(self, client: str, data: st.DataObject, samples: int) -> None:
        base = self.model.base.get(client, 1)
        holes = [n for n in range(base, self.model.next_n(client)) if (client, n) not in self.model.receipts]
        if holes:
            late = entry(client, data.draw(st.sampled_from(holes)), base=base, samples=samples)
            assert self.journal.append([late]) == self.model.append([late])

    @rule(group=group)
    def append_to_a_full_disk(self, group: list[tuple[str, int, int, int]]) -> None:
        taken: dict[str, int] = {}
        entries = [self.new(*each, taken) for each in group]
        entries.append(entry("large", 1, samples=100, size=4000))
        (pages,) = self.journal._db.execute("PRAGMA page_count").fetchone()
        self.journal._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DiskFull):
            self.journal.append(entries)
        self.journal._db.execute("PRAGMA max_page_count = 1073741823")

    @rule(client=clients)
    def end(self, client: str) -> None:
        self.journal.end(client)
        self.model.end(client)

    @rule(part=st.floats(0, 1), rows=st.integers(1, 6))
    def trim(self, part: float, rows: int) -> None:
        seq = int(part * self.model.seq)
        more = True
        while more:
            more = self.journal.trim(seq, rows=rows)
        self.model.trimmed = max(self.model.trimmed, seq)

    @rule()
    def close_and_open(self) -> None:
        self.shut()
        self.open(self.journal.path)

    @rule()
    def lose_power(self) -> None:
        self.images += 1
        image = crash_image(self.journal.path, self.folder / str(self.images))
        self.shut()
        self.open(image)

    @rule(part=st.floats(0, 1), most=st.integers(1, 20))
    def read(self, part: float, most: int) -> None:
        beyond = self.model.trimmed + int(part * (self.model.seq - self.model.trimmed))
        found: dict[int, Any] = {}
        for row in self.reader.read(beyond, most):
            for index in range(row.samples):
                image = row.images[index * INPUTS : (index + 1) * INPUTS]
                found[row.first_seq + index] = (row.labels[2 * index : 2 * index + 2], image)
        wanted = range(beyond + 1, min(beyond + most, self.model.seq) + 1)
        assert {seq: found[seq] for seq in wanted} == {seq: self.model.samples[seq] for seq in wanted}
        assert all(found[seq] == self.model.samples[seq] for seq in found)

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.journal.head.seq == self.model.seq
        assert len(self.journal.clients) == len(self.model.base)
        for owner in OWNERS:
            assert self.journal.clients.names(owner) == self.model.names(owner)
            assert self.journal.clients.unresolved(owner) == self.model.unresolved(owner)
        for client in CLIENTS:
            assert self.journal.clients.next_n(client) == self.model.next_n(client)
            for n in range(1, self.model.next_n(client) + 2):
                expected = self.model.receipt(client, n)
                if expected is BelowBase:
                    with pytest.raises(BelowBase):
                        self.journal.clients.receipt(client, n)
                else:
                    assert self.journal.clients.receipt(client, n) == expected
                if isinstance(expected, Receipt):
                    sent = self.model.entries[client, n]
                    assert self.journal.holds(expected, sent)
                    assert not self.journal.holds(expected, sent._replace(images=sent.images[::-1]))

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.shut()
            shutil.rmtree(self.folder)


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
