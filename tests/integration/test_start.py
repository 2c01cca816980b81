"""Starts that fail. Exit code 75: a later start may succeed; 2: it cannot. No new state is created by mistake."""

import os
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ffstream.daemon.daemon import Daemon
from ffstream.daemon.state import StateLock
from ffstream.errors import StartBlocked
from tests.harness.commands import CLI, run_cli
from tests.harness.daemon import Daemons
from tests.harness.daemon_directory import serve_arguments
from tests.in_process import Running, config, images, labels
from tests.support import wait_until

WAIT_S = 60.0
NEW = "new state folder created path={}"


def blocked(state: Path, *settings: str, existing: bool = False) -> StartBlocked:
    """The error of a start that is blocked for now."""
    with pytest.raises(StartBlocked) as caught:
        Daemon(config(state, *settings), existing=existing).start()
    assert caught.value.hint
    return caught.value


# --- exit codes -----------------------------------------------------------------------------------------------------


def test_a_port_in_use_has_the_exit_code_after_which_a_service_manager_tries_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"listen.http=127.0.0.1:{taken.getsockname()[1]}"
        done = run_cli(*serve_arguments(tmp_path / "state", [port]))
    assert done.returncode == 75
    *_, error, hint = done.stderr.splitlines()
    assert error == f"error: cannot listen on {port[12:]} (listen.http): Address already in use [start_blocked]"
    assert hint == "hint: another program listens there: stop it, or set listen.http to another address or port"


@pytest.mark.parametrize(
    ("setting", "kind", "hint"),
    [
        ("listen.predict=tcp://192.0.2.1:5758", StartBlocked, "does not have that address now"),
        ("listen.predict=tcp://none0:5758", StartBlocked, "no interface or host has that name now"),
    ],
)
def test_an_address_that_does_not_exist_now_blocks_the_start(
    tmp_path: Path, setting: str, kind: type[Exception], hint: str
) -> None:
    with pytest.raises(kind, match=r"listen\.predict") as caught:
        Daemon(config(tmp_path / "state", "security.insecure=true", setting)).start()
    assert hint in str(caught.value)


def test_a_read_only_disk_blocks_the_start(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system here")
    try:
        error = blocked(tmp_path / "state")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
    assert error.message == f"{tmp_path}/state: Read-only file system"
    assert "remount it writable" in error.hint


def _highest() -> int:
    return max(int(each.name) for each in Path("/proc/self/fd").iterdir())


@contextmanager
def descriptors(spare: int) -> Iterator[None]:
    """In the block, this process can open this many files and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_highest() + 1 + spare, before[1]))
        with suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        for descriptor in opened[:spare]:
            os.close(descriptor)
        yield
    finally:
        for descriptor in opened[spare:]:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_lack_of_descriptors_for_sockets_blocks_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this check libzmq would abort the process."""
    monkeypatch.setattr("ffstream.daemon.daemon.raise_file_limit", lambda: None)
    daemon = Daemon(config(tmp_path / "state"))
    with pytest.raises(StartBlocked, match="cannot open sockets: Too many open files") as caught, descriptors(40):
        daemon.start()
    assert "LimitNOFILE" in caught.value.hint
    with Running(tmp_path / "state"):
        pass


def test_a_lack_of_descriptors_for_the_state_folder_blocks_the_start(tmp_path: Path) -> None:
    lock = StateLock(tmp_path)
    with descriptors(0), pytest.raises(StartBlocked, match="Too many open files") as caught:
        lock.take()
    assert "LimitNOFILE" in caught.value.hint
    assert lock.take()
    lock.release()


def test_a_standby_waits_until_there_are_enough_descriptors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    serves = Running(tmp_path / "state")
    stands_by = Daemon(config(tmp_path / "state"))
    result: list[bool] = []
    waiting = threading.Thread(target=lambda: result.append(stands_by.stand_by()), daemon=True)
    waiting.start()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        wait_until(lambda: "standing by" in caplog.text, WAIT_S, "it stands by")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        wait_until(lambda: "cannot take over yet" in caplog.text, WAIT_S, "it reports the shortage")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        serves.stop()
    waiting.join(WAIT_S)
    assert result == [True]
    assert "Too many open files" in caplog.text
    stands_by.start()
    stands_by.stop()


def test_sighup_does_not_stop_a_standby(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Running(tmp_path / "state"):
        stands_by = Daemon(config(tmp_path / "state"))
        result: list[bool] = []
        waiting = threading.Thread(target=lambda: result.append(stands_by.stand_by()), daemon=True)
        waiting.start()
        wait_until(lambda: "standing by" in caplog.text, WAIT_S, "it stands by")
        stands_by.request_reload()
        wait_until(lambda: "reloaded nothing" in caplog.text, WAIT_S, "it reloads")
        assert not result
        stands_by.request_stop()
        waiting.join(WAIT_S)
        assert result == [False]


# --- ipc ------------------------------------------------------------------------------------------------------------


def test_an_ipc_endpoint_in_use_blocks_the_start(tmp_path: Path) -> None:
    learn = f"listen.learn=ipc://{tmp_path}/learn"
    with Running(tmp_path / "first", learn) as first:
        error = blocked(tmp_path / "second", learn)
        assert error.message == f"cannot listen on ipc://{tmp_path}/learn (listen.learn): Address already in use"
        producer = first.producer()
        producer.send(images(8), labels(8))
        producer.flush(WAIT_S)
    with Running(tmp_path / "second", learn) as second:
        producer = second.producer()
        producer.send(images(8), labels(8))
        producer.flush(WAIT_S)


def test_the_ipc_socket_of_a_killed_daemon_is_replaced(daemons: Daemons, tmp_path: Path) -> None:
    learn = f"listen.learn=ipc://{tmp_path}/learn"
    daemons.start(learn).kill()
    assert (tmp_path / "learn").is_socket()
    with Running(tmp_path / "other", learn) as running:
        producer = running.producer()
        producer.send(images(8), labels(8))
        producer.flush(WAIT_S)


# --- a new state ----------------------------------------------------------------------------------------------------


def test_only_a_new_state_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "state"
    with Running(state):
        pass
    lines = [each for each in caplog.records if each.getMessage().startswith(NEW.format(state))]
    assert [each.levelname for each in lines] == ["WARNING"]
    caplog.clear()
    with Running(state):
        assert "new state" not in caplog.text
    (state / "journal.sqlite").unlink()
    with Running(state):
        assert f"new state created in an existing folder path={state}" in caplog.text


def test_existing_does_not_create_a_new_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    refused = "does not exist, and --existing refuses to create a new state"
    assert blocked(state, existing=True).message == f"{state} {refused}"
    assert not state.exists()
    state.mkdir(0o700)  # such as a mount point
    (state / "journal.sqlite").touch()
    error = blocked(state, existing=True)
    assert error.message == f"{state}/journal.sqlite {refused}"
    assert "mount its disk or restore it" in error.hint
    assert "FFSTREAM_EXISTING=false" in error.hint
    assert (state / "journal.sqlite").stat().st_size == 0
    with Running(state):
        pass
    daemon = Daemon(config(state), existing=True)
    daemon.start()
    daemon.stop()


def test_existing_can_be_set_by_option_and_by_environment_variable(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for extra, environment in ((["--existing"], {}), ([], {"FFSTREAM_EXISTING": "true"})):
        done = subprocess.run(
            [*CLI, *serve_arguments(state), *extra],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 75
        assert "--existing refuses to create a new state [start_blocked]" in done.stderr
        assert not state.exists()
