"""A daemon whose standard streams are closed, full or read by nobody serves, learns and stops like any other."""

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ffstream.client import Producer
from tests.daemons import COMMAND_S, run_json
from tests.harness.daemon_process import CLI, START_S, await_endpoints, serve_arguments


@contextmanager
def serving(state: Path, redirections: str = "", output: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that a shell started with these redirections, ready."""
    command = [*CLI, *serve_arguments(state, ["network.widths=[20]"])]
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(COMMAND_S)


def prove_it_serves(state: Path, process: subprocess.Popen[bytes]) -> None:
    """It learns what it is sent, and stops in order."""

    def check() -> None:
        assert process.poll() is None, f"it ended with exit code {process.returncode}"

    endpoints = await_endpoints(state, process.pid, check, START_S)
    with Producer(endpoints["learn"]) as producer:
        producer.send(np.zeros((32, 784), np.uint8), np.arange(32) % 10)
    assert run_json("status", "--at", endpoints["control"], "--wait-idle", str(COMMAND_S))["learned"] == 32
    process.send_signal(signal.SIGHUP)  # a line for the log
    process.terminate()
    assert process.wait(COMMAND_S) == 0


@pytest.mark.parametrize("redirections", ["0<&- 1>&- 2>&-", ">/dev/full 2>&1"])
def test_streams_that_take_nothing(tmp_path: Path, redirections: str) -> None:
    state = tmp_path / "state"
    with serving(state, redirections) as process:
        prove_it_serves(state, process)
    assert (state / "lock").read_bytes() == b"", "no message went into a file of the state"


def test_a_pipe_whose_reader_has_ended(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        with serving(tmp_path / "state", output=write) as process:
            prove_it_serves(tmp_path / "state", process)
    finally:
        os.close(write)


def test_a_full_pipe_that_nobody_reads(tmp_path: Path) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, bytes(4096))
    try:
        with serving(tmp_path / "state", output=write) as process:
            prove_it_serves(tmp_path / "state", process)
    finally:
        os.close(read)
        os.close(write)


def test_a_forced_exit_writes_to_no_file_and_waits_for_nobody(tmp_path: Path) -> None:
    """Its message is written by the signal handler itself."""
    state = tmp_path / "state"
    with serving(state, "2>&-") as process:
        endpoints = await_endpoints(state, process.pid, lambda: None, START_S)
        assert endpoints["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(COMMAND_S) in (0, 1), "0: it was faster than the second one"
    assert (state / "lock").read_bytes() == b""
