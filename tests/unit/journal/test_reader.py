import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ffstream.errors import FFStreamError, JournalDamaged, Unavailable
from ffstream.journal.journal import Journal
from ffstream.journal.reader import Reader, Row
from tests.unit.journal.entries import entry

OpenReader = Callable[[Path], Reader]


def spoil(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(statement, values).rowcount > 0
    connection.commit()
    connection.close()


@pytest.fixture
def ten(journal: Journal) -> Journal:
    """Ten messages of three samples: 1-3, 4-6, … 28-30."""
    journal.append([entry("ab"[n % 2], n, samples=3) for n in range(1, 11)])
    return journal


def test_rows_are_read_in_order(ten: Journal, open_reader: OpenReader) -> None:
    sent = [entry("ab"[n % 2], n, samples=3) for n in range(1, 11)]
    assert open_reader(ten.path).read(0, 1000) == [
        Row(3 * index + 1, 3, each.dtype, each.labels, each.images) for index, each in enumerate(sent)
    ]


@pytest.mark.parametrize(
    ("beyond", "max_samples", "firsts"),
    [
        (0, 1, [1]),
        (0, 3, [1]),
        (0, 4, [1, 4]),
        (0, 7, [1, 4, 7]),
        (1, 2, [1]),
        (1, 3, [1, 4]),
        (2, 1, [1]),
        (3, 1, [4]),
        (26, 1000, [25, 28]),
        (27, 1000, [28]),
        (29, 1000, [28]),
        (30, 1000, []),
        (1000, 1000, []),
    ],
)
def test_reading_can_start_and_end_anywhere(
    ten: Journal, open_reader: OpenReader, beyond: int, max_samples: int, firsts: list[int]
) -> None:
    assert [row.first_seq for row in open_reader(ten.path).read(beyond, max_samples)] == firsts


def test_consecutive_reads_return_every_sample_once(ten: Journal, open_reader: OpenReader) -> None:
    reader = open_reader(ten.path)
    beyond = 0
    seen: list[int] = []
    while rows := reader.read(beyond, 5):
        for row in rows:
            seen += range(max(row.first_seq, beyond + 1), row.first_seq + row.samples)
            beyond = seen[-1]
    assert seen == list(range(1, 31))


def test_a_reader_sees_later_commits(ten: Journal, open_reader: OpenReader) -> None:
    reader = open_reader(ten.path)
    assert reader.read(30, 100) == []
    ten.append([entry("a", 11)])
    assert [row.first_seq for row in reader.read(30, 100)] == [31]


def test_a_reader_holds_no_lock_between_reads(ten: Journal, open_reader: OpenReader) -> None:
    reader = open_reader(ten.path)
    assert reader.read(0, 1)
    ten._db.execute("PRAGMA busy_timeout = 0")
    busy, _, _ = ten._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0


def test_a_reader_cannot_write(ten: Journal, open_reader: OpenReader) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        open_reader(ten.path)._db.execute("DELETE FROM messages")


@pytest.mark.parametrize(
    ("beyond", "gone", "missing"),
    [(0, 13, "13 to 15"), (12, 13, "13 to 15"), (0, 1, "1 to 3"), (1, 1, "2 to 3"), (14, 13, "15 to 15")],
)
def test_missing_rows_are_damage(ten: Journal, open_reader: OpenReader, beyond: int, gone: int, missing: str) -> None:
    spoil(ten.path, "DELETE FROM messages WHERE first_seq = ?", gone)
    with pytest.raises(JournalDamaged, match=f"samples {missing} are missing") as caught:
        open_reader(ten.path).read(beyond, 1000)
    assert caught.value.hint


def test_a_gap_does_not_affect_reads_before_it(ten: Journal, open_reader: OpenReader) -> None:
    spoil(ten.path, "DELETE FROM messages WHERE first_seq = 13")
    assert [row.first_seq for row in open_reader(ten.path).read(0, 12)] == [1, 4, 7, 10]
    assert [row.first_seq for row in open_reader(ten.path).read(15, 6)] == [16, 19]


@pytest.mark.parametrize("column", ["images", "labels"])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_flipped_bit_in_a_blob_is_detected(ten: Journal, open_reader: OpenReader, column: str, at: int) -> None:
    ((blob,),) = ten._db.execute(f"SELECT {column} FROM messages WHERE first_seq = 4").fetchall()
    flipped = bytes(byte ^ (0x10 if index == at else 0) for index, byte in enumerate(blob))
    spoil(ten.path, f"UPDATE messages SET {column} = ? WHERE first_seq = 4", flipped)
    reader = open_reader(ten.path)
    with pytest.raises(JournalDamaged, match="samples 4 to 6 have a wrong checksum") as caught:
        reader.read(0, 1000)
    assert caught.value.hint
    assert [row.first_seq for row in reader.read(0, 3)] == [1]


@pytest.mark.parametrize(
    "change",
    [
        "images = CAST('abcdefghijkl' AS TEXT)",
        "labels = 'abcdef'",
        "images = 5",
        "dtype = 'uint9'",
        "dtype = 'float32'",
        "dtype = 1",
        "dtype = x'00'",
        "count = 2",
        "count = 4",
        "count = 0",
        "count = -3",
        "count = 'x'",
        "count = 3.5",
        "crc = 'x'",
        "crc = crc + 1",
        "crc = 0.5",
    ],
)
@pytest.mark.parametrize("first_seq", [4, 28])
def test_an_impossible_row_is_damage(ten: Journal, open_reader: OpenReader, change: str, first_seq: int) -> None:
    spoil(ten.path, f"UPDATE messages SET {change} WHERE first_seq = {first_seq}")
    with pytest.raises(JournalDamaged) as caught:
        open_reader(ten.path).read(0, 1000)
    assert caught.value.hint


@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_bit_in_the_file_is_detected_or_harmless(seed: int, tmp_path: Path) -> None:
    """Each byte of the pages with rows is damaged in turn. Only what was sent is ever returned."""
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, inputs=4, labels=10)
    journal.append([entry("client", n, samples=n) for n in range(1, 9)])
    journal.close()
    good = path.read_bytes()
    reader = Reader(path)
    rows = reader.read(0, 1000)
    reader.close()
    page = next(at for at in range(0, len(good), 8192) if rows[-1].images in good[at : at + 8192])
    used = [at for at in range(page, page + 8192) if good[at]]
    damaged = 0
    for at in used[seed::3]:
        spoiled = bytearray(good)
        spoiled[at] ^= 1 << (at + seed) % 8
        path.write_bytes(spoiled)
        try:
            reader = Reader(path)
            try:
                found = reader.read(0, 1000)
            finally:
                reader.close()
        except JournalDamaged:
            damaged += 1
        else:
            assert found == rows[: len(found)], f"byte {at - page} of the page"
    assert damaged > len(used) // 6


