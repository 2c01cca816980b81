"""The thread that writes checkpoints while learning goes on."""

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.errors import Unavailable
from ffstream.util.threads import WRITING_NICENESS, OnFailure, Worker

log = logging.getLogger(__name__)

_NAME = "ff-checkpoint"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class Written(NamedTuple):
    """The result of one write. `error` is None if the checkpoint is durable."""

    seq: int
    bytes: int
    seconds: float
    error: Exception | None


class CheckpointWriter:
    """Thread `ff-checkpoint`. It calls `on_written` after every write, also after a failed one.

    At most one checkpoint waits to be written. A newer one replaces it, because it contains everything the older one
    has learned. Writing is limited to `bytes_per_s` (0: no limit), so that it does not slow learning down, except
    while a stop or a rollback waits for it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        on_written: Callable[[Written], None],
        on_failure: OnFailure = lambda error: None,
        *,
        bytes_per_s: int = 0,
    ) -> None:
        self._store = store
        self._on_written = on_written
        self._waiting: Checkpoint | None = None
        self._bytes_per_s = bytes_per_s
        self._hurrying = False
        self._shedding = False
        self._stopping = False
        self._ended = False
        self._changed = threading.Condition()
        self.thread = Worker(_NAME, self._work, on_failure, niceness=WRITING_NICENESS)

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Passes a checkpoint on to the thread; returns at once."""
        with self._changed:
            if self._waiting is not None:
                log.info(
                    "checkpoint replaced by a newer one, because the disk is slow seq=%d by=%d",
                    self._waiting.seq,
                    checkpoint.seq,
                )
            self._waiting = checkpoint
            self._changed.notify_all()

    def shed(self) -> None:
        """Removes one old checkpoint, if there is one, to make room on the disk; returns at once."""
        with self._changed:
            self._shedding = True
            self._changed.notify_all()

    def settle(self, timeout_s: float) -> bool:
        """Waits until nothing is left to write or to remove. False if the deadline passed, or if the thread has
        ended."""
        with self._changed:
            self._hurry()
            settled = self._changed.wait_for(
                lambda: self._ended or not (self._waiting or self._shedding or self.thread.is_busy), timeout_s
            )
            self._hurrying = False
            return settled and not self._ended

    def _hurry(self) -> None:
        self._hurrying = True
        self._changed.notify_all()

    def stop(self, timeout_s: float) -> bool:
        """Writes the checkpoint that waits, then ends the thread. False if the deadline passed."""
        with self._changed:
            self._stopping = True
            self._hurry()
        return self.thread.join(timeout_s)

    def _work(self) -> None:
        try:
            while True:
                sheds, checkpoint = self._next()
                if sheds:
                    self._make_room()
                if checkpoint is not None:
                    self._write(checkpoint)
                elif not sheds:
                    break
                checkpoint = None  # so that its memory can be reused
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _next(self) -> tuple[bool, Checkpoint | None]:
        """Waits for work. Whether to make room, and what to write; neither if the thread is to end."""
        with self._changed:
            with self.thread.waiting():
                self._changed.notify_all()  # for `settle`
                self._changed.wait_for(lambda: self._waiting is not None or self._stopping or self._shedding)
            taken = self._shedding, self._waiting
            self._shedding, self._waiting = False, None
            return taken

    def _write(self, checkpoint: Checkpoint) -> None:
        start = time.perf_counter()
        size = 0
        failure: Exception | None
        while True:
            failure = None
            try:
                size = self._store.write(checkpoint, self._throttle)
            except (OSError, Unavailable) as error:
                failure = error
                log.error("checkpoint failed seq=%d error=%r", checkpoint.seq, str(error))
            if getattr(failure, "errno", None) not in _NO_ROOM or not self._make_room():
                break
        seconds = time.perf_counter() - start
        if failure is None:
            log.info("checkpoint written seq=%d bytes=%d seconds=%.2f", checkpoint.seq, size, seconds)
        self._on_written(Written(checkpoint.seq, size, seconds, failure))

    def _make_room(self) -> bool:
        """Removes an old checkpoint. Whether there was one."""
        try:
            freed = self._store.shed()
        except (OSError, Unavailable) as error:
            log.warning("old checkpoints are not removed error=%s", error)
            return False
        if freed:
            log.warning(
                "disk full, an old checkpoint was removed, so a rollback cannot go back as far bytes=%d", freed
            )
        return freed > 0

    def _throttle(self, size: int) -> None:
        self.thread.progressed()
        if self._bytes_per_s:
            with self._changed:
                self._changed.wait_for(lambda: self._hurrying, size / self._bytes_per_s)
