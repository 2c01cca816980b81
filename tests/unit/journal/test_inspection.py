import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ffstream.cli import main
from ffstream.errors import ConfigError, JournalDamaged, JournalIncompatible
from ffstream.journal import identity
from ffstream.journal.inspection import Findings, Summary, opened, summarize
from ffstream.journal.journal import Journal
from ffstream.journal.origin import Origin
from ffstream.journal.verification import Verification
from tests.support import folder_contents
from tests.unit.journal.entries import crash_image, entry

OpenJournal = Callable[..., Journal]


def stat(path: Path) -> Summary:
    with opened(path) as connection:
        return summarize(connection)


def verify(path: Path) -> Verification:
    with opened(path) as connection:
        verification = Verification(connection)
        verification.run()
        return verification


def listed(findings: Findings) -> list[tuple[str, int, int]]:
    return [(problem[0], problem[1], problem[2]) for problem in findings.named]


def spoil(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(statement, values).rowcount > 0
    connection.commit()
    connection.close()


@pytest.fixture
def ten(tmp_path: Path) -> Journal:
    """Ten messages of three samples: 1-3, 4-6, … 28-30. The journal is open, as while a daemon runs."""
    (tmp_path / "state").mkdir()
    journal = Journal(tmp_path / "state" / "journal.sqlite", inputs=4, labels=11)
    journal.append([entry("ab"[n % 2], n, samples=3) for n in range(1, 11)])
    return journal


@pytest.fixture
def closed(ten: Journal) -> Path:
    ten.close()
    return ten.path


def test_summarize_reports_what_the_journal_holds(ten: Journal) -> None:
    ten.append([entry("a", 11, base=1)])
    ten.trim(6)
    summary = stat(ten.path)
    assert summary.meta == {"version": 4, "inputs": 4, "labels": 11, "next_seq": 32, "clock_s": 1, "closed": 0}
    assert (summary.messages, summary.samples) == (9, 25)
    assert (summary.first_seq, summary.last_seq, summary.next_seq) == (7, 31, 32)
    assert (summary.clients, summary.by_client) == (2, {"a": 13, "b": 12})
    assert summary.used_bytes == ten.bytes_used()
    assert listed(summary.findings) == []
    assert listed(verify(ten.path).findings) == []
    ten.close()


def test_an_empty_journal_is_whole(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.sqlite", inputs=4, labels=10).close()
    summary = stat(tmp_path / "journal.sqlite")
    assert (summary.messages, summary.samples, summary.next_seq) == (0, 0, 1)
    assert listed(summary.findings) == listed(verify(tmp_path / "journal.sqlite").findings) == []


def test_a_fully_trimmed_journal_is_whole_and_keeps_its_next_number(ten: Journal) -> None:
    ten.trim(30)
    ten.close()
    assert stat(ten.path).next_seq == 31
    assert listed(verify(ten.path).findings) == []


# --- nothing is changed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["killed", "copied with its log", "closed"])
def test_inspection_changes_nothing(ten: Journal, left: str, tmp_path: Path) -> None:
    """A journal that another process has open is tested with the commands: SQLite shares the -shm file in a
    process."""
    path = ten.path if left == "closed" else crash_image(ten.path, tmp_path / "image")
    if left == "killed":  # SQLite would create this file again
        shutil.copy(ten.path.with_name("journal.sqlite-shm"), path.parent)
    ten.close()
    before = folder_contents(path.parent)
    assert stat(path).samples == 30
    assert verify(path).samples == 30
    assert folder_contents(path.parent) == before


def test_a_read_only_folder_can_be_inspected(ten: Journal, tmp_path: Path) -> None:
    image = crash_image(ten.path, tmp_path / "image")
    image.parent.chmod(0o500)
    try:
        assert verify(image).samples == 30
    finally:
        image.parent.chmod(0o700)
    ten.close()


def test_a_writer_is_not_blocked_by_an_inspection(ten: Journal) -> None:
    ten._db.execute("PRAGMA busy_timeout = 0")
    with opened(ten.path) as connection:
        verification = Verification(connection)
        grown: list[int] = []

        def grow(samples: int) -> None:
            if not grown:
                grown.append(ten.append([entry("a", 12, samples=300)])[0].first_seq)
                ten.trim(25)

        verification.run(grow)
    assert grown == [31]
    assert listed(verification.findings) == []
    ten.close()


def test_rows_that_are_trimmed_meanwhile_are_not_missing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", inputs=4, labels=10)
    journal.append([entry("a", n) for n in range(1, 1001)])

    def trim(samples: int) -> None:
        journal.trim(600, rows=600)

    with opened(journal.path) as connection:
        verification = Verification(connection)
        verification.run(trim)
    assert listed(verification.findings) == []
    assert verification.samples == 256 + 400
    journal.close()


def test_a_missing_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no journal") as caught, opened(tmp_path / "journal.sqlite"):
        pass
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"hello" * 100, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_file_that_is_not_a_database_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    with pytest.raises(JournalDamaged) as caught, opened(tmp_path / "journal.sqlite"):
        pass
    assert caught.value.hint


# --- damage ---------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[str, list[tuple[str, int, int]]]] = {
    "a row is gone": ("DELETE FROM messages WHERE first_seq = 13", [("are missing", 13, 15)]),
    "the last row is gone after a trim": (
        "DELETE FROM messages WHERE first_seq = 28",
        [("are missing at the end", 28, 30)],
    ),
    "an image": (
        "UPDATE messages SET images = zeroblob(12) WHERE first_seq = 4",
        [("have a wrong checksum", 4, 6)],
    ),
    "labels": ("UPDATE messages SET labels = x'000000000000' WHERE n = 2", [("have a wrong checksum", 4, 6)]),
    "a checksum": ("UPDATE messages SET crc = crc + 1 WHERE n = 10", [("have a wrong checksum", 28, 30)]),
    "a count": ("UPDATE messages SET count = 5 WHERE n = 2", [("have a wrong checksum", 4, 8)]),
    "a message twice": (
        "UPDATE messages SET n = 3, client = 'b' WHERE n = 5",
        [("message 3 of 'b' is stored twice", 13, 13)],
    ),
    "a receipt for a row": (
        "INSERT INTO receipts VALUES ('b', 3, 7, 3, 0)",
        [
            ("message 3 of 'b' is stored and has a receipt", 7, 7),
            ("the receipt of message 3 of 'b' has impossible sample numbers", 0, 0),
        ],
    ),
    "a receipt beyond": (
        "INSERT INTO receipts VALUES ('c', 1, 700, 3, 0)",
        [("the receipt of message 1 of 'c' has impossible sample numbers", 0, 0)],
    ),
    "a message number": (
        "UPDATE messages SET n = -1 WHERE n = 10",
        [("are in a message without a count or a number", 28, 30)],
    ),
    "next_seq": ("UPDATE meta SET value = 40 WHERE key = 'next_seq'", [("are missing at the end", 31, 39)]),
    "version": ("UPDATE meta SET value = 'x' WHERE key = 'version'", [("the table meta has no version", 0, 0)]),
    "no inputs": ("DELETE FROM meta WHERE key = 'inputs'", [("the table meta has no inputs", 0, 0)]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(closed: Path, name: str) -> None:
    statement, problems = DAMAGES[name]
    if "after a trim" in name:
        spoil(closed, "UPDATE meta SET value = 31 WHERE key = 'next_seq'")
    spoil(closed, statement)
    assert listed(verify(closed).findings) == problems


@pytest.mark.parametrize("table", ["messages", "receipts", "clients", "meta"])
def test_a_missing_table_is_reported(closed: Path, table: str) -> None:
    connection = sqlite3.connect(closed)
    connection.execute(f"DROP TABLE {table}")
    connection.close()
    assert stat(closed).findings.count
    if table != "clients":  # nothing else refers to it
        assert verify(closed).findings.count


@pytest.mark.parametrize("version", [3, 9])
def test_another_version_is_an_error_and_not_damage(closed: Path, version: int) -> None:
    spoil(closed, f"UPDATE meta SET value = {version} WHERE key = 'version'")
    for read in (stat, verify):
        with pytest.raises(
            JournalIncompatible, match=f"has format version {version}, and this ffstream reads version 4"
        ):
            read(closed)
    shown = CliRunner().invoke(main, ["journal", "verify", "--state", str(closed.parent)])
    assert (shown.exit_code, "hint: use the " in shown.output) == (2, True)


def test_the_origin_of_the_stream_is_shown(ten: Journal) -> None:
    def shown() -> tuple[str, str | None]:
        command = ["journal", "stat", "--state", str(ten.path.parent)]
        text = " ".join(CliRunner().invoke(main, command).output.split())
        return text, json.loads(CliRunner().invoke(main, [*command, "--json"]).output)["origin"]

    assert ("started from random weights" in shown()[0], shown()[1]) == (True, None)
    ten.begin_from(Origin("/srv/w.safetensors", "1234"))
    assert ("started from /srv/w.safetensors" in shown()[0], shown()[1]) == (True, "/srv/w.safetensors")
    ten.close()


def test_additional_tables_and_columns_are_ignored(closed: Path) -> None:
    connection = sqlite3.connect(closed)
    connection.execute("CREATE TABLE more (what TEXT)")
    connection.execute("ALTER TABLE messages ADD COLUMN more TEXT")
    connection.close()
    assert listed(stat(closed).findings) == listed(verify(closed).findings) == []


def test_summarize_finds_gaps_without_reading_images(closed: Path) -> None:
    spoil(closed, "DELETE FROM messages WHERE first_seq IN (4, 13, 16)")
    summary = stat(closed)
    assert [tuple(gap) for gap in summary.gaps] == [(4, 6), (13, 18)]
    assert summary.findings.samples == 9


def test_many_problems_are_counted_and_the_first_ones_listed(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, inputs=4, labels=10)
    journal.append([entry("a", n) for n in range(1, 601)])
    journal.close()
    spoil(path, "UPDATE messages SET crc = 1")
    findings = verify(path).findings
    assert (findings.count, findings.samples, len(findings.named)) == (600, 600, 20)


def test_rows_after_a_damaged_page_are_still_verified(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, inputs=4, labels=10)
    journal.append([entry("a", n) for n in range(1, 2001)])
    journal.close()
    content = bytearray(path.read_bytes())
    row = entry("a", 1000)
    page = next(at for at in range(0, len(content), 8192) if row.labels + row.images in content[at : at + 8192])
    content[page : page + 100] = bytes(100)
    path.write_bytes(content)
    verification = verify(path)
    (first, *_) = verification.findings.named
    assert first.what.startswith("cannot be read")
    assert 500 < first.first_seq <= 1000
    assert verification.last_seq == 2000
    assert 1000 < verification.samples < 2000


def test_a_client_is_shown_with_its_key(ten: Journal) -> None:
    ten.append([entry(identity.join("k" * 40, "x\n"), samples=50)])
    folder = str(ten.path.parent)
    shown = CliRunner().invoke(main, ["journal", "stat", "--state", folder])
    assert rf"'x\n' of key '{'k' * 40}' 50, 'b' 15, 'a' 15" in " ".join(shown.output.split())
    as_json = json.loads(CliRunner().invoke(main, ["journal", "stat", "--state", folder, "--json"]).output)
    assert as_json["largest_clients"][0] == {"key": "k" * 40, "client": "x\n", "samples": 50}


def test_control_characters_in_client_names_are_escaped(ten: Journal) -> None:
    ten.append([entry("x\n\x1b[2J\x9b\u202e", samples=5)])
    shown = CliRunner().invoke(main, ["journal", "stat", "--state", str(ten.path.parent)])
    assert shown.exit_code == 0
    assert r"'x\n\x1b[2J\x9b\u202e' 5" in shown.output
    assert all(line.isprintable() for line in shown.output.split("\n"))
