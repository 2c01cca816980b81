"""Whatever happens to the files of a journal, reading them returns what was written or raises JournalDamaged."""

import shutil
import sqlite3
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffstream.errors import BelowBase, FFStreamError, JournalDamaged, JournalIncompatible
from ffstream.journal import schema
from ffstream.journal.inspection import opened, summarize
from ffstream.journal.journal import Entry, Journal
from ffstream.journal.reader import Reader, Row
from ffstream.journal.verification import Verification
from tests.unit.journal.entries import crash_image, entry

INPUTS, LABELS, PAGE = 100, 10, 8192
TRIMMED = 8
few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Copies:
    """A journal with many pages, once closed cleanly and once as power loss leaves it. Each test gets a new copy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "try" / "journal.sqlite"
        journal = Journal(folder / "journal.sqlite", inputs=INPUTS, labels=LABELS)
        sent = [entry("ab"[n % 2], n, base=1, samples=n % 3 + 1, size=INPUTS) for n in range(1, 201)]
        receipts = journal.append(sent[:150])
        journal.trim(TRIMMED)
        journal._db.execute(
            "PRAGMA wal_checkpoint(TRUNCATE)"
        )  # so that some pages are in the main file and some in the log
        for at in range(150, 200, 10):
            receipts += journal.append(sent[at : at + 10])
        crash_image(journal.path, folder / "crash")
        journal.close()
        (folder / "closed").mkdir()
        shutil.move(journal.path, folder / "closed" / "journal.sqlite")
        self.rows = {
            receipt.first_seq: Row(receipt.first_seq, each.samples, each.dtype, each.labels, each.images)
            for receipt, each in zip(receipts, sent, strict=True)
        }
        self.end = receipts[-1].first_seq + receipts[-1].samples - 1

    def take(self, which: str) -> Path:
        """A new, undamaged copy."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        shutil.copytree(self._folder / which, self.path.parent)
        return self.path


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    return Copies(tmp_path_factory.mktemp("journal"))


def read_all(path: Path) -> tuple[int, list[Row]]:
    """The last sample in the journal, and the rows that a daemon reads after the trimmed samples."""
    with closing(Journal(path, inputs=INPUTS, labels=LABELS)) as journal, closing(Reader(path)) as reader:
        rows: list[Row] = []
        beyond = TRIMMED
        while more := reader.read(beyond, 50):
            rows += more
            beyond = more[-1].first_seq + more[-1].samples - 1
        for client in ("a", "b", "c"):
            for n in range(0, journal.clients.next_n(client) + 2 if journal.clients.next_n(client) < 300 else 0, 7):
                with suppress(BelowBase):
                    journal.clients.receipt(client, n)
        end = journal.head.seq
        journal.trim(TRIMMED + 5)
        journal.append([Entry("c", 1, 1, 1, "uint8", b"\0\0", bytes(INPUTS))])
    return end, rows


def check(copies: Copies) -> int | None:
    """The last sample that is read; None if damage is reported. Asserts that what is read is correct and has no
    gap."""
    look(copies.path)
    try:
        end, rows = read_all(copies.path)
    except (JournalDamaged, JournalIncompatible) as error:  # a damaged number may look like another network's
        assert error.hint  # noqa: PT017 - it is not always raised
        return None
    assert all(row == copies.rows[row.first_seq] for row in rows)
    assert all(after.first_seq == row.first_seq + row.samples for row, after in pairwise(rows))
    assert not rows or end == rows[-1].first_seq + rows[-1].samples - 1
    return end


def look(path: Path) -> None:
    """The inspection commands must terminate, too."""
    with suppress(FFStreamError), opened(path) as connection:
        summarize(connection)
        Verification(connection).run()


@pytest.mark.parametrize("which", ["closed", "crash"])
def test_an_undamaged_journal_returns_all_rows(copies: Copies, which: str) -> None:
    copies.take(which)
    assert check(copies) == copies.end


