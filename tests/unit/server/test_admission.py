"""The limits of ingest, with a real journal: they hold within a group commit, and shortages are reported."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ffstream.errors import BacklogFull, JournalFull, Unavailable
from ffstream.journal import database
from ffstream.journal.journal import Entry, Journal
from ffstream.server.admission import Admission
from ffstream.wire.messages import NAMELESS_PREFIX
from tests.in_process import INPUTS
from tests.unit.server.ingest import Ingest, look_at_every_turn

MIB = 1 << 20
Make = Callable[..., Ingest]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """An ingest whose loop does not run. The test calls its methods instead."""
    look_at_every_turn(monkeypatch)
    made: list[Ingest] = []

    def build(**limits: float) -> Ingest:
        made.append(Ingest(tmp_path, **limits))
        return made[-1]

    yield build
    for each in made:
        each.close()


def message(n: int, client: str = "a", *, samples: int = 1, size: int = INPUTS) -> Entry:
    return Entry(client, n, n, samples, "uint8", bytes(2 * samples), bytes(samples * size))


def admit_all(admission: Admission, entries: list[Entry]) -> tuple[list[Entry], set[str]]:
    """The messages of a group that are admitted, and the codes of the errors about the others."""
    admitted, codes = [], set()
    for entry in entries:
        try:
            admission.admit(entry)
        except Unavailable as error:
            codes.add(error.code if error.hint else "no hint")
        else:
            admitted.append(entry)
    return admitted, codes


def store(ingest: Ingest, entries: list[Entry]) -> None:
    ingest.journal.append(entries)
    ingest.housekeeping.stored(sum(len(entry.images) for entry in entries))
    ingest.admission.end_group()


# --- backlog --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "stored"), [(1, 64), (10, 70), (8, 64), (500, 500)])
def test_the_backlog_limit_holds_within_a_group(make: Make, samples: int, stored: int) -> None:
    """The last message may exceed it, or a message larger than the limit could never be stored."""
    ingest = make(backlog_max_samples=64)
    admitted, codes = admit_all(ingest.admission, [message(n, samples=samples) for n in range(1, 700)])
    assert sum(entry.samples for entry in admitted) == stored
    assert codes == {"backlog_full"}
    store(ingest, admitted)
    assert isinstance(ingest.admission.rejection_reason(), BacklogFull)
    assert admit_all(make(backlog_max_samples=64).admission, [message(1)])[1] == set()


def test_the_journal_limit_holds_within_a_group(make: Make) -> None:
    ingest = make(journal_max_bytes=MIB, backlog_max_samples=10**6)
    admitted, codes = admit_all(ingest.admission, [message(n, size=MIB // 8) for n in range(1, 20)])
    assert (len(admitted), codes) == (8, {"journal_full"})


def test_a_full_backlog_rejects_samples_until_a_tenth_is_learned(make: Make) -> None:
    ingest = make(backlog_max_samples=100)
    values = []

    def look() -> float:
        ingest.look()
        values.append(ingest.metric("refusing_samples", reason="backlog_full"))
        return values[-1]

    assert look() == 0
    store(ingest, [message(1, samples=100)])
    assert look() == 1
    for ingest.applied_seq in range(1, 11):
        assert look() == 1
        assert ingest.admission.credit() == 0
    ingest.applied_seq = 11
    assert look() == 0
    assert ingest.admission.credit() == 11
    store(ingest, [message(2, samples=10)])
    assert look() == 0
    assert ingest.admission.credit() == 1


# --- the journal's log --------------------------------------------------------------------------------------------


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Journal], sqlite3.Connection]]:
    """Another program reads the journal and does not finish."""
    opened: list[sqlite3.Connection] = []

    def read(journal: Journal) -> sqlite3.Connection:
        opened.append(sqlite3.connect(journal.path, isolation_level=None))
        opened[-1].execute("BEGIN")
        opened[-1].execute("SELECT count(*) FROM messages").fetchone()
        return opened[-1]

    yield read
    for each in opened:
        each.close()


def grow(ingest: Ingest, mib: int) -> None:
    """Grows the log by that many bytes, even if few of them are in use afterwards."""
    n = ingest.journal.clients.next_n("a")
    for at in range(mib):
        ingest.journal.append([message(n + at, size=MIB)])
        ingest.journal.trim(ingest.journal.head.seq)


def test_a_pinned_log_is_measured_reported_and_counts_towards_the_limit(
    make: Make, pinned: Callable[[Journal], sqlite3.Connection], caplog: pytest.LogCaptureFixture
) -> None:
    ingest = make(journal_max_bytes=16 * MIB, backlog_max_samples=10**6)
    admission, journal = ingest.admission, ingest.journal
    store(ingest, [message(1)])
    reader = pinned(journal)
    grow(ingest, 20)
    assert journal.bytes_used() < MIB
    for _ in range(3):
        assert admission.rejection_reason() is None, "a short read does not matter"
        ingest.look()
    error = admission.rejection_reason()
    assert isinstance(error, JournalFull)
    assert "reader pins" in error.message
    assert "fuser" in error.hint
    assert not ingest.housekeeping.journal_is_full, "deleting rows would not help"
    assert ingest.metric("journal_log_bytes") == journal.log_bytes() > 20 * MIB
    assert ingest.metric("warning", reason="log_pinned") == 1
    assert list(admission.status()["warnings"]) == ["log_pinned"]
    assert admission.status()["journal"]["log_bytes"] > 20 * MIB
    assert caplog.text.count("warning name=log_pinned") == 1
    reader.close()
    ingest.look()
    assert admission.rejection_reason() is None
    assert (
        journal.log_bytes()
        == ingest.metric("journal_log_bytes")
        == ingest.metric("warning", reason="log_pinned")
        == 0
    )
    assert admission.status()["warnings"] == {}


def test_a_log_of_usual_size_is_not_folded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = make(journal_max_bytes=16 * MIB, backlog_max_samples=10**6)
    monkeypatch.setattr(ingest.journal, "fold_log", lambda: pytest.fail("it was folded"))
    grow(ingest, 4)
    ingest.look()
    assert ingest.metric("journal_log_bytes") > 4 * MIB


def test_the_log_is_folded_when_the_disk_is_short(make: Make) -> None:
    ingest = make(disk_min_free_bytes=2**62, backlog_max_samples=10**6)
    grow(ingest, 2)
    ingest.look()
    assert ingest.journal.log_bytes() == 0


def test_a_reader_in_a_transaction_does_not_delay_messages(
    make: Make, pinned: Callable[[Journal], sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding the log gives up at once. Waiting would take as long as the read."""
    ingest = make(journal_max_bytes=16 * MIB, backlog_max_samples=10**6)
    monkeypatch.setattr(database, "_BUSY_MS", 3_600_000)
    store(ingest, [message(1)])
    pinned(ingest.journal)
    grow(ingest, 10)
    ingest.look()
    assert ingest.journal.append([message(ingest.journal.clients.next_n("a"))])


