"""Daemons as processes. Everything that runs `ffstream serve` as a process starts it here: the tests, `tools/demo`,
`tools/bench`, `tools/soak` and `tools/crash`.

`DaemonProcess` is one daemon, from its start to its exit code. `Daemons` starts daemons and kills those that still
run when its block ends; `temporary_daemon` starts one in a temporary directory. Daemons that run inside the test's
own process are in `tests/in_process.py`.

Every wait has a deadline. After it DaemonFailed is raised, with the end of the daemon's log.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import psutil

from ffstream.client import Control
from ffstream.errors import FFStreamError
from tests.harness.commands import CLI, COMMAND_S
from tests.harness.daemon_directory import DaemonDirectory

START_S = 120.0  # on a shared machine with few cores, importing torch alone may take ten seconds
STOP_S = 60.0
_LOG_TAIL_LINES = 20
_POLL_S = 0.01


class DaemonFailed(Exception):
    """A daemon did not do what was expected of it. The message ends with the last lines of its log."""


class Process(Protocol):
    """A process that can be waited for: subprocess.Popen, or one that `crashing.fork_server` has forked."""

    pid: int

    def poll(self) -> int | None:
        """The exit code (minus the signal that ended it), None while it runs."""

    def wait(self, timeout: float) -> int:
        """The exit code, once it has ended. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Does nothing when the process has ended."""


class DaemonProcess:
    """One daemon. At the end of a `with` block it is killed if it still runs."""

    def __init__(self, directory: DaemonDirectory, process: Process) -> None:
        self.directory = directory
        self.process = process
        self.endpoints: dict[str, Any] = {}  # empty until it serves
        self._started_s = time.monotonic()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def state(self) -> Path:
        """Its state folder."""
        return self.directory.state

    @property
    def learn(self) -> str:
        """Endpoint for producers."""
        return str(self.endpoints["learn"])

    @property
    def predict(self) -> str:
        """Endpoint for queries."""
        return str(self.endpoints["predict"])

    @property
    def control(self) -> str:
        """Endpoint for control."""
        return str(self.endpoints["control"])

    @property
    def http(self) -> str:
        """URL of the HTTP server."""
        return f"http://{self.endpoints['http']}"

    def log_text(self) -> str:
        """Its log, after those of earlier daemons in the same directory."""
        return self.directory.log_text()

    def is_serving(self) -> bool:
        """Whether it takes samples and queries. Fills `endpoints`."""
        found = self.directory.endpoints()
        if found.get("pid") == self.pid:  # not the file that a killed daemon has left behind
            self.endpoints = found
        return bool(self.endpoints)

    def await_ready(self) -> float:
        """Waits until it serves. Returns the seconds since its start. Raises DaemonFailed."""
        self._await(self.is_serving, "ready")
        return time.monotonic() - self._started_s

    def await_standby(self) -> None:
        """Waits until it stands by for the daemon that serves. Raises DaemonFailed."""
        self._await(lambda: f"standing by pid={self.pid} " in self.log_text(), "standing by")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise self.failure(f"the daemon is not {what} after {START_S:g} s")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises DaemonFailed when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise self.failure(f"the daemon ended with exit code {code}")

    def failure(self, what: str) -> DaemonFailed:
        """An error that says `what`, followed by the end of the log."""
        lines = self.log_text().splitlines()[-_LOG_TAIL_LINES:]
        return DaemonFailed("\n".join([what, "the end of its log:", *(f"  {line}" for line in lines)]))

    def status(self, *, idle: bool = False) -> dict[str, Any]:
        """Its status; with `idle`, once every acked sample is learned. Raises DaemonFailed, FFStreamError."""
        try:
            with Control(self.control) as control:
                return control.wait_idle(COMMAND_S) if idle else control.status(COMMAND_S)
        except FFStreamError:
            self.check()
            raise

    def resident_mb(self) -> float:
        """Resident memory in units of 10⁶ bytes."""
        return float(psutil.Process(self.pid).memory_info().rss / 1e6)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stops all threads of the process during the block, so nothing in its state folder changes by itself."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            self._await(self._is_stopped, "frozen")
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _is_stopped(self) -> bool:
        # The status of the process is that of its main thread only.
        threads = psutil.Process(self.pid).threads()
        return all(psutil.Process(thread.id).status() == psutil.STATUS_STOPPED for thread in threads)

    def exits_within(self, timeout_s: float) -> bool:
        """Whether it ends within that time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self, timeout_s: float = STOP_S) -> int:
        """The exit code (minus the signal that ended it), once it has ended. Raises DaemonFailed."""
        if not self.exits_within(timeout_s):
            raise self.failure(f"the daemon did not end within {timeout_s:g} s")
        return self.process.wait(0)

    def terminate(self) -> int:
        """Sends SIGTERM and returns the exit code. Raises DaemonFailed when it does not end."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> int:
        """Sends SIGKILL if it still runs and returns the exit code."""
        self.process.send_signal(signal.SIGKILL)
        return self.wait()

    def stop(self) -> int:
        """Sends SIGTERM, and SIGKILL if that does not end it. Returns the exit code."""
        try:
            return self.terminate()
        except DaemonFailed:
            return self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def start_daemon(
    directory: DaemonDirectory,
    *,
    standby: bool = False,
    config: Path | None = None,
    start_from: Path | None = None,
    program: Sequence[str] = CLI,
    environment: Mapping[str, str] = {},
    output: int | None = None,
) -> DaemonProcess:
    """Starts a daemon in a process and returns at once.

    `program` is the command line in front of `serve …`, `environment` is added to that of this process, and `output`
    is a descriptor that gets stdout and stderr instead of the log.
    """
    arguments = [*directory.arguments(), *(["--standby"] if standby else [])]
    arguments += ["--config", str(config)] if config else []
    arguments += ["--from", str(start_from)] if start_from else []
    with directory.log.open("ab") as log:
        process = subprocess.Popen(
            [*program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log if output is None else output,
            stderr=log if output is None else output,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches only the program that started it, which then stops it
        )
    return DaemonProcess(directory, process)


class Daemons:
    """Starts daemons on state folders below `root`. Kills those that still run when its block ends."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._started: list[DaemonProcess] = []

    def start(
        self,
        *settings: str,
        name: str = "state",
        standby: bool = False,
        config: Path | None = None,
        start_from: Path | None = None,
    ) -> DaemonProcess:
        """A daemon that serves on the state folder `name`, a new one or that of an earlier daemon.

        With `standby`, a daemon that stands by for the one that serves there. `start_from` is `serve --from`. Raises
        DaemonFailed.
        """
        directory = DaemonDirectory(self._root / name, settings)
        daemon = start_daemon(directory, standby=standby, config=config, start_from=start_from)
        self._started.append(daemon)
        if standby:
            daemon.await_standby()
        else:
            daemon.await_ready()
        return daemon

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for daemon in self._started:
            daemon.kill()


@contextmanager
def temporary_daemon(*settings: str) -> Iterator[DaemonProcess]:
    """A daemon that serves in a temporary directory. At the end of the block it is stopped. Raises DaemonFailed."""
    with tempfile.TemporaryDirectory(prefix="ffstream-") as folder, Daemons(Path(folder)) as daemons:
        daemon = daemons.start(*settings)
        try:
            yield daemon
        finally:
            daemon.stop()