def edit(path: Path, data: st.DataObject) -> None:
    """Flips bits, cuts the file, swaps pages, overwrites bytes."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        what = data.draw(st.sampled_from(["flip", "flip", "header", "cut", "swap", "zero", "write"]))
        pages = max(1, len(content) // PAGE)
        page = PAGE * data.draw(st.integers(0, pages - 1))
        if what == "cut":
            del content[data.draw(st.integers(0, len(content))) :]
        elif what == "swap":
            other = PAGE * data.draw(st.integers(0, pages - 1))
            one, two = content[page : page + PAGE], content[other : other + PAGE]
            content[page : page + PAGE], content[other : other + PAGE] = two, one
        elif what == "zero":
            content[page : page + PAGE] = bytes(len(content[page : page + PAGE]))
        elif content:
            reach = 120 if what == "header" else PAGE  # the page header
            at = min(page + data.draw(st.integers(0, reach - 1)), len(content) - 1)
            if what == "write":
                content[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
            else:
                content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)


def test_a_header_that_makes_the_file_read_only_is_damage(copies: Copies) -> None:
    path = copies.take("closed")
    content = bytearray(path.read_bytes())
    assert content[18] == 2
    content[18] = 3
    path.write_bytes(content)
    with pytest.raises(JournalDamaged, match="its header"):
        read_all(path)


@few
@given(which=st.sampled_from(["closed", "crash"]), data=st.data())
def test_any_damage_to_the_file_is_detected_or_harmless(copies: Copies, which: str, data: st.DataObject) -> None:
    edit(copies.take(which), data)
    check(copies)


@few
@given(data=st.data())
def test_any_damage_to_the_log_is_detected_or_loses_its_end(copies: Copies, data: st.DataObject) -> None:
    """SQLite reads the log up to the first damaged frame, so only the last samples are lost."""
    path = copies.take("crash")
    edit(path.with_name("journal.sqlite-wal"), data)
    end = check(copies)
    assert end is None or end <= copies.end


values = st.sampled_from(
    ["NULL", "'x'", "x'00ff'", "0", "-1", "1.5", "9e999", "4611686018427387905", "CAST(x'ff' AS TEXT)"]
)
columns = st.sampled_from(
    [
        *(("messages", name) for name in ("count", "client", "n", "dtype", "crc", "labels", "images", "first_seq")),
        *(("receipts", name) for name in ("client", "n", "first_seq", "count", "crc")),
        *(("clients", name) for name in ("client", "base", "seen")),
        *(("meta", name) for name in ("key", "value")),
    ]
)


@few
@given(which=st.sampled_from(["closed", "crash"]), column=columns, value=values, at=st.integers(0, 200))
def test_any_value_in_any_column_is_detected_or_harmless(
    copies: Copies, which: str, column: tuple[str, str], value: str, at: int
) -> None:
    path = copies.take(which)
    table, name = column
    connection = sqlite3.connect(path)
    key = connection.execute(f"SELECT * FROM {table}").description[0][0]
    with suppress(sqlite3.Error):  # SQLite rejects some of them
        connection.execute(
            f"UPDATE OR REPLACE {table} SET {name} = {value} WHERE {key} ="
            f" (SELECT {key} FROM {table} LIMIT 1 OFFSET ? % (SELECT count(*) FROM {table}))",
            (at,),
        )
        connection.commit()
    connection.close()
    check(copies)


@pytest.mark.parametrize("table", schema.TABLES)
def test_a_missing_table_is_damage(copies: Copies, table: str) -> None:
    connection = sqlite3.connect(copies.take("closed"))
    connection.execute(f"DROP TABLE {table}")
    connection.close()
    with pytest.raises(JournalDamaged, match=f"table {table} is missing"):
        read_all(copies.path)


@pytest.mark.parametrize("key", schema.META)
def test_a_missing_value_in_meta_is_damage(copies: Copies, key: str) -> None:
    connection = sqlite3.connect(copies.take("closed"))
    connection.execute("DELETE FROM meta WHERE key = ?", (key,))
    connection.commit()
    connection.close()
    with pytest.raises(JournalDamaged, match=f"{key} is missing"):
        read_all(copies.path)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM messages WHERE first_seq > (SELECT max(first_seq) FROM messages) - 9",
        "UPDATE meta SET value = 4611686018427387905 WHERE key = 'next_seq'",
        "UPDATE meta SET value = 0 WHERE key = 'next_seq'",
    ],
)
def test_samples_missing_at_the_end_are_detected_if_next_seq_shows_it(copies: Copies, statement: str) -> None:
    path = copies.take("closed")
    with closing(Journal(path, inputs=INPUTS, labels=LABELS)) as journal:
        journal.trim(TRIMMED + 20)
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(JournalDamaged, match="but next_seq is"):
        read_all(path)


@pytest.mark.parametrize("moment", range(5))
def test_a_crash_during_creation_leaves_a_valid_journal_or_none(tmp_path: Path, moment: int) -> None:
    journal = Journal(tmp_path / "journal.sqlite", inputs=INPUTS, labels=LABELS)
    image = crash_image(journal.path, tmp_path / "image")
    journal.close()
    log = image.with_name("journal.sqlite-wal")
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size * moment // 5)
    with closing(Journal(image, inputs=INPUTS, labels=LABELS)) as again:
        assert again.head.seq == 0


def test_a_cycle_of_pages_is_damage_and_not_an_endless_loop(copies: Copies) -> None:
    """A page of rows replaces a later one, so each of its rows is valid but appears twice."""
    path = copies.take("closed")
    content = path.read_bytes()
    rows = sorted(copies.rows.values())
    pages = [at for at in range(0, len(content), PAGE) if content[at] == 0x0D]  # leaf pages of tables
    held = {at: [row.first_seq for row in rows if row.labels + row.images in content[at : at + PAGE]] for at in pages}
    leaves = sorted((at for at in pages if len(held[at]) > 1), key=lambda at: held[at])
    assert len(leaves) > 2
    for one, other in ((0, 1), (1, 2), (0, 2), (2, 0)):
        spoiled = bytearray(content)
        spoiled[leaves[other] : leaves[other] + PAGE] = content[leaves[one] : leaves[one] + PAGE]
        path.write_bytes(spoiled)
        with opened(path) as connection:
            verification = Verification(connection)
            verification.run()
        assert verification.findings.count
        assert check(copies) is None


def test_damage_that_sqlite_quotes_need_not_be_valid_text(copies: Copies) -> None:
    """SQLite's message contains the damaged name of the table whose definition it cannot read."""
    path = copies.take("closed")
    content = path.read_bytes().replace(b"tablereceiptsreceipts", b"table\xffeceipts\xffeceipts")
    path.write_bytes(content.replace(b"CREATE TABLE receipts", b"CREATE TABLZ receipts"))
    assert check(copies) is None
    with pytest.raises(JournalDamaged):
        Reader(path)