# --- a write lock of another program
# -----------------------------------------------------------------------------------------


def test_a_write_lock_rejects_samples_until_a_commit_succeeds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortage lasts without a gap, which would restart the alert. Each attempt gives up at once."""
    ingest = make()
    admission, journal = ingest.admission, ingest.journal
    store(ingest, [message(1)])
    monkeypatch.setattr("ffstream.journal.journal._COMMIT_WAIT_MS", 10)
    monkeypatch.setattr(database, "_BUSY_MS", 3_600_000)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            journal.append([message(2)])
        assert "another program holds its write lock" in caught.value.message
        assert "fuser" in caught.value.hint
        ingest.fail(caught.value)
        for _ in range(20):
            ingest.look()
            journal.trim(0)
            error = admission.rejection_reason()
            assert error is not None
            assert error.code == "unavailable"
            assert ingest.metric("refusing_samples", reason="unavailable") == 1
            assert admission.credit() == 0
        with pytest.raises(Unavailable):
            journal.trim(1)
    ingest.look()
    assert admission.rejection_reason() is None
    assert ingest.metric("refusing_samples", reason="unavailable") == 0
    assert journal.append([message(2)])[0].first_seq == 2


def test_a_full_disk_rejects_samples_until_a_commit_of_that_size_succeeds(make: Make) -> None:
    ingest = make()
    admission, journal = ingest.admission, ingest.journal
    store(ingest, [message(1)])
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages + 8}")
    large = message(2, size=MIB)
    with pytest.raises(Unavailable) as caught:
        journal.append([large])
    ingest.fail(caught.value, MIB)
    for _ in range(3):
        ingest.look()
        error = admission.rejection_reason()
        assert error is not None
        assert error.code == "disk_full"
    journal._db.execute("PRAGMA max_page_count = 1073741823")
    ingest.look()
    assert admission.rejection_reason() is None
    assert journal.append([large])
    assert journal._db.execute("SELECT count(*) FROM probes").fetchone() == (0,)


# --- clients without a name of their own --------------------------------------------------------------------------


def nameless(number: int) -> str:
    return f"{NAMELESS_PREFIX}{number:032x}"


def test_idle_nameless_clients_are_forgotten_before_the_limit_is_reached(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their producers died without a bye. Their rows remain, and other clients are kept."""
    ingest = make(clients_max=20, client_nameless_forget_after_s=3600)
    admission, journal = ingest.admission, ingest.journal
    now = 0.0
    monkeypatch.setattr(journal._clock, "now", lambda: now)
    store(ingest, [message(1, "named"), *(message(1, nameless(at)) for at in range(16))])
    now += 3600
    ingest.look()
    assert len(journal.clients) == 17, "below the limit no client is forgotten"
    store(ingest, [message(1, nameless(99))])
    ingest.look()
    assert "named" in journal.clients
    assert nameless(99) in journal.clients, "it was active a moment ago"
    assert len(journal.clients) == 2
    assert admission.status()["clients"] == {"known": 2, "max": 20}
    journal.trim(18)
    assert journal.clients.unresolved(nameless(3)) == 0