class BadDisk:
    """A connection that raises one kind of disk error."""

    def __init__(self, code: int) -> None:
        self._error = sqlite3.OperationalError("disk I/O error")
        self._error.sqlite_errorcode = code

    def execute(self, *_: object) -> None:
        raise self._error

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_IOERR_SHMSIZE, Unavailable),
        (sqlite3.SQLITE_IOERR_LOCK, Unavailable),
        (sqlite3.SQLITE_BUSY, Unavailable),
        (sqlite3.SQLITE_CANTOPEN, Unavailable),
        (sqlite3.SQLITE_IOERR_READ, JournalDamaged),
        (sqlite3.SQLITE_IOERR_SHORT_READ, JournalDamaged),
        (sqlite3.SQLITE_CORRUPT, JournalDamaged),
        (sqlite3.SQLITE_ERROR, JournalDamaged),
    ],
)
def test_environment_errors_are_not_reported_as_damage(
    ten: Journal, open_reader: OpenReader, code: int, kind: type[FFStreamError]
) -> None:
    reader = open_reader(ten.path)
    reader._db.close()
    reader._db = BadDisk(code)  # type: ignore[assignment]
    with pytest.raises(kind, match=r"journal\.sqlite: disk I/O error") as caught:
        reader.read(0, 1000)
    assert caught.value.hint
