"""An ipc endpoint belongs to one process at a time: libzmq alone would take it from the one that serves."""

import socket
from pathlib import Path

import pytest

from ffstream.errors import ConfigError, StartBlocked
from ffstream.server.ipc import IpcClaim, claim


def test_one_at_a_time_has_it(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/learn"
    first = IpcClaim("listen.learn", endpoint)
    with pytest.raises(StartBlocked, match=r"listen\.learn.*Address already in use"):
        IpcClaim("listen.learn", endpoint)
    first.release()
    first.release()
    IpcClaim("listen.learn", endpoint).release()


def test_a_program_that_takes_no_lock_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "learn"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        waiting = []
        for _ in range(3):  # more than it takes: then a connection is not refused, but has to wait
            with pytest.raises(StartBlocked, match="Address already in use"):
                IpcClaim("listen.learn", f"ipc://{path}")
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(str(path))
        for each in waiting:
            each.close()
    assert path.exists(), "it died and left its file"
    IpcClaim("listen.learn", f"ipc://{path}").release()


def test_a_file_that_is_no_socket_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(ConfigError, match=r"precious exists and is not a socket") as caught:
        IpcClaim("listen.learn", f"ipc://{path}")
    assert "listen.learn" in caught.value.hint
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartBlocked) as caught:
        IpcClaim("listen.learn", f"ipc://{tmp_path}/none/learn")
    assert caught.value.message == f"{tmp_path}/none: No such file or directory"
    assert "listen.learn" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5757", "ipc://@abstract", "ipc://*", "inproc://x"])
def test_what_the_kernel_keeps_apart_needs_no_claim(endpoint: str) -> None:
    assert claim("listen.learn", endpoint) is None