def test_nameless_clients_that_may_send_again_are_kept_and_a_warning_is_active(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ingest = make(clients_max=20, client_nameless_forget_after_s=3600)
    admission, journal = ingest.admission, ingest.journal
    now = 0.0
    monkeypatch.setattr(journal._clock, "now", lambda: now)
    store(ingest, [message(1, nameless(at)) for at in range(20)])
    now += 3599
    ingest.look()
    assert len(journal.clients) == 20
    assert admit_all(admission, [message(1, "new")])[1] == {"too_many_clients"}
    receipt = journal.clients.receipt(nameless(7), 1)
    assert receipt is not None
    assert journal.holds(receipt, message(1, nameless(7))), "sent again, it is not stored again"
    assert ingest.metric("warning", reason="clients_near_limit") == 1
    assert "limits.clients_max" in admission.status()["warnings"]["clients_near_limit"]
    assert caplog.text.count("warning name=clients_near_limit") == 1
    now += 1
    ingest.look()
    assert len(journal.clients) == 0
    assert admit_all(admission, [message(1, "new")])[1] == set()
    assert ingest.metric("warning", reason="clients_near_limit") == 0
    assert admission.status()["warnings"] == {}


def test_nameless_clients_of_a_key_are_forgotten_for_others_of_that_key(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = make(client_names_max=10, client_nameless_forget_after_s=3600)
    journal = ingest.journal
    now = 0.0
    monkeypatch.setattr(journal._clock, "now", lambda: now)
    crowd = [message(1, f"anna\x1f{nameless(at)}") for at in range(10)]
    store(ingest, [*crowd, message(1, f"bert\x1f{nameless(0)}"), message(1, nameless(0))])
    ingest.look()
    assert ingest.metric("warning", reason="clients_near_limit") == 1
    now += 3600
    ingest.look()
    assert journal.clients.names("anna\x1f") == 0
    assert len(journal.clients) == 2, "no other client is forgotten"
    assert ingest.metric("warning", reason="clients_near_limit") == 0


def test_a_client_forgotten_before_its_rows_are_deleted_stays_forgotten_after_a_restart(
    make: Make, tmp_path: Path
) -> None:
    ingest = make()
    journal = ingest.journal
    store(ingest, [message(1, nameless(1)), message(1, "named")])
    journal.end(nameless(1))
    ingest.look()
    assert nameless(1) not in journal.clients, "it has sent bye"
    journal.close()
    with closing(Journal(journal.path, inputs=INPUTS, labels=4)) as again:
        assert (len(again.clients), again.head.seq) == (1, 2)
        assert not again.trim(2)
        assert again.clients.receipt(nameless(1), 1) is None
        assert again.clients.receipt("named", 1) is not None
