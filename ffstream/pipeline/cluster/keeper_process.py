"""The daemon's side of its keeper."""

import logging
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Final

from ffstream.errors import StagesLost
from ffstream.pipeline.cluster import folders
from ffstream.pipeline.cluster.requests import Connect, Connected, Failed, Kill, Lost, Place, Placed, is_stopping
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)

# Settings of Ray that must be in the environment before it is imported. What the user has set is kept.
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
_LINES_MAX: Final = 200  # of what a keeper writes
_LINE_MAX: Final = 1000
_POLL_S: Final = 0.5


class KeeperProcess:
    """A running keeper. When `cancelled` is set, nobody waits for it any more.

    `on_lost` is called on the thread `ff-keeper`, with the reason, when an actor is lost; with no number when the
    keeper itself is.
    """

    def __init__(
        self,
        address: str,
        cancelled: threading.Event,
        on_lost: Callable[[int | None, str], None],
        on_failure: OnFailure,
    ) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ffstream.pipeline.cluster.keeper", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,  # what is in a buffer, `select` does not see
                env={**_ENVIRONMENT, **(_local() if address == "local" else {}), **os.environ},
                start_new_session=True,  # a Ctrl-C in the terminal is for the daemon, which ends its keeper last
            )
            self._connection: Connection[Any, Any] = Connection(ours.detach())
        self._cancelled = cancelled
        self._on_lost = on_lost
        self._replies: SimpleQueue[Any] = SimpleQueue()
        self._asking = threading.Lock()
        self._sending = threading.Lock()
        self._ending = False
        self._gone = threading.Event()
        self._output = Worker("ff-keeper-log", self._log_output, on_failure)
        self._output.start()
        self.thread = Worker("ff-keeper", self._read, on_failure)
        self.thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._gone.is_set()

    def connect(self, request: Connect, timeout_s: float) -> Connected:
        """Raises StagesLost."""
        hint, address = "ray status; cluster.address names its head", request.address
        late = StagesLost(f"the Ray cluster does not answer: {address}: not within {timeout_s:g} s", hint=hint)
        reply = self._ask(request, timeout_s, late)
        if isinstance(reply, Failed):
            raise StagesLost(f"the Ray cluster cannot be used: {address}: {reply.reason}", hint=hint)
        assert isinstance(reply, Connected)
        return reply

    def place(self, request: Place) -> Placed:
        """Raises StagesLost."""
        timeout_s = request.timeout_s + 5.0
        late = StagesLost(f"the keeper did not answer within {timeout_s:g} s", hint="it is started again")
        reply = self._ask(request, timeout_s, late)
        if isinstance(reply, Failed):
            raise StagesLost(
                f"stages cannot be placed: {reply.reason}",
                hint="ray status shows free resources; cluster.cpus, gpus and resources say what stages need",
            )
        assert isinstance(reply, Placed)
        return reply

    def kill(self, numbers: list[int]) -> None:
        """Ends these actors, soon."""
        self._send(Kill(numbers))

    def _ask(self, request: Any, timeout_s: float, late: StagesLost) -> Any:
        """The reply. Raises StagesLost: `late`, when the keeper has not answered in time and is killed."""
        with self._asking:
            self._send(request)
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    return self._replies.get(timeout=0.1)
                except Empty:
                    if self._cancelled.is_set():
                        raise is_stopping() from None
                    if self.is_gone:
                        raise StagesLost(
                            f"the keeper has ended, exit code {self._process.poll()}",
                            hint="its cluster is gone, or Ray could not be started",
                        ) from None
                    if time.monotonic() > deadline:
                        self._process.kill()
                        raise late from None

    def _send(self, message: Any) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            self._gone.set()

    def _read(self) -> None:
        try:
            while True:
                with self.thread.waiting():
                    message = self._connection.recv()
                if isinstance(message, Lost):
                    self._on_lost(message.number, message.reason)
                else:
                    self._replies.put(message)
        except (EOFError, OSError):
            pass
        self._gone.set()
        if not self._ending:
            log.warning("keeper ended keeper=%d", self.pid)
            self._on_lost(None, "the keeper has ended: its node's Ray, or the head of the cluster, is gone")

    def _log_output(self) -> None:
        """What Ray writes to stderr becomes events of the log."""
        assert self._process.stderr is not None
        count, output = 0, self._process.stderr
        # Not until the end of the file: processes of Ray that outlive the keeper may hold it open.
        while select.select([output], [], [], _POLL_S)[0] or self._process.poll() is None:
            if not (line := output.readline(_LINE_MAX)):
                break
            count += 1
            if count <= _LINES_MAX and line.strip():
                log.warning("keeper says keeper=%d text=%r", self.pid, line.decode(errors="replace").strip())
        output.close()

    def stop(self, timeout_s: float) -> bool:
        """Ends the process, with all actors and a local cluster. False if it had to be killed."""
        self._ending = True
        # Reading goes on until the keeper closes its end.
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(timeout_s)
            ended = True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5.0)
            ended = False
        self.thread.join(5.0)
        self._output.join(5.0)
        self._connection.close()
        folders.remove_unused()  # what a keeper that was killed has left
        return ended


def _local() -> dict[str, str]:
    """The environment of a cluster on this machine: it listens on loopback only, and has a token of its own."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # a head on this machine that is killed never comes back
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
