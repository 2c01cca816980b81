"""A daemon serves, learns and stops as usual when its standard streams are closed, full, or not read."""

import fcntl
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from ffstream.client import Producer
from tests.harness.commands import CLI
from tests.harness.daemon import DaemonProcess, start_daemon
from tests.harness.daemon_directory import DaemonDirectory


def start(state: Path, redirections: str = "", output: int | None = None) -> DaemonProcess:
    """A daemon that a shell starts with these redirections."""
    shell = ("sh", "-c", f'exec "$@" {redirections}', "sh")
    return start_daemon(DaemonDirectory(state, ["network.widths=[20]"]), program=[*shell, *CLI], output=output)


def assert_it_learns_and_stops(daemon: DaemonProcess) -> None:
    daemon.await_ready()
    with Producer(daemon.learn) as producer:
        producer.send(np.zeros((32, 784), np.uint8), np.arange(32) % 10)
    assert daemon.status(idle=True)["learned"] == 32
    daemon.process.send_signal(signal.SIGHUP)  # writes a log line
    assert daemon.terminate() == 0


@pytest.mark.parametrize("redirections", ["0<&- 1>&- 2>&-", ">/dev/full 2>&1"])
def test_closed_and_full_standard_streams_do_not_stop_a_daemon(tmp_path: Path, redirections: str) -> None:
    with start(tmp_path / "state", redirections) as daemon:
        assert_it_learns_and_stops(daemon)
    assert (daemon.state / "lock").read_bytes() == b"", "no log line was written into a state file"


def test_a_pipe_without_a_reader_does_not_stop_a_daemon(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        with start(tmp_path / "state", output=write) as daemon:
            assert_it_learns_and_stops(daemon)
    finally:
        os.close(write)


def test_a_full_pipe_that_is_not_read_does_not_stop_a_daemon(tmp_path: Path) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, bytes(4096))
    try:
        with start(tmp_path / "state", output=write) as daemon:
            assert_it_learns_and_stops(daemon)
    finally:
        os.close(read)
        os.close(write)


def test_a_forced_exit_with_closed_stderr_does_not_hang_or_write_into_a_state_file(tmp_path: Path) -> None:
    """The signal handler itself writes the message about the forced exit."""
    with start(tmp_path / "state", "2>&-") as daemon:
        daemon.await_ready()
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.wait() in (0, 1), "0: it stopped before the second signal"
    assert (daemon.state / "lock").read_bytes() == b""
