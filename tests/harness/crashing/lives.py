"""Starts and ends daemons, one at a time, on one state folder and the same ports.

A life is known by a descriptor of its process (pidfd), so that a signal can never meet another process.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ffstream.client import Control
from tests.harness.crashing.stream import SETTINGS
from tests.harness.crashing.victim import VARIABLE, Death
from tests.harness.daemon_process import (
    START_S,
    STOP_S,
    DaemonFailed,
    await_endpoints,
    await_standing_by,
    free_port,
    log_tail,
    read_endpoints,
    serve_arguments,
)

_LEARN_S = 300.0
_LOOK_S = 0.01
_CLOSED = -1
# One thread for each library: sums have one order whatever the machine, and a fork server may have no others.
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Home:
    """Where a daemon lives: a state folder, a log beside it, and endpoints that stay the same."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        self.learn, self.control = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))

    @property
    def arguments(self) -> list[str]:
        """For `ffstream`."""
        own = (f"listen.learn={self.learn}", f"listen.control={self.control}")
        return serve_arguments(self.state, (*own, *SETTINGS))

    def settle(self) -> None:
        """Waits until what is acked is learned, and takes a checkpoint."""
        with Control(self.control) as control:
            control.wait_idle(_LEARN_S)
            control.request("checkpoint", timeout_s=_LEARN_S)


class Life:
    """A daemon's process, from its start to its exit code."""

    def __init__(self, home: Home, pid: int, parent: "ForkServer | subprocess.Popen[bytes]") -> None:
        self.pid = pid
        self._home = home
        self._parent = parent
        self._descriptor = os.pidfd_open(pid)
        self._began = time.monotonic()

    def ended(self, timeout_s: float) -> bool:
        """Whether it ends within that time."""
        return bool(select.select([self._descriptor], [], [], max(0.0, timeout_s))[0])

    def await_ready(self) -> float:
        """Returns the seconds from its start until it serves. Raises DaemonFailed when it ends instead."""
        await_endpoints(self._home.state, self.pid, self._check)
        return time.monotonic() - self._began

    def await_standing_by(self) -> None:
        """Returns once it waits for the end of another life. Raises DaemonFailed when it ends instead."""
        await_standing_by(self._home.log, self.pid, self._check)

    def ended_serving(self, timeout_s: float) -> bool:
        """Whether it ends before it serves, or within that time after. Raises DaemonFailed when it never serves."""
        deadline = time.monotonic() + START_S
        while read_endpoints(self._home.state).get("pid") != self.pid:
            if self.ended(_LOOK_S):
                return True
            if time.monotonic() > deadline:
                raise DaemonFailed(f"a daemon does not serve after {START_S:g} s\n{log_tail(self._home.log)}")
        return self.ended(timeout_s)

    def _check(self) -> None:
        if self.ended(0):
            code = self.end()
            raise DaemonFailed(f"a daemon did not start: exit code {code}\n{log_tail(self._home.log)}")

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still lives."""
        if self._descriptor != _CLOSED and not self.ended(0):
            signal.pidfd_send_signal(self._descriptor, number)

    @contextmanager
    def or_dies(self) -> Iterator[None]:
        """It does not outlive an exception in the block."""
        try:
            yield
        except BaseException:
            self.send(signal.SIGKILL)
            raise

    def end(self, number: signal.Signals | None = None) -> int:
        """Sends that signal, if any, and returns the exit code; minus the signal that ended it."""
        if number is not None:
            self.send(number)
        if not self.ended(STOP_S):
            self.send(signal.SIGKILL)
            raise DaemonFailed(f"a daemon did not end in {STOP_S:g} s\n{log_tail(self._home.log)}")
        os.close(self._descriptor)
        self._descriptor = _CLOSED
        return self._parent.wait()


class ForkServer:
    """Lives that begin with a fork. Ends the one it has when the block ends. `below`: a command to run it under."""

    def __init__(self, below: Sequence[str] = ()) -> None:
        self._below = below

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*self._below, sys.executable, "-m", "tests.harness.crashing.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        self._read()
        return self

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DaemonFailed("the fork server ended; see what it said above")
        answer: dict[str, int] = json.loads(line)
        return answer

    def _order(self, what: dict[str, Any] | None) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def start(self, home: Home, death: Death = Death()) -> Life:  # noqa: B008 - frozen
        """A life."""
        order = {"arguments": home.arguments, "log": str(home.log), **asdict(death)}
        return Life(home, self._order(order)["pid"], self)

    def wait(self) -> int:
        """The exit code of the life that has ended."""
        return self._order(None)["code"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        finally:
            self._process.kill()
            self._process.stdout.close()


def start_really(home: Home, death: Death | None = None, *, standby: bool = False) -> Life:
    """A life that begins as a user's does: the product's `ffstream`, or with a `death` the victim.

    With `standby` while another one is there: it waits for that one's end.
    """
    module = "ffstream.cli" if death is None else "tests.harness.crashing.victim"
    with home.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *home.arguments, *(["--standby"] if standby else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_ENVIRONMENT | ({VARIABLE: json.dumps(asdict(death))} if death else {}),
            start_new_session=True,
        )
    return Life(home, process.pid, process)
