"""Errors at the start: what may pass is told from what stays, and the hint is true for each."""

import errno
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from ffstream.daemon.state import StateLock
from ffstream.errors import ConfigError, StartBlocked
from ffstream.security import keys
from ffstream.util.os_errors import as_start_errors, listen_error, path_error
from tests.support import as_user

UID = GID = 12345


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own is for its user alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.EADDRINUSE, StartBlocked, "another program listens there: stop it, or set listen.x to another"),
        (errno.EADDRNOTAVAIL, StartBlocked, "does not have that address now"),
        (errno.ENODEV, StartBlocked, "no interface or host has that name now"),
        (errno.EMFILE, StartBlocked, "LimitNOFILE"),
        (errno.ENFILE, StartBlocked, "fs.file-max"),
        (errno.EACCES, ConfigError, "CAP_NET_BIND_SERVICE"),
        (errno.EINVAL, ConfigError, "set listen.x to tcp://address:port or ipc://path"),
        (errno.EPROTONOSUPPORT, ConfigError, "set listen.x to tcp://address:port or ipc://path"),
        (zmq.ENOCOMPATPROTO, ConfigError, "set listen.x to tcp://address:port or ipc://path"),
    ],
)
def test_addresses(number: int, kind: type[Exception], hint: str) -> None:
    found = [listen_error("listen.x", "tcp://there", zmq.ZMQError(number))]
    if number in errno.errorcode:
        found.append(listen_error("listen.x", "tcp://there", OSError(number, os.strerror(number))))
    for error in found:
        assert type(error) is kind
        assert error.message.startswith("cannot listen on tcp://there (listen.x): ")
        assert hint in error.hint


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.EROFS, StartBlocked, "mounted read-only"),
        (errno.ENOSPC, StartBlocked, "free space"),
        (errno.ENOENT, StartBlocked, "mount the disk"),
        (errno.ENFILE, StartBlocked, "fs.file-max"),
        (errno.EIO, StartBlocked, "check that disk"),
        (errno.ENOTCONN, StartBlocked, "check that disk"),
        (errno.ENOTDIR, ConfigError, "--state must name a folder"),
    ],
)
def test_paths(tmp_path: Path, number: int, kind: type[Exception], hint: str) -> None:
    error = path_error("--state", tmp_path, OSError(number, os.strerror(number), str(tmp_path / "lock")))
    assert type(error) is kind
    assert error.message == f"{tmp_path}/lock: {os.strerror(number)}"
    assert hint in error.hint


def test_a_folder_on_the_way_that_cannot_be_entered_is_named(public_folder: Path) -> None:
    closed = public_folder / "closed"
    (closed / "state").mkdir(parents=True)
    closed.chmod(0o700)
    with as_user(UID, GID), pytest.raises(ConfigError) as caught:
        StateLock(closed / "state").take()
    assert (
        f"{closed} belongs to uid 0, gid 0, mode 0700 and cannot be entered by this process" in caught.value.message
    )
    assert f"(uid {UID}, gid {GID})" in caught.value.message
    assert f"chmod o+x {closed}" in caught.value.hint


def test_a_file_of_another_user_of_the_same_group_is_named(public_folder: Path) -> None:
    state = public_folder / "state"
    state.mkdir()
    state.chmod(0o770)
    os.chown(state, 0, GID)
    (state / "lock").touch(0o600)
    with as_user(UID, GID), pytest.raises(ConfigError) as caught:
        StateLock(state).take()
    assert caught.value.message.startswith(f"{state}/lock belongs to uid 0, gid 0, mode 0600; this process")
    assert caught.value.hint == f"run it as that user, or chown -R {UID} {state}/lock"


def test_a_new_folder_where_this_user_may_not_write_may_be_a_disk_that_is_not_mounted(public_folder: Path) -> None:
    with as_user(UID, GID), pytest.raises(StartBlocked) as caught:
        StateLock(public_folder / "state").take()
    assert f"{public_folder}/state cannot be created: {public_folder} belongs to uid 0" in caught.value.message
    assert caught.value.hint.startswith("is its disk mounted? otherwise chown")


def test_a_state_folder_below_one_that_can_be_entered_and_not_read(public_folder: Path) -> None:
    """/home has such folders. What the daemon makes there is flushed all the same."""
    (public_folder / "mine").mkdir()
    os.chown(public_folder / "mine", UID, GID)
    public_folder.chmod(0o711)
    with as_user(UID, GID):
        lock = StateLock(public_folder / "mine" / "state")
        assert lock.take()
        lock.release()


def test_unexpected_errors_name_their_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for raised, kind, message in (
        (OSError(errno.ENFILE, "Too many open files in system"), StartBlocked, "cannot start: "),
        (OSError(errno.EIO, "Input/output error", str(tmp_path)), StartBlocked, f"{tmp_path}: Input/output error"),
    ):
        with pytest.raises(kind, match=message), as_start_errors():
            raise raised
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("mode", "gid", "where", "accepted"),
    [
        (0o440, 0, "credentials", True),  # systemd: the group's bits are the mask of an ACL
        (0o400, GID, "credentials", True),
        (0o460, GID, "credentials", False),
        (0o444, GID, "credentials", False),
        (0o440, GID, "elsewhere", True),  # Kubernetes: a mounted Secret, with fsGroup
        (0o460, GID, "elsewhere", False),
        (0o444, GID, "elsewhere", False),
        (0o440, 0, "elsewhere", False),
    ],
)
def test_a_secret_of_root_that_is_shared_with_this_process_alone(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int, gid: int, where: str, accepted: bool
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(public_folder / "credentials"))
    token = public_folder / where / "token"
    token.parent.mkdir()
    token.write_text("a" * 32)
    token.chmod(mode)
    os.chown(token, 0, gid)
    monkeypatch.setattr(os, "access", lambda *arguments, **options: True)  # an ACL would let this user read it
    with as_user(UID, GID):
        if accepted:
            keys.check_private(token)
            return
        with pytest.raises(ConfigError, match="can be accessed by users other than its owner") as caught:
            keys.check_private(token)
    assert "LoadCredential=" in caught.value.hint
    assert "chmod 600" not in caught.value.hint, "this user may not do that"


def test_a_secret_whose_group_has_other_users_is_refused(public_folder: Path) -> None:
    other = next(each for each in pwd.getpwall() if each.pw_uid not in (0, UID) and each.pw_gid != 0)
    token = public_folder / "token"
    token.write_text("a" * 32)
    token.chmod(0o440)
    os.chown(token, 0, other.pw_gid)
    with as_user(UID, other.pw_gid), pytest.raises(ConfigError, match="can be accessed by users other"):
        keys.check_private(token)
