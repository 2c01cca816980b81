"""Backups of a state folder: with a daemon in this process, after it has ended, and of folders that are not whole."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffstream.checkpoint import manifest
from ffstream.daemon import backup
from ffstream.errors import ConfigError, DiskFull, FFStreamError, JournalDamaged
from ffstream.journal.clean_close import has_log
from tests.in_process import Running, images, labels
from tests.support import folder_contents, wait_until

WAIT_S = 30.0


def feed(running: Running, count: int, seed: int = 0) -> None:
    producer = running.producer()
    producer.send(images(count, seed), labels(count, seed), WAIT_S)
    producer.flush(WAIT_S)


def checkpoint(running: Running) -> None:
    control = running.control()
    control.wait_idle(WAIT_S)
    control.request("checkpoint", {"timeout_s": WAIT_S}, WAIT_S)


def restored(folder: Path) -> tuple[int, int, int]:
    """Accepted, learned and skipped of a daemon that is started on a backup."""
    with Running(folder, "checkpoint.keep=1") as running:
        running.control().request("resume")  # it is paused if it was
        status = running.control().wait_idle(WAIT_S)
        return status["accepted"], status["learned"], status["skipped"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Checkpoints 40 and 80, samples up to 120; the journal begins after 40 at the earliest."""
    with Running(tmp_path / "state", "checkpoint.keep=1") as made:
        for seed in range(2):
            feed(made, 40, seed)
            checkpoint(made)
        wait_until(lambda: made.daemon.journal.first_seq == 81, WAIT_S, "the journal is trimmed")
        made.control().request("pause")
        feed(made, 40, 2)
        yield made


def test_backup_of_a_daemon_that_runs_can_be_served(running: Running, tmp_path: Path) -> None:
    made = backup.make(running.state, tmp_path / "deep" / "backup")
    assert (made.checkpoint_seq, made.first_seq, made.last_seq) == (80, 81, 120)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["backup"]
    folder = tmp_path / "deep" / "backup"
    assert sorted(folder_contents(folder)) == [
        "backup.json",
        f"checkpoints/{80:020d}/manifest.json",
        f"checkpoints/{80:020d}/state.safetensors",
        "journal.sqlite",
    ]
    said = json.loads((folder / "backup.json").read_text())
    assert (said["format"], said["checkpoint_seq"], said["last_seq"]) == (1, 80, 120)
    assert folder.stat().st_mode & 0o077 == 0
    feed(running, 8, 3)
    assert restored(folder) == (120, 120, 0)


@pytest.mark.parametrize("keeps_log", [True, False])
def test_backup_of_a_daemon_that_has_ended(running: Running, tmp_path: Path, keeps_log: bool) -> None:
    """Stopped, or killed: then the last samples are in its -wal file."""
    image = tmp_path / "image"
    shutil.copytree(running.state, image)
    running.stop()
    state = image if keeps_log else running.state
    assert has_log(state / "journal.sqlite") == keeps_log
    made = backup.make(state, tmp_path / "backup")
    assert made.last_seq == 120
    assert restored(tmp_path / "backup") == (120, 120, 0)


