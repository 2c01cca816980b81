"""Starts the daemons of `tools/crash`: by a fork, which makes thousands of starts affordable, or as a user does."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from ffstream.client import Control
from tests.harness.crashing.instrumented import VARIABLE, Instrumentation
from tests.harness.crashing.stream import DENSE, SETTINGS
from tests.harness.daemon import STOP_S, DaemonFailed, DaemonProcess, start_daemon
from tests.harness.daemon_directory import DaemonDirectory, free_port

_LEARN_S = 300.0
_INSTRUMENTED = (sys.executable, "-m", "tests.harness.crashing.instrumented")
# One thread in each library: the order of a sum then does not depend on the machine, and a fork server may have no
# other thread.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class CrashDirectory(DaemonDirectory):
    """A directory whose daemons all take samples on the same port, so that a producer finds the next one.

    `settings` come after those of every daemon.
    """

    def __init__(self, state: Path, settings: Sequence[str] = DENSE) -> None:
        self.learn = f"tcp://127.0.0.1:{free_port()}"
        super().__init__(state, (f"listen.learn={self.learn}", *SETTINGS, *settings))


def stop_cleanly(daemon: DaemonProcess) -> None:
    """Waits until everything acked is learned, takes a checkpoint and stops the daemon.

    Raises DaemonFailed when its exit code is not 0.
    """
    with Control(daemon.control) as control:
        control.wait_idle(_LEARN_S)
        control.request("checkpoint", timeout_s=_LEARN_S)
    code = daemon.terminate()
    if code:
        raise daemon.failure(f"a daemon that was asked to stop left with exit code {code}")


def start_as_user(
    directory: DaemonDirectory, instrumentation: Instrumentation | None = None, *, standby: bool = False
) -> DaemonProcess:
    """A daemon in a process that imports everything itself, as a user's does."""
    if instrumentation is None:
        return start_daemon(directory, standby=standby, environment=_ENVIRONMENT)
    environment = _ENVIRONMENT | {VARIABLE: json.dumps(asdict(instrumentation))}
    return start_daemon(directory, standby=standby, program=_INSTRUMENTED, environment=environment)


class ForkServer:
    """Starts daemons by a fork, one at a time. Kills the one that runs when its block ends.

    `wrapper` is a command line that runs the fork server, such as that of strace; `environment` is added to that of
    this process.
    """

    def __init__(self, wrapper: Sequence[str] = (), environment: Mapping[str, str] = {}) -> None:
        self._wrapper = wrapper
        self._environment = environment

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*self._wrapper, *_INSTRUMENTED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, **self._environment},
            start_new_session=True,  # this process handles Ctrl-C
        )
        self._read()
        return self

    @property
    def pid(self) -> int:
        """All processes that its daemons leave behind become its children."""
        return self._process.pid

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DaemonFailed("the fork server ended; its output is above")
        answer: dict[str, int] = json.loads(line)
        return answer

    def _order(self, order: dict[str, Any] | None) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def start(
        self,
        directory: DaemonDirectory,
        instrumentation: Instrumentation = Instrumentation(),  # noqa: B008 - it is immutable
    ) -> DaemonProcess:
        """Starts a daemon and returns at once."""
        order = {"arguments": directory.arguments(), "log": str(directory.log), **asdict(instrumentation)}
        return DaemonProcess(directory, _ForkedProcess(self._order(order)["pid"], self))

    def exit_code(self) -> int:
        """The exit code of the daemon; waits until it has ended."""
        return self._order(None)["code"]

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        finally:
            self._process.kill()
            self._process.stdout.close()


class _ForkedProcess:
    """A child of the fork server. It is addressed by a pidfd, so that a signal cannot reach another process."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self._server = server
        self._pidfd = os.pidfd_open(pid)
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float) -> int:
        if self._exit_code is None:
            if not select.select([self._pidfd], [], [], max(0.0, timeout))[0]:
                raise subprocess.TimeoutExpired("ffstream serve", timeout)
            os.close(self._pidfd)
            self._exit_code = self._server.exit_code()
        return self._exit_code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, sig)
