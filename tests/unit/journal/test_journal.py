import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ffstream.errors import BelowBase, DiskFull, JournalDamaged, JournalIncompatible, Unavailable
from ffstream.journal import database, identity, schema, skips
from ffstream.journal.clients import Receipt
from ffstream.journal.journal import Head, Journal
from ffstream.journal.reader import Reader
from ffstream.journal.skips import Skip
from tests.support import wait_until
from tests.unit.journal.entries import INPUTS, LABELS, crash_image, entry, stored

OpenJournal = Callable[..., Journal]
OpenReader = Callable[[Path], Reader]


def remembered(journal: Journal) -> dict[str, Any]:
    """Everything that a journal remembers."""
    names = sorted(journal.clients._clients)
    clients = [journal.clients._clients[name] for name in names]
    return {
        "head": journal.head.seq,
        "backlog": journal.backlog(0),
        "clients": names,
        "next": [journal.clients.next_n(name) for name in names],
        "base": [client.base for client in clients],
        "names": dict(journal.clients._names),
        "unresolved": dict(journal.clients._unresolved),
        "receipts": [
            [receipt for n, receipt in sorted(client.receipts.items()) if n >= client.base] for client in clients
        ],
    }


# --- append, receipts, numbers -------------------------------------------------------------------------------------


def test_samples_are_numbered_from_1_without_gaps(journal: Journal) -> None:
    first = journal.append([entry("a", 1, samples=3), entry("b", 1, samples=2)])
    assert first == [Receipt(1, 1, 3), Receipt(1, 4, 2)]
    assert journal.append([entry("a", 2)]) == [Receipt(2, 6, 1)]
    assert journal.head.seq == 6
    assert journal.backlog(4) == 2


def test_stored_messages_have_receipts(journal: Journal) -> None:
    assert journal.clients.receipt("a", 1) is None
    journal.append([entry("a", 1, samples=3, base=1), entry("a", 3, base=1)])
    assert journal.clients.receipt("a", 1) == Receipt(1, 1, 3)
    assert journal.clients.receipt("a", 2) is None, "skipped, and may still come"
    assert journal.clients.receipt("a", 3) == Receipt(3, 4, 1)
    assert journal.clients.receipt("b", 1) is None, "another client's numbers are its own"


def test_a_message_below_the_base_is_rejected(journal: Journal) -> None:
    journal.append([entry("a", n, base=1) for n in (1, 2, 3)])
    journal.append([entry("a", 4, base=3)])
    for n in (1, 2):
        with pytest.raises(BelowBase, match=f"message {n} of client 'a' is below its base 3") as caught:
            journal.clients.receipt("a", n)
        assert caught.value.hint
    assert journal.clients.receipt("a", 3) == Receipt(3, 3, 1)


def test_the_base_never_decreases(journal: Journal, open_journal: OpenJournal) -> None:
    journal.append([entry("a", 5, base=5)])
    journal.append([entry("a", 6, base=2)])
    journal.close()
    for each in (journal, open_journal()):
        with pytest.raises(BelowBase):
            each.clients.receipt("a", 4)


def test_next_n_is_above_all_used_numbers(journal: Journal) -> None:
    assert journal.clients.next_n("a") == 1
    journal.append([entry("a", 7, base=1), entry("a", 3, base=1)])
    assert journal.clients.next_n("a") == 8
    journal.append([entry("a", 8, base=8)])
    assert journal.clients.next_n("a") == 9
    assert journal.clients.unresolved("a") == 1
    assert "b" not in journal.clients
    assert journal.clients.next_n("b") == 1
    assert len(journal.clients) == 1


def test_receipts_below_the_base_are_forgotten(journal: Journal) -> None:
    for n in range(1, 200):
        journal.append([entry("a", n, base=max(1, n - 3))])
    assert sorted(journal.clients._clients["a"].receipts) == [196, 197, 198, 199]


def test_receipts_below_the_base_are_forgotten_in_any_order(journal: Journal) -> None:
    for n in (5, 1, 2):
        journal.append([entry("a", n, base=1)])
    journal.append([entry("a", 6, base=5)])
    assert journal.clients.unresolved("a") == 2
    journal.append([entry("a", 2**40, base=2**40)])
    assert journal.clients.unresolved("a") == 1