def test_backup_before_the_first_checkpoint(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        running.control().request("pause")
        feed(running, 40)
        made = backup.make(running.state, tmp_path / "backup")
    assert (made.checkpoint_seq, made.first_seq, made.last_seq) == (0, 1, 40)
    assert restored(tmp_path / "backup") == (40, 40, 0)


def test_rollback_amid_a_backup_leaves_no_undone_checkpoint_in_it(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are open, so they could be copied; but their weights have learned what is to be skipped."""
    control = running.control()
    control.request("resume")
    control.wait_idle(WAIT_S)
    fingerprint = backup._fingerprint
    rolled_back: list[object] = []

    def roll_back_first(path: Path) -> object:
        if not rolled_back:
            rolled_back.append(control.request("rollback", {"to": 40, "later": "skip"}, WAIT_S))
        return fingerprint(path)

    monkeypatch.setattr(backup, "_fingerprint", roll_back_first)
    made = backup.make(running.state, tmp_path / "backup")
    assert (made.checkpoint_seq, made.last_seq) == (40, 120)
    assert restored(tmp_path / "backup") == (120, 40, 80)


def test_damaged_newest_checkpoint_is_left_out(tmp_path: Path) -> None:
    with Running(tmp_path / "state", "checkpoint.keep=2") as running:
        for seed in range(3):
            feed(running, 40, seed)
            checkpoint(running)
    state = manifest.folder_of(running.state / "checkpoints", 120) / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    assert backup.make(running.state, tmp_path / "backup").checkpoint_seq == 80
    assert restored(tmp_path / "backup") == (120, 120, 0)


def test_daemon_that_starts_amid_the_copy_of_a_closed_journal(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed journal is read without locks: what was read is thrown away."""
    running.stop()
    started: list[Running] = []
    copy = backup._copy_journal

    def start_first(source: sqlite3.Connection, path: Path, on_pages: backup.OnPages) -> None:
        if not started:
            started.append(Running(running.state, "checkpoint.keep=1"))
            feed(started[0], 8, 5)
        copy(source, path, on_pages)

    monkeypatch.setattr(backup, "_copy_journal", start_first)
    try:
        made = backup.make(running.state, tmp_path / "backup")
    finally:
        started[0].__exit__()
    assert made.last_seq == 128
    assert restored(tmp_path / "backup") == (128, 128, 0)


def refuse(state: Path, target: Path, kind: type[FFStreamError], match: str) -> None:
    """Nothing is left behind, and the state is as it was."""
    before, beside = folder_contents(state), sorted(target.parent.iterdir())
    with pytest.raises(kind, match=match) as caught:
        backup.make(state, target)
    assert caught.value.hint
    assert folder_contents(state) == before
    assert sorted(target.parent.iterdir()) == beside


def test_an_invalid_state_folder_or_target_is_rejected(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    shutil.copytree(running.state, image)
    running.stop()
    refuse(tmp_path / "none", tmp_path / "backup", ConfigError, "no journal at")
    refuse(running.state, running.state / "backup", ConfigError, "inside the state folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refuse(running.state, tmp_path / "full", ConfigError, "exists")
    with monkeypatch.context() as elsewhere:
        (tmp_path / "empty").mkdir()
        elsewhere.chdir(tmp_path / "empty")
        refuse(running.state, Path("."), ConfigError, "cannot be replaced")  # noqa: PTH201 - as a person types it
        refuse(running.state, Path("/proc/self/.."), ConfigError, "exists")

    for log in image.glob("journal.sqlite-*"):
        log.unlink()
    refuse(image, tmp_path / "backup", JournalDamaged, "journal.sqlite-wal is missing")

    connection = sqlite3.connect(running.state / "journal.sqlite")
    connection.execute("UPDATE messages SET crc = crc + 1")
    connection.commit()
    connection.close()
    refuse(running.state, tmp_path / "backup", JournalDamaged, "have a wrong checksum")
    for folder in (running.state / "checkpoints").iterdir():
        (folder / "state.safetensors").write_bytes(b"")
    refuse(running.state, tmp_path / "backup", JournalDamaged, "no whole checkpoint")


def test_full_disk_is_said_and_leaves_nothing(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.stop()

    def full(*arguments: object) -> None:
        raise DiskFull("no room", hint="free disk space")

    monkeypatch.setattr(backup, "_copy_journal", full)
    refuse(running.state, tmp_path / "backup", DiskFull, "no room")


def test_journal_older_than_its_checkpoint_says_what_to_put_back(running: Running, tmp_path: Path) -> None:
    made = tmp_path / "backup"
    backup.make(running.state, made)
    control = running.control()
    control.request("resume")
    feed(running, 40, 6)
    checkpoint(running)
    running.stop()
    shutil.copy(made / "journal.sqlite", running.state / "journal.sqlite")
    with pytest.raises(JournalDamaged, match=r"ends at sample 120, before checkpoint 160: .* -wal file") as caught:
        Running(running.state)
    assert "ffstream backup" in caught.value.hint
