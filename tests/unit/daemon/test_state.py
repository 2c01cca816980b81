"""Whose the state folder is."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from ffstream.daemon.state import StateLock
from ffstream.errors import ConfigError, StartBlocked


def test_only_one_process_can_lock_an_endpoint(tmp_path: Path) -> None:
    first, second = StateLock(tmp_path / "new" / "state"), StateLock(tmp_path / "new" / "state")
    assert first.take()
    assert first.take(), "it has it"
    assert not second.take()
    first.release()
    assert second.take()
    assert not first.take()
    second.release()
    second.release()
    assert first.take()
    first.release()


def test_deleting_the_lock_file_does_not_release_the_folder(tmp_path: Path) -> None:
    """Whoever waits would lock a new file, and two daemons would write to one journal."""
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    assert first.take()
    (tmp_path / "lock").unlink()
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


def test_where_folders_cannot_be_locked_the_file_in_it_has_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def lock_files(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_files)
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


def test_one_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    """Its disk may be gone: an empty folder in its place would look like a daemon that has learned nothing."""
    holds, waits = StateLock(tmp_path / "state"), StateLock(tmp_path / "state")
    assert holds.take()
    assert not waits.take()
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    with pytest.raises(StartBlocked, match="No such file"):
        waits.take()
    assert not (tmp_path / "state").exists()
    holds.release()


def test_an_unusable_lock_file_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="file"):
        StateLock(file).take()

    def no_locks(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StartBlocked, match="No locks available"):
        StateLock(tmp_path / "state").take()


def test_a_folder_that_others_may_write_to_is_refused_as_long_as_they_may(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    lock = StateLock(state)
    with pytest.raises(ConfigError, match="other users may write"):
        lock.take()
    assert not (state / "lock").exists()
    state.chmod(0o755)
    assert lock.take(), "to read is no harm"
    lock.release()
