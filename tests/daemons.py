"""Real daemons and real commands, as processes with deadlines."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import wait_until

# A shared machine with few cores, where importing torch alone may take ten seconds.
START_S = 60.0
STOP_S = 60.0
COMMAND_S = 60.0

_CLI = (sys.executable, "-m", "ffstream.cli")
_FREE_PORTS = (
    "listen.learn=tcp://127.0.0.1:*",
    "listen.predict=tcp://127.0.0.1:*",
    "listen.control=tcp://127.0.0.1:*",
    "listen.http=127.0.0.1:0",
)


def run_cli(*arguments: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """Runs `ffstream ARGUMENTS` to its end."""
    return subprocess.run([*_CLI, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


def run_json(*arguments: str, timeout_s: float = COMMAND_S) -> dict[str, Any]:
    """Runs `ffstream ARGUMENTS --json`, which must succeed; returns its last line."""
    done = run_cli(*arguments, "--json", timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def serve_arguments(state: Path, settings: Sequence[str] = ()) -> list[str]:
    """`serve` on free ports of loopback. `settings` win over that."""
    given = [*_FREE_PORTS, *settings]
    return ["serve", "--state", str(state), *(part for setting in given for part in ("--set", setting))]


class DaemonProcess:
    """`ffstream serve` on free ports. Its log is `log`, beside the state folder."""

    def __init__(self, state: Path, settings: Sequence[str] = ()) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_CLI, *serve_arguments(state, settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(self._is_ready, START_S, "the daemon is ready")
        except BaseException:
            self.kill()
            raise

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the daemon ended:\n{self.log_text()}"
        try:
            self.endpoints: dict[str, str] = json.loads((self.state / "endpoints.json").read_text())
        except FileNotFoundError:
            return False
        return self.endpoints["pid"] == self.process.pid  # not what a killed one left behind

    @property
    def learn(self) -> str:
        """Endpoint for producers."""
        return self.endpoints["learn"]

    @property
    def predict(self) -> str:
        """Endpoint for queries."""
        return self.endpoints["predict"]

    @property
    def control(self) -> str:
        """Endpoint for control."""
        return self.endpoints["control"]

    @property
    def http(self) -> str:
        """URL of the HTTP server."""
        return f"http://{self.endpoints['http']}"

    def log_text(self) -> str:
        """What it and the ones before it on this state folder said."""
        return self.log.read_text()

    def status(self, *, idle: bool = False) -> dict[str, Any]:
        """Its status; with `idle`, once every acked sample is learned."""
        wait = ["--wait-idle", str(COMMAND_S)] if idle else []
        return run_json("status", "--at", self.control, *wait, timeout_s=2 * COMMAND_S)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code of a daemon that is about to end."""
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)


class Daemons:
    """Starts daemons on folders below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._started: list[DaemonProcess] = []

    def start(self, *settings: str, name: str = "state") -> DaemonProcess:
        """A daemon that is ready, on the state folder `name`: a new one, or where an earlier one left off."""
        daemon = DaemonProcess(self._root / name, settings)
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
