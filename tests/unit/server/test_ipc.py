"""Only one process listens on an ipc endpoint. libzmq alone would let another one replace its socket."""

import socket
from pathlib import Path

import pytest

from ffstream.errors import ConfigError, StartBlocked
from ffstream.server.ipc import IpcLock, lock


def test_only_one_process_can_lock_an_endpoint(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/learn"
    first = IpcLock("listen.learn", endpoint)
    with pytest.raises(StartBlocked, match=r"listen\.learn.*Address already in use"):
        IpcLock("listen.learn", endpoint)
    first.release()
    first.release()
    IpcLock("listen.learn", endpoint).release()


def test_a_listening_program_without_the_lock_is_found(tmp_path: Path) -> None:
    path = tmp_path / "learn"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        waiting = []
        for _ in range(3):  # more than its queue holds: then a connection is not refused, but waits
            with pytest.raises(StartBlocked, match="Address already in use"):
                IpcLock("listen.learn", f"ipc://{path}")
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(str(path))
        for each in waiting:
            each.close()
    assert path.exists(), "the program has ended and left its file"
    IpcLock("listen.learn", f"ipc://{path}").release()


def test_a_file_that_is_not_a_socket_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(ConfigError, match=r"precious exists and is not a socket") as caught:
        IpcLock("listen.learn", f"ipc://{path}")
    assert "listen.learn" in caught.value.hint
    assert path.read_text() == "precious"


def test_the_error_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StartBlocked) as caught:
        IpcLock("listen.learn", f"ipc://{tmp_path}/none/learn")
    assert caught.value.message == f"{tmp_path}/none: No such file or directory"
    assert "listen.learn" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5757", "ipc://@abstract", "ipc://*", "inproc://x"])
def test_other_endpoints_are_not_locked(endpoint: str) -> None:
    assert lock("listen.learn", endpoint) is None
