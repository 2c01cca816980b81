"""A journal without its -wal file is rejected if and only if that file may hold commits."""

import resource
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from ffstream.cli import main
from ffstream.errors import DiskFull, JournalDamaged, JournalIncompatible
from ffstream.journal import clean_close
from ffstream.journal.journal import Journal
from tests.support import folder_contents
from tests.unit.journal.entries import INPUTS, LABELS, crash_image, entry

OpenJournal = Callable[..., Journal]


@pytest.fixture
def journal(tmp_path: Path, open_journal: OpenJournal) -> Journal:
    """An open journal with three samples, all in the -wal file."""
    (tmp_path / "state").mkdir()
    made = open_journal(tmp_path / "state" / "journal.sqlite")
    made.append([entry("a", n) for n in (1, 2, 3)])
    return made


def copy_alone(journal: Journal, folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copy(journal.path, folder / "journal.sqlite"))


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def log_of(path: Path) -> Path:
    return path.with_name("journal.sqlite-wal")


def test_a_copy_without_wal_is_rejected_and_not_changed(journal: Journal, tmp_path: Path) -> None:
    copy = copy_alone(journal, tmp_path / "copy")
    before = folder_contents(copy.parent)
    with pytest.raises(JournalDamaged, match=r"journal\.sqlite-wal is missing: acked samples may be lost") as caught:
        Journal(copy, inputs=INPUTS, labels=LABELS)
    assert "ffstream backup" in caught.value.hint
    assert "ffstream journal accept" in caught.value.hint
    for command in ("stat", "verify"):
        code, output = run("journal", command, "--state", str(copy.parent))
        assert (code, "journal.sqlite-wal is missing" in output) == (1, True)
        assert "ffstream journal accept" in output
    assert folder_contents(copy.parent) == before


def test_files_left_by_a_crash_are_whole_with_their_wal(
    journal: Journal, tmp_path: Path, open_journal: OpenJournal
) -> None:
    image = crash_image(journal.path, tmp_path / "image")
    assert run("journal", "verify", "--state", str(image.parent))[0] == 0
    assert open_journal(image).head.seq == 3


def test_files_left_by_a_crash_are_whole_with_an_empty_wal(
    journal: Journal, tmp_path: Path, open_journal: OpenJournal
) -> None:
    """Killed right after the log was folded, or before the first sample."""
    assert journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert log_of(journal.path).stat().st_size == 0
    assert open_journal(crash_image(journal.path, tmp_path / "image")).head.seq == 3


def test_main_file_alone_is_whole_after_clean_close(
    journal: Journal, tmp_path: Path, open_journal: OpenJournal
) -> None:
    journal.close()
    assert not log_of(journal.path).exists()
    again = open_journal(copy_alone(journal, tmp_path / "copy"))
    assert again.head.seq == 3
    again.append([entry("a", 4)])
    with pytest.raises(JournalDamaged, match="-wal is missing"):
        open_journal(copy_alone(again, tmp_path / "copy of the copy"))


def test_a_new_journal_copied_without_wal_is_rejected(tmp_path: Path, open_journal: OpenJournal) -> None:
    fresh = open_journal()
    with pytest.raises(JournalDamaged, match="-wal is missing"):
        open_journal(copy_alone(fresh, tmp_path / "copy"))


@contextmanager
def no_writes() -> Iterator[None]:
    """The disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_close_on_full_disk_leaves_wal(journal: Journal, tmp_path: Path, open_journal: OpenJournal) -> None:
    with no_writes():
        journal.close()
    assert log_of(journal.path).exists()
    assert open_journal(crash_image(journal.path, tmp_path / "image")).head.seq == 3


def test_open_on_full_disk_works(
    journal: Journal, open_journal: OpenJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon can still predict when it cannot store samples."""
    journal.close()

    def full(*arguments: object, **options: object) -> None:
        raise DiskFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(clean_close, "_mark", full)
        again = open_journal(journal.path)
    assert again.append([entry("a", 4)])[0].first_seq == 4


def test_second_close_does_nothing(journal: Journal) -> None:
    journal.close()
    before = folder_contents(journal.path.parent)
    journal.close()
    assert folder_contents(journal.path.parent) == before


def test_refused_open_after_crash_keeps_wal(journal: Journal, tmp_path: Path, open_journal: OpenJournal) -> None:
    image = crash_image(journal.path, tmp_path / "image")
    for _ in range(2):
        with pytest.raises(JournalIncompatible, match="labels"):
            Journal(image, inputs=INPUTS, labels=LABELS + 1)
    assert open_journal(image).head.seq == 3


def test_reader_at_close_does_not_matter(journal: Journal, tmp_path: Path, open_journal: OpenJournal) -> None:
    reader = sqlite3.connect(journal.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM messages").fetchone()
    journal.close()
    image = crash_image(journal.path, tmp_path / "image")
    reader.close()
    assert open_journal(image).head.seq == 3
    assert open_journal(journal.path).head.seq == 3


def test_journal_whose_wal_another_program_folded_can_be_accepted(
    journal: Journal, tmp_path: Path, open_journal: OpenJournal
) -> None:
    image = crash_image(journal.path, tmp_path / "image")
    shell = sqlite3.connect(image)
    assert shell.execute("SELECT count(*) FROM messages").fetchone() == (3,)
    shell.close()
    with pytest.raises(JournalDamaged, match="-wal is missing"):
        open_journal(image)
    code, output = run("journal", "accept", "--state", str(image.parent))
    assert (code, "its last sample is 3" in output) == (0, True)
    assert "nothing to accept" in run("journal", "accept", "--state", str(image.parent))[1]
    assert open_journal(image).head.seq == 3


def test_opening_does_not_wait_for_readers(journal: Journal, open_journal: OpenJournal) -> None:
    journal.close()
    reader = sqlite3.connect(journal.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM messages").fetchone()
    start = time.monotonic()
    again = open_journal(journal.path)
    assert time.monotonic() - start < 5.0, "SQLite's busy timeout is 10 s"
    assert again._db.execute("PRAGMA busy_timeout").fetchone() == (10_000,)
    reader.close()


def test_accept_needs_a_journal(tmp_path: Path) -> None:
    assert run("journal", "accept", "--state", str(tmp_path / "none"))[0] == 2
    assert list(tmp_path.iterdir()) == []
