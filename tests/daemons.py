"""Real daemons and real commands, as processes with deadlines."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.harness import daemon_process
from tests.support import wait_until

COMMAND_S = 120.0  # against hanging: a loaded machine is no failure


def run_cli(*arguments: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """Runs `ffstream ARGUMENTS` to its end."""
    return subprocess.run(
        [*daemon_process.CLI, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def run_json(*arguments: str, timeout_s: float = COMMAND_S) -> dict[str, Any]:
    """Runs `ffstream ARGUMENTS --json`, which must succeed; returns its last line."""
    done = run_cli(*arguments, "--json", timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


class DaemonProcess(daemon_process.DaemonProcess):
    """`ffstream serve`, as a test looks at it."""

    def log_text(self) -> str:
        """What it and the ones before it on this state folder said."""
        return self.log.read_text()

    def status(self, *, idle: bool = False) -> dict[str, Any]:
        """Its status; with `idle`, once every acked sample is learned."""
        wait = ["--wait-idle", str(COMMAND_S)] if idle else []
        return run_json("status", "--at", self.control, *wait, timeout_s=2 * COMMAND_S)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """In the block the process is stopped: whatever changes in its folder, somebody else has changed."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(self._is_stopped, COMMAND_S, "the daemon is frozen")
            yield
        finally:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)

    def _is_stopped(self) -> bool:
        # psutil's status is that of the main thread; a signal that stops the process stops every thread.
        return all(
            psutil.Process(thread.id).status() == psutil.STATUS_STOPPED
            for thread in psutil.Process(self.process.pid).threads()
        )


class Daemons:
    """Starts daemons on folders below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._started: list[DaemonProcess] = []

    def start(
        self, *settings: str, name: str = "state", standby: bool = False, config: Path | None = None
    ) -> DaemonProcess:
        """A daemon that is ready, on the state folder `name`: a new one, or where an earlier one left off.

        With `standby`: one that stands by for the one that is there.
        """
        daemon = DaemonProcess(self._root / name, settings, standby=standby, config=config)
        self._started.append(daemon)
        return daemon

    def kill_all(self) -> None:
        """Ends those that still run."""
        for daemon in self._started:
            daemon.kill()


@contextmanager
def daemons_below(root: Path) -> Iterator[Daemons]:
    """Daemons that do not outlive the block."""
    daemons = Daemons(root)
    try:
        yield daemons
    finally:
        daemons.kill_all()