def test_a_commit_wakes_waiting_readers(journal: Journal) -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(journal.head.wait(0, 30)))
    thread.start()
    wait_until(lambda: journal.head._grown._waiters, 10, "the thread waits")  # type: ignore[attr-defined]
    journal.append([entry()])
    thread.join(10)
    assert found == [True]
    assert not journal.head.wait(1, 0.0)


def test_wake_ends_a_wait() -> None:
    head = Head(3)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(head.wait(3, 30)))
    thread.start()
    wait_until(lambda: head._grown._waiters, 10, "the thread waits")  # type: ignore[attr-defined]
    head.wake()
    thread.join(10)
    assert found == [False]


# --- failed transactions ---------------------------------------------------------------------------------------


def fill(journal: Journal, pages: int) -> None:
    """Limits the file to that many more pages."""
    (count,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {count + pages}")


def test_a_failed_commit_on_a_full_disk_changes_nothing(journal: Journal, open_reader: OpenReader) -> None:
    journal.append([entry("a", 1), entry("b", 1)])
    before, file_before = remembered(journal), stored(journal.path)
    fill(journal, 4)
    group = [entry("a", n, base=2, samples=100, size=1000) for n in (2, 3)] + [entry("new", 1)]
    with pytest.raises(DiskFull, match=r"journal\.sqlite") as caught:
        journal.append([entry("b", 2, base=2), *group])
    assert caught.value.hint
    assert caught.value.code == "disk_full"
    assert remembered(journal) == before
    assert stored(journal.path) == file_before
    assert "new" not in journal.clients
    assert journal.clients.receipt("b", 2) is None, "the small message of the group went with it"
    journal._db.execute("PRAGMA max_page_count = 1073741823")
    assert journal.append([entry("b", 2, base=2), *group])[0] == Receipt(2, 3, 1), "no number was lost"
    assert [row.first_seq for row in open_reader(journal.path).read(0, 1000)] == [1, 2, 3, 4, 104, 204]


def test_a_failed_commit_changes_nothing(journal: Journal) -> None:
    journal.append([entry("a", 1)])
    before, file_before = remembered(journal), stored(journal.path)
    with pytest.raises(TypeError):
        journal.append([entry("b", 1), entry("a", 2)._replace(images=None)])  # type: ignore[arg-type]
    with pytest.raises(sqlite3.Error, match="not supported"):  # by then the transaction contains the row before it
        journal.append([entry("b", 1), entry("a", 2)._replace(dtype=object())])  # type: ignore[arg-type]
    assert remembered(journal) == before
    assert stored(journal.path) == file_before
    assert journal.append([entry("b", 1)]) == [Receipt(1, 2, 1)]


def test_a_failed_trim_on_a_full_disk_deletes_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append([entry("a" * 64, n, base=1) for n in range(1, 400)])
    before, file_before = remembered(journal), stored(journal.path)
    fill(journal, 0)
    with pytest.raises(DiskFull):
        journal.trim(399)
    assert remembered(journal) == before
    assert stored(journal.path) == file_before
    journal._db.execute("PRAGMA max_page_count = 1073741823")
    assert not journal.trim(399)
    assert remembered(journal) == before


def test_commits_are_synced() -> None:
    """Without this, acked samples would be lost on power loss, which a SIGKILL does not show."""
    journal = Journal(Path(":memory:"), inputs=INPUTS, labels=LABELS)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


# --- recovery -------------------------------------------------------------------------------------------------------


def test_reopening_restores_everything(journal: Journal, open_journal: OpenJournal) -> None:
    journal.append([entry("a", 1, base=1, samples=3), entry("b", 4, base=2), entry("a", 2, base=1)])
    before, file_before = remembered(journal), stored(journal.path)
    journal.close()
    again = open_journal()
    assert remembered(again) == before
    assert stored(again.path) == file_before
    assert again.append([entry("a", 3, base=1)]) == [Receipt(3, 6, 1)]


def test_everything_committed_survives_a_crash(
    journal: Journal, open_journal: OpenJournal, open_reader: OpenReader, tmp_path: Path
) -> None:
    for n in range(1, 30):
        journal.append([entry("a", n, base=max(1, n - 2), samples=n % 4 + 1), entry("b", n)])
        if n % 10 == 0:
            journal.trim(20)
        image = crash_image(journal.path, tmp_path / f"crash{n}")
        again = open_journal(image)
        assert remembered(again) == remembered(journal)
        beyond = 20 if n >= 10 else 0
        rows = open_reader(image).read(beyond, 10_000)
        assert rows == open_reader(journal.path).read(beyond, 10_000)
        assert rows[-1].first_seq + rows[-1].samples - 1 == journal.head.seq
        again.close()


def test_a_torn_log_loses_only_uncommitted_messages(
    journal: Journal, open_journal: OpenJournal, tmp_path: Path
) -> None:
    """Half of the last commit is on disk, and it was never acked. Everything before it is there."""
    journal.append([entry("a", 1, samples=50, size=1000)])
    whole = journal.path.with_name("journal.sqlite-wal").stat().st_size
    journal.append([entry("a", 2, samples=50, size=1000)])
    image = crash_image(journal.path, tmp_path / "crash")
    log = image.with_name("journal.sqlite-wal")
    torn = log.stat().st_size
    assert torn > whole
    with log.open("r+b") as file:
        file.truncate((whole + torn) // 2)
    again = open_journal(image)
    assert again.head.seq == 50
    assert again.clients.receipt("a", 2) is None
    assert again.append([entry("a", 2)]) == [Receipt(2, 51, 1)]


# --- trimming -------------------------------------------------------------------------------------------------------


def test_trim_deletes_whole_rows_only(journal: Journal, open_reader: OpenReader) -> None:
    journal.append([entry("a", 1, samples=10), entry("a", 2, samples=10), entry("a", 3, samples=10)])
    journal.trim(9)
    assert [row.first_seq for row in open_reader(journal.path).read(0, 100)] == [1, 11, 21]
    journal.trim(19)
    reader = open_reader(journal.path)
    assert [row.first_seq for row in reader.read(19, 100)] == [11, 21]
    with pytest.raises(JournalDamaged):
        reader.read(5, 100)
    journal.trim(20)
    assert [row.first_seq for row in reader.read(20, 100)] == [21]


def test_trim_deletes_a_limited_number_of_rows(journal: Journal) -> None:
    journal.append([entry("a", n) for n in range(1, 26)])
    assert journal.trim(25, rows=10)
    assert journal.trim(25, rows=10)
    assert not journal.trim(25, rows=10)
    assert not journal.trim(25, rows=10)
    assert [row for row in stored(journal.path) if len(row) == 8] == []


def test_trim_deletes_a_limited_number_of_bytes(journal: Journal) -> None:
    journal.append([entry("a", n, samples=10, size=100) for n in range(1, 11)])
    found = []
    while journal.trim(100, size=2500):
        found.append(journal.first_seq)
    assert found == [31, 61, 91]
    assert journal.first_seq == 101
    journal.append([entry("a", 11, samples=100, size=100)])
    assert not journal.trim(200, size=1), "one at least"
    assert journal.first_seq == 201


def log_of(journal: Journal) -> Path:
    return journal.path.with_name("journal.sqlite-wal")


def test_trim_writes_little_to_the_log(journal: Journal) -> None:
    """Deleted pages are not overwritten with zeros."""
    for n in range(1, 9):
        journal.append([entry("a", n, samples=250, size=4000)])
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert not journal.trim(2000)
    assert 0 < log_of(journal).stat().st_size < 20 * 8192


def test_the_log_shrinks_after_a_long_read_has_ended(
    tmp_path: Path, open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOG_MAX_BYTES", 1 << 20)
    journal = open_journal()
    reader = database.connect(journal.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM messages").fetchall()
    for n in range(1, 4):
        journal.append([entry("a", n, samples=250, size=4000)])
    assert log_of(journal).stat().st_size > 3_000_000
    reader.close()
    journal._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    journal.append([entry("a", 4)])
    assert log_of(journal).stat().st_size <= 1 << 20


def test_a_trimmed_unresolved_message_keeps_its_receipt(journal: Journal, open_journal: OpenJournal) -> None:
    journal.append([entry("a", n, base=1, samples=2) for n in range(1, 6)])
    journal.append([entry("a", 6, base=4)])
    journal.trim(11)
    for each in (journal, open_journal(journal.path)):
        assert [each.clients.receipt("a", n) for n in (4, 5, 6)] == [
            Receipt(4, 7, 2),
            Receipt(5, 9, 2),
            Receipt(6, 11, 1),
        ]
        with pytest.raises(BelowBase):
            each.clients.receipt("a", 3)
        assert each.clients.next_n("a") == 7


def test_the_content_of_a_trimmed_message_can_still_be_compared(journal: Journal, open_journal: OpenJournal) -> None:
    for n in (1, 2, 3):
        journal.append([entry("a", n, base=1)])
    journal.trim(2)
    for each in (journal, open_journal(journal.path)):
        for n in (1, 2, 3):
            receipt = each.clients.receipt("a", n)
            assert receipt is not None
            assert each.holds(receipt, entry("a", n))
            assert not each.holds(receipt, entry("a", n)._replace(labels=b"\x09\0"))
            assert not each.holds(receipt, entry("a", n)._replace(images=bytes(INPUTS)))


def test_resolved_receipts_are_deleted_from_disk(journal: Journal) -> None:
    journal.append([entry("a", n, base=1) for n in range(1, 6)])
    journal.trim(5)
    assert len(journal._db.execute("SELECT * FROM receipts").fetchall()) == 5
    journal.append([entry("a", 6, base=6)])
    journal.trim(6)
    assert journal._db.execute("SELECT n FROM receipts").fetchall() == [(6,)]


def test_numbers_are_not_reused_after_all_rows_are_deleted(journal: Journal, open_journal: OpenJournal) -> None:
    journal.append([entry("a", 1, samples=7)])
    assert not journal.trim(7)
    journal.close()
    again = open_journal()
    assert again.head.seq == 7
    assert again.append([entry("a", 2)]) == [Receipt(2, 8, 1)]
    again.trim(8)
    again.trim(8)
    again.close()
    third = open_journal()
    assert third.append([entry("b", 1)]) == [Receipt(1, 9, 1)]
    third.close()
    assert open_journal().head.seq == 9, "the row is above the number stored at the last trim"


def test_freed_space_is_reused(journal: Journal) -> None:
    sizes, used = [], []
    seq = 0
    for n in range(1, 41):
        receipts = journal.append([entry("a", 3 * n + k, base=3 * n, samples=50, size=784) for k in range(3)])
        seq = receipts[-1].first_seq + receipts[-1].samples - 1
        journal.trim(seq)
        journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(journal.path.stat().st_size)
        used.append(journal.bytes_used())
    assert seq == 40 * 150
    assert max(sizes) == sizes[2], "the file does not grow"
    assert max(sizes) < 3 * 150 * 784
    assert max(used) < 20 * 8192, "what is free does not count as used"


def test_bytes_used_counts_stored_rows(journal: Journal) -> None:
    before = journal.bytes_used()
    journal.append([entry("a", 1, samples=100, size=784)])
    assert 78_400 - 8192 <= journal.bytes_used() - before <= 78_400 + 2 * 8192


def test_bytes_free_counts_deleted_rows(journal: Journal) -> None:
    journal.append([entry("a", 1, samples=100, size=784)])
    assert journal.bytes_free() == 0
    used = journal.bytes_used()
    journal.trim(100)
    assert journal.bytes_free() == used - journal.bytes_used() >= 78_400 - 8192


# --- other files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"This is no database.\n" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_not_a_database_is_damage(content: bytes, tmp_path: Path, open_journal: OpenJournal) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    with pytest.raises(JournalDamaged, match=r"journal\.sqlite") as caught:
        open_journal()
    assert caught.value.hint
    with pytest.raises(JournalDamaged):
        Reader(path)
    assert path.read_bytes() == content, "left for whoever wants to look at it"


def test_a_reader_does_not_create_a_journal(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Reader(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"inputs": 5}, r"network\.image_shape: its images have 5 numbers, .* have 4"),
        ({"labels": 3}, r"network\.labels = 3: .* created with network\.labels = 10"),
    ],
)
def test_a_journal_of_another_network_is_rejected(journal: Journal, other: dict[str, int], named: str) -> None:
    journal.close()
    with pytest.raises(JournalIncompatible, match=named) as caught:
        Journal(journal.path, **({"inputs": INPUTS, "labels": LABELS} | other))
    assert "network" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "hint"), [(schema.VERSION + 1, "use the newer ffstream"), (3, "use the development version"), (1, "")]
)
def test_a_journal_of_another_version_is_rejected_and_not_changed(
    journal: Journal, open_journal: OpenJournal, version: int, hint: str
) -> None:
    journal.close()
    with closing(sqlite3.connect(journal.path)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'version'", (version,))
        connection.execute("DROP TABLE origin")  # other versions may lack tables
        connection.commit()
    before = stored(journal.path)
    with pytest.raises(JournalIncompatible, match=f"version {version}, and this ffstream reads version 4") as caught:
        open_journal()
    assert hint in caught.value.hint
    assert stored(journal.path) == before


def test_any_client_name_can_be_stored(journal: Journal, open_journal: OpenJournal) -> None:
    names = ["a\0b", "a", "A", " a", "é", "e\u0301", "'; DROP TABLE messages; --", "𝔽", "\x7f" * 64]
    journal.append([entry(name, 1) for name in names])
    journal.close()
    again = open_journal()
    assert len(again.clients) == len(names)
    assert [again.clients.receipt(name, 1) for name in names] == [
        Receipt(1, seq, 1) for seq in range(1, len(names) + 1)
    ]


# --- forgetting clients ---------------------------------------------------------------------------


def test_clients_without_rows_are_forgotten_oldest_first(
    journal: Journal, open_journal: Callable[..., Journal]
) -> None:
    for client in ("a", "b", "c"):
        journal.append([entry(client, 1, base=1)])
    journal.append([entry("a", 2, base=1)])
    assert journal.forget_clients(0) == 0, "their rows are there"
    assert not journal.trim(2)
    assert journal.forget_clients(3600) == 0, "they were seen"
    assert journal.forget_clients(0, at_most=1) == 1
    assert [journal.clients.unresolved(client) for client in ("a", "b", "c")] == [2, 0, 1]
    assert journal.forget_clients(0) == 0, "c and a have rows"
    journal.close()
    again = open_journal()
    assert [again.clients.unresolved(client) for client in ("a", "b", "c")] == [2, 0, 1]
    assert "b" not in again.clients
    assert again.clients.next_n("b") == 1


def test_a_forgotten_client_starts_over(journal: Journal) -> None:
    journal.append([entry("a", 7, base=7)])
    journal.trim(1)
    assert journal.forget_clients(0) == 1
    assert journal.append([entry("a", 1)]) == [Receipt(1, 2, 1)]
    assert journal.clients.receipt("a", 1) == Receipt(1, 2, 1)


def test_an_ended_client_is_forgotten_with_its_last_row(
    journal: Journal, open_journal: Callable[..., Journal]
) -> None:
    for n in (1, 2, 3):
        journal.append([entry("a", n, base=1), entry("b", n, base=1)])
    journal.end("a")
    journal.end("nobody")
    assert (journal.clients.unresolved("a"), journal.clients.names("a"), len(journal.clients)) == (0, 0, 2)
    assert journal.forget_clients(3600) == 0, "its rows are there, and would be taken for another's"
    with pytest.raises(BelowBase):
        journal.clients.receipt("a", 2)
    journal.close()
    again = open_journal()
    assert (again.clients.unresolved("a"), again.clients.names("a"), again.clients.next_n("a")) == (0, 0, 4)
    again.trim(6)
    assert again.forget_clients(3600) == 1
    assert "a" not in again.clients
    assert (again.clients.unresolved("b"), again.clients.next_n("b")) == (3, 4), "who has not ended is remembered"


def test_an_ended_client_with_rows_can_continue(journal: Journal) -> None:
    journal.append([entry("a", 1), entry("a", 2)])
    journal.end("a")
    journal.append([entry("a", journal.clients.next_n("a"))])
    assert (journal.clients.names("a"), journal.clients.unresolved("a")) == (1, 1)
    journal.trim(3)
    assert journal.forget_clients(3600) == 0


def test_an_end_that_cannot_be_stored_changes_nothing(journal: Journal) -> None:
    journal.append([entry("a", 1, base=1)])
    journal._db.execute("PRAGMA query_only = ON")
    with pytest.raises((Unavailable, sqlite3.OperationalError)):
        journal.end("a")
    journal._db.execute("PRAGMA query_only = OFF")
    assert (journal.clients.names("a"), journal.clients.unresolved("a")) == (1, 1)


# --- keys ---------------------------------------------------------------------------------------------------------

KEYS = ["k" * 40, "l" * 40]


def test_the_same_name_under_two_keys_is_two_clients(journal: Journal, open_journal: OpenJournal) -> None:
    clients = ["anna", *(identity.join(key, "anna") for key in KEYS)]
    for n in (1, 2):
        journal.append([entry(client, n, base=1) for client in clients])
    journal.append([entry(clients[1], 3)])
    journal.close()
    again = open_journal()
    assert [again.clients.next_n(client) for client in clients] == [3, 4, 3]
    assert [again.clients.receipt(client, 2) for client in (clients[0], clients[2])] == [
        Receipt(2, 4, 1),
        Receipt(2, 6, 1),
    ]
    with pytest.raises(BelowBase, match=f"client 'anna' of key '{KEYS[0]}' is below its base 3"):
        again.clients.receipt(clients[1], 2)


def test_limits_of_a_key_count_all_its_names(journal: Journal, open_journal: OpenJournal) -> None:
    one, two, other = (identity.join(key, name) for key, name in ((KEYS[0], "a"), (KEYS[0], "b"), (KEYS[1], "a")))
    owner = identity.owner(one)
    assert owner == identity.owner(two) != identity.owner(other)
    assert identity.owner("a") == "a", "without a key, everybody for himself"
    assert identity.owner(KEYS[0]) != owner, "a name that looks like a key is none"

    def counted(journal: Journal) -> list[int]:
        return [
            journal.clients.names(owner),
            journal.clients.unresolved(owner),
            journal.clients.names(identity.owner(other)),
        ]

    journal.append([entry(one, n, base=1) for n in (1, 2, 3)] + [entry(two, 1), entry(other, 1)])
    assert counted(journal) == counted(open_journal()) == [2, 4, 1]
    journal.append([entry(one, 4, base=4)])
    assert counted(journal) == counted(open_journal()) == [2, 2, 1]
    journal.trim(5)
    assert journal.forget_clients(0) == 2, "the first one still has a row"
    assert counted(journal) == counted(open_journal()) == [1, 1, 0]


# --- skipped samples -------------------------------------------------------------------------------


def test_skips_are_durable_and_overlapping_ones_are_merged(
    journal: Journal, open_reader: Callable[[Path], Reader]
) -> None:
    journal.append([entry("a", 1, samples=30)])
    for skip in (Skip(5, 9), Skip(20, 30), Skip(8, 12), Skip(13, 13), Skip(5, 6)):
        skips.add(journal.path, skip)
    found = open_reader(journal.path).skips
    assert found.ranges == [Skip(5, 13), Skip(20, 30)]
    assert [found.after(seq) for seq in (0, 4, 12, 13, 29, 30)] == [
        Skip(5, 13),
        Skip(5, 13),
        Skip(5, 13),
        Skip(20, 30),
        Skip(20, 30),
        None,
    ]
    assert [found.count(seq) for seq in (0, 4, 5, 13, 19, 20, 99)] == [0, 0, 1, 9, 9, 10, 20]


@pytest.mark.parametrize("row", [(1, "x"), (0, 1), (2, 1), (1, 1_000_000)])
def test_an_invalid_skip_is_damage(
    journal: Journal, open_reader: Callable[[Path], Reader], row: tuple[Any, Any]
) -> None:
    journal.append([entry("a", 1, samples=10)])
    connection = sqlite3.connect(journal.path)
    connection.execute("INSERT INTO skips VALUES (?, ?)", row)
    connection.commit()
    connection.close()
    with pytest.raises(JournalDamaged, match="skipped"):
        open_reader(journal.path)


def test_a_journal_locked_by_another_program_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path, inputs=INPUTS, labels=LABELS).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(database, "_BUSY_MS", 10)
    with pytest.raises(Unavailable, match="locked") as caught:
        Journal(path, inputs=INPUTS, labels=LABELS)
    assert caught.value.hint
    other.close()
