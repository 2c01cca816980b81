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
from typing import Any, Final

from ffstream.errors import FFStreamError, StagesLost
from ffstream.metrics import Metrics
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)

_BACKOFF_S: Final = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0)  # waits before the first try, after one loss, two losses, …
_SETTLED_S: Final = 30.0  # after so long without a loss, the next one is the first again


class Restarts:
    """Thread `ff-restarts`. `place` starts the stages of the current run, or those of another one if it has lost its
    own. It raises StagesLost if that is not possible; it is then called again, later."""

    name = "ff-restarts"

    def __init__(self, place: Callable[[], None], metrics: Metrics, on_failure: OnFailure) -> None:
        self._place = place
        self._reasons: SimpleQueue[StagesLost | None] = SimpleQueue()
        self._ending = threading.Event()
        self._trouble: FFStreamError | None = None
        self._since: float | None = None
        self._failures = 0
        self._placed_at = 0.0
        self.thread = Worker(self.name, self._work, on_failure)
        metrics.learning_interrupted.set_function(lambda: float(self.interrupted))

    @property
    def interrupted(self) -> bool:
        """Whether no stage learns now, because none is placed."""
        return self._since is not None

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
        """Why learning is interrupted and for how long; None if it is not."""
        since, trouble = self._since, self._trouble
        if since is None:
            return None
        reason = "stages are being placed" if trouble is None else str(trouble)
        return {"reason": reason, "seconds": time.monotonic() - since, "failures": self._failures}

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
                self._place()
            except StagesLost as error:
                self._note(error)
            else:
                self._since = self._trouble = None
                self._placed_at = time.monotonic()
                return

    def _note(self, error: StagesLost | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            if now - self._placed_at > _SETTLED_S:
                self._failures = 0
        if error is None:
            return
        if self._trouble is None or str(self._trouble) != str(error):
            log.warning("learning is interrupted reason=%r hint=%s", str(error), error.hint)
        self._trouble = error
        self._failures += 1
