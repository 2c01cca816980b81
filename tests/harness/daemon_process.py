"""Daemons in processes of their own, for the tools and the tests. Everything that waits has a deadline."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

# A shared machine with few cores, where importing torch alone may take ten seconds.
START_S = 120.0
STOP_S = 60.0
CLI = (sys.executable, "-m", "ffstream.cli")
_LOG_TAIL_LINES = 20
_LOOK_S = 0.01
_Found = TypeVar("_Found")
_FREE_PORTS = (
    "listen.learn=tcp://127.0.0.1:*",
    "listen.predict=tcp://127.0.0.1:*",
    "listen.control=tcp://127.0.0.1:*",
    "listen.http=127.0.0.1:0",
)


class DaemonFailed(Exception):
    """A daemon did not do what it was started for. `str` is for the person who looks."""


_given: set[int] = set()  # a port once in a process: a daemon listens on several


def free_port() -> int:
    """A port that a daemon can have again after a restart.

    Outside the range that connections get theirs from, so that no other program takes it meanwhile and no client that
    reconnects meets itself there.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def serve_arguments(state: Path, settings: Sequence[str] = ()) -> list[str]:
    """`serve` on free ports of loopback. `settings` win over that."""
    given = [*_FREE_PORTS, *settings]
    return ["serve", "--state", str(state), *(part for setting in given for part in ("--set", setting))]


def read_endpoints(state: Path) -> dict[str, Any]:
    """Where the daemon with that `pid` listens, or the one before it; empty when there was none."""
    try:
        endpoints: dict[str, Any] = json.loads((state / "endpoints.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return endpoints


def await_endpoints(state: Path, pid: int, check: Callable[[], None], timeout_s: float = START_S) -> dict[str, Any]:
    """Where this daemon listens, once it serves. `check` raises when it has ended. Raises DaemonFailed."""

    def look() -> dict[str, Any]:
        endpoints = read_endpoints(state)
        return endpoints if endpoints.get("pid") == pid else {}  # not what a killed one left behind

    return _await(look, check, timeout_s, "is not ready")


def await_standing_by(log: Path, pid: int, check: Callable[[], None]) -> None:
    """Returns once this daemon waits for another one's end. `check` raises when it has ended. Raises DaemonFailed."""
    _await(
        lambda: f"stands by pid={pid} " in log.read_text(encoding="utf-8", errors="replace"),
        check,
        START_S,
        "does not stand by",
    )


def _await(look: Callable[[], _Found], check: Callable[[], None], timeout_s: float, otherwise: str) -> _Found:
    """What `look` finds, once that is something."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        check()
        if time.monotonic() > deadline:
            raise DaemonFailed(f"the daemon {otherwise} after {timeout_s:g} s")
        time.sleep(_LOOK_S)
    return found


def log_tail(log: Path) -> str:
    """The end of a log, for whoever must find out."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:] if log.exists() else []
    return "\n".join(["the end of its log:", *(f"  {line}" for line in lines)])


class DaemonProcess:
    """`ffstream serve` on free ports, ready. Its log is `log`, beside the state folder. Raises DaemonFailed.

    With `standby` it stands by for the one that is there; `await_ready` then waits until it has taken over.
    """

    def __init__(
        self, state: Path, settings: Sequence[str] = (), *, standby: bool = False, config: Path | None = None
    ) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches who started it, and that one stops it.
            self.process = subprocess.Popen(
                [
                    *CLI,
                    *serve_arguments(state, settings),
                    *(["--standby"] if standby else []),
                    *(["--config", str(config)] if config else []),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.endpoints: dict[str, Any] = {}
        try:
            if standby:
                await_standing_by(self.log, self.process.pid, self.check)
            else:
                self.await_ready()
        except BaseException:
            self.kill()
            raise

    def await_ready(self) -> None:
        """Returns once it serves. Raises DaemonFailed."""
        self.endpoints = await_endpoints(self.state, self.process.pid, self.check)

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

    def check(self) -> None:
        """Raises DaemonFailed when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise DaemonFailed(f"the daemon ended with exit code {code}\n{log_tail(self.log)}")

    def terminate(self) -> int:
        """SIGTERM; returns the exit code. Raises subprocess.TimeoutExpired."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code of a daemon that is about to end. Raises subprocess.TimeoutExpired."""
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)

    def end(self) -> int:
        """SIGTERM, SIGKILL if that does not help; returns the exit code."""
        try:
            return self.terminate()
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode
