"""Stages that are lost are placed again.

An engine that runs stages in other processes, or on other machines, can lose them while the daemon lives on. The
training run then ends, and another one begins at the newest checkpoint: every acked sample is in the journal, so
nothing is lost and nothing is learned twice. Meanwhile samples are acked and predictions are answered.
"""

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from ffstream.errors import StagesLost
from ffstream.metrics import Metrics
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)

_BACKOFF_S: Final = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0)  # waits before the first try, after one loss, two losses, …
_PLACING: Final = "stages are being placed"
_SETTLED_S: Final = 30.0  # after so long without a loss, the next one is the first again


class Interruption(NamedTuple):
    """Learning was interrupted, because stages were lost or could not be placed. `number` counts from 1."""

    number: int
    reason: str
    lasted_s: float | None = None  # None while it goes on


class Restarts:
    """Thread `ff-restarts`. `place` starts the stages of the current run, or those of another one if it has lost its
    own. It raises StagesLost if that is not possible; it is then called again, later."""

    name = "ff-restarts"

    def __init__(self, place: Callable[[], None], metrics: Metrics, on_failure: OnFailure) -> None:
        self._place = place
        self._reasons: SimpleQueue[StagesLost | None] = SimpleQueue()
        self._ending = threading.Event()
        self._trouble: StagesLost | None = None
        self._since: float | None = None
        self._failures = 0
        self._tries = 0  # since then
        self.interruption: Interruption | None = None  # the last one
        self._placed_at = 0.0
        self.thread = Worker(self.name, self._work, on_failure)
        metrics.learning_interrupted.set_function(lambda: float(self.interrupted))

    @property
    def interrupted(self) -> bool:
        """Whether no stage learns now, because none is placed."""
        is_requested = not (self._reasons.empty() or self._ending.is_set())
        return self._since is not None or is_requested

    def start(self) -> None:
        """Places the stages of the first run, soon."""
        self._since = time.monotonic()
        self.thread.start()

    def request(self, reason: StagesLost | None = None) -> None:
        """The current run has no stages: they are lost, or a rollback has just made it. Returns at once."""
        self._reasons.put(reason)

    def end(self) -> None:
        """Places nothing more."""
        self._ending.set()
        self._reasons.put(None)

    def stop(self, timeout_s: float) -> bool:
        """Returns when the thread has ended. False if the deadline passed."""
        self.end()
        return self.thread.join(timeout_s)

    def status(self) -> dict[str, Any] | None:
        """Why learning is interrupted, for how long, and how often stages could not be placed; None if it is not."""
        since, trouble = self._since, self._trouble
        if since is None:
            return None
        return {
            "reason": _PLACING if trouble is None else trouble.message,
            "hint": "" if trouble is None else trouble.hint,
            "seconds": time.monotonic() - since,
            "tries": self._tries,
        }

    def summary(self) -> str | None:
        """Why learning is interrupted, without names of machines; None if it is not."""
        if self._since is None:
            return None
        trouble = self._trouble
        return _PLACING if trouble is None else trouble.summary

    def _work(self) -> None:
        self._place_until_it_works()
        while not self._ending.is_set():
            with self.thread.waiting():
                reason = self._reasons.get()
            if not self._ending.is_set():
                self._note(reason)
                self._place_until_it_works()

    def _place_until_it_works(self) -> None:
        while True:
            with self.thread.waiting():
                if self._ending.wait(_BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]):
                    return
            try:
                self._tries += 1
                with self.thread.waiting():  # each of its steps has a deadline, and they may take longer than a stall
                    self._place()
            except StagesLost as error:
                self._note(error)
            else:
                self._go_on()
                return

    def _go_on(self) -> None:
        now, since, last = time.monotonic(), self._since, self.interruption
        if last is not None and last.lasted_s is None and since is not None:
            self.interruption = last._replace(lasted_s=now - since)
            log.info("learning goes on seconds=%.1f tries=%d", now - since, self._tries)
        self._since = self._trouble = None
        self._placed_at = now
        self._tries = 0

    def _note(self, error: StagesLost | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if now - self._placed_at > _SETTLED_S:
                self._failures = 0
        if error is None:
            return
        if self._trouble is None:
            number = 0 if self.interruption is None else self.interruption.number
            self.interruption = Interruption(number + 1, error.message)
        if self._trouble is None or self._trouble.message != error.message:
            log.warning("learning is interrupted reason=%r hint=%s", error.message, error.hint)
        self._trouble = error
        self._failures += 1
