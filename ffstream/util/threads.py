"""Our threads: each reports its death and says since when it is at the same work; and cores are few."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ffstream.errors import FFStreamError, StageFailed

log = logging.getLogger(__name__)

# An ack or a prediction takes microseconds; behind a learning thread of equal rank it would wait milliseconds.
LEARNING_NICENESS = 15
EVALUATION_NICENESS = 19
WRITING_NICENESS = 19  # a checkpoint may take longer, learning should not

OnFailure = Callable[[FFStreamError], None]


class Worker(threading.Thread):
    """A thread that does `work` until that returns. What it raises is logged with its traceback, and reported.

    `work` says `with waiting():` where it waits for more, and `progressed()` where it goes on with what it has; in
    between it has the same work in hand, and may be stuck.
    """

    def __init__(
        self, name: str, work: Callable[[], None], on_failure: OnFailure, *, niceness: int | None = None
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._on_failure = on_failure
        self._niceness = niceness
        self._busy_since: float | None = None

    def run(self) -> None:
        """The thread."""
        try:
            use_one_core()
            if self._niceness is not None:
                lower_priority(self._niceness)
            self._work()
        except BaseException as error:  # SystemExit, too: `threading` drops it without a word
            log.exception("thread failed name=%s", self.name)
            if not isinstance(error, FFStreamError):
                error = StageFailed(f"{self.name}: {error!r}", hint="see the traceback in the log")
            self._on_failure(error)
        finally:
            self._busy_since = None  # what has ended is not stuck

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In this block it has nothing in hand; after it, something new."""
        self._busy_since = None
        yield
        self.progressed()

    def progressed(self) -> None:
        """What it has in hand from now on is new, or goes on."""
        self._busy_since = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether it has something in hand."""
        return self._busy_since is not None

    def is_stuck(self, limit_s: float) -> bool:
        """Whether it has had the same work in hand for that long."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > limit_s

    def ends(self, timeout_s: float) -> bool:
        """Waits for its end; one that was never started has nothing to end. False if the deadline passed."""
        if self.ident is not None:
            self.join(timeout_s)
        return not self.is_alive()


def name_of_stuck(workers: Iterable[Worker], limit_s: float) -> str | None:
    """The first of them that is; None if none is."""
    return next((worker.name for worker in workers if worker.is_stuck(limit_s)), None)


def use_one_core() -> None:
    """One intra-op thread: stages are the parallelism, and sums then have one order."""
    import torch  # here: to look at the options needs none of it

    torch.set_num_threads(1)


def lower_priority(niceness: int) -> None:
    """Lets predictions and acks go first when cores are scarce. Linux gives each thread its own niceness."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    except (AttributeError, OSError):
        log.debug("thread priority unchanged thread=%s", threading.current_thread().name)
