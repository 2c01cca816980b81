"""The daemon's threads. A worker reports its failure, and others can tell whether it is idle, busy or stuck."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ffstream.errors import FFStreamError, StageFailed

log = logging.getLogger(__name__)

# An ack or a prediction takes microseconds. Behind a learning thread of the same priority it would wait milliseconds.
LEARNING_NICENESS = 15
EVALUATION_NICENESS = 19
WRITING_NICENESS = 19  # a checkpoint may be slow, learning should not

OnFailure = Callable[[FFStreamError], None]


class Worker:
    """A thread that runs `work` once. An exception in it is logged with its traceback and passed to `on_failure`.

    `work` marks with `with waiting():` where it waits for something to do, and calls `progressed()` when it begins a
    piece of work or advances. A worker that does neither for a long time is stuck.
    """

    def __init__(
        self, name: str, work: Callable[[], None], on_failure: OnFailure, *, niceness: int | None = None
    ) -> None:
        self.name = name
        self._work = work
        self._on_failure = on_failure
        self._niceness = niceness
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Returns once the thread runs."""
        self._thread.start()

    @property
    def was_started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> bool:
        """Waits for the end of the thread. False if the deadline passed; True if it was never started."""
        if self.was_started:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            use_one_core()
            if self._niceness is not None:
                lower_priority(self._niceness)
            self._work()
        except BaseException as error:  # SystemExit, too: `threading` ignores it silently
            log.exception("thread failed name=%s", self.name)
            if not isinstance(error, FFStreamError):
                error = StageFailed(f"{self.name}: {error!r}", hint="see the traceback in the log")
            self._on_failure(error)
        finally:
            self._busy_since = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The worker is idle within this block, and begins a new piece of work after it."""
        self._busy_since = None
        yield
        self.progressed()

    def progressed(self) -> None:
        """The worker begins a new piece of work, or advances with a long one."""
        self._busy_since = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether the worker has a piece of work to finish."""
        return self._busy_since is not None

    def is_stuck(self, limit_s: float) -> bool:
        """Whether the worker has been busy for that long without progress."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > limit_s


def find_stuck(workers: Iterable[Worker], limit_s: float) -> str | None:
    """The name of the first worker that is stuck, or None."""
    return next((worker.name for worker in workers if worker.is_stuck(limit_s)), None)


def use_one_core() -> None:
    """Sets one intra-op thread: the stages are the parallelism, and sums then have a fixed order."""
    import torch  # here, because commands that only read options do not need it

    torch.set_num_threads(1)


def lower_priority(niceness: int) -> None:
    """Lets predictions and acks run first when cores are scarce. On Linux each thread has its own niceness."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    except (AttributeError, OSError):
        log.debug("thread priority unchanged thread=%s", threading.current_thread().name)
