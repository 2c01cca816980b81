"""What a daemon and a prediction replica have in common as processes: the first failure ends them, threads are
watched, and signals only set flags. `ffstream serve` and `ffstream serve-predictions` run them in the foreground.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from queue import Empty, SimpleQueue

from ffstream.config import Config
from ffstream.daemon.shutdown import Shutdown
from ffstream.errors import DeadlineExceeded, StageFailed
from ffstream.metrics import Metrics
from ffstream.server.access import Access
from ffstream.server.credentials import SOCKETS
from ffstream.server.resources import return_free_memory
from ffstream.util.threads import Worker, find_stuck

log = logging.getLogger(__name__)

POLL_S = 1.0
_RETURN_MEMORY_S = 10.0
_FROZEN_S = 2.0  # a poll that is later means that the process, or the machine, was stopped


class Wake(Enum):
    """Why a wait is interrupted."""

    STOP = 1
    RELOAD = 2
    FIRST = 3  # a replica has its first snapshot


class Foreground:
    """`wait` after the start, then `stop`. A subclass starts parts, registers how they end, and names its threads.

    Raises ConfigError if it must not listen.
    """

    after_late_stop = "nothing is lost"  # the hint when a part did not stop in time

    def __init__(self, config: Config, sockets: Sequence[str] = SOCKETS) -> None:
        self.config = config
        self.metrics = Metrics()
        self.failure: Exception | None = None
        self._phase = "starting"  # then "ready", then "stopping"
        # Not an Event: setting one in a signal handler deadlocks if that thread is about to wait for it.
        self._wake: SimpleQueue[Wake] = SimpleQueue()
        self._shutdown = Shutdown()
        # Before anything else: a process that must not listen should not spend minutes on recovery.
        self._access = Access(config, self.metrics, self._fail, sockets)

    def _threads(self) -> Iterable[Worker]:
        """The threads that must make progress."""
        raise NotImplementedError

    def wait(self, heartbeat: Callable[[], None] = lambda: None) -> None:
        """Returns when a stop was requested or something failed. Until then, calls `heartbeat` each second."""
        limit_s = self.config.pipeline.stall_timeout_s
        returned = polled = watched_from = time.monotonic()
        while not self._is_woken(POLL_S):
            before, polled = polled, time.monotonic()
            self.metrics.process.refresh()
            if polled - before > POLL_S + _FROZEN_S:
                watched_from = polled  # no thread makes progress while the whole process is stopped
            if polled - returned > _RETURN_MEMORY_S:
                return_free_memory()
                returned = polled
            stuck = find_stuck(self._threads(), limit_s) if polled - watched_from > limit_s else None
            if stuck is not None:
                self._fail(StageFailed(f"{stuck} made no progress for {limit_s:g} s", hint="restart; see the log"))
            else:
                heartbeat()

    def _is_woken(self, timeout_s: float) -> bool:
        """Whether something ended the wait before the timeout, such as a request to stop."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                reason = self._wake.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return False
            if reason is Wake.RELOAD:
                self._access.reload()
            elif reason is Wake.STOP or self._phase == "starting":
                return True

    def request_stop(self) -> None:
        """Sets a flag and returns; safe in a signal handler. The thread in `wait` then stops the process's parts."""
        self._wake.put(Wake.STOP)

    def request_reload(self) -> None:
        """Sets a flag to read the client keys again. Everything else and open connections go on."""
        self._wake.put(Wake.RELOAD)

    def _fail(self, error: Exception) -> None:
        """The first thread to die ends the process."""
        if self.failure is None:
            self.failure = error
            log.error("failed error=%s", error)
        self._wake.put(Wake.STOP)

    def stop(self) -> None:
        """Ends what was started, in order, each step with a deadline. Raises the failure that ended the process."""
        served, self._phase = self._phase == "ready", "stopping"
        late = self._shutdown.run(self.config.shutdown.drain_timeout_s)
        if served or late:  # a failed start has logged its reason already
            log.info("stopped late=%s", ",".join(late) or "none")
        if self.failure is not None:
            raise self.failure
        if late:
            raise DeadlineExceeded(f"did not stop in time: {', '.join(late)}", hint=self.after_late_stop)
