"""Checkpoints are written beside learning: a thread that takes cuts and makes them durable."""

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
    """The outcome of one write. `error` is None when the checkpoint is durable."""

    seq: int
    bytes: int
    seconds: float
    error: Exception | None


class CheckpointWriter:
    """Thread `ff-checkpoint`. `on_written` is called on it after every write, failed ones included.

    One cut waits at most: a newer one holds all that an older one does, so it takes its place. Writing takes its
    time, `bytes_per_s` (0: none), so that learning hardly notices, unless a stop or a rollback waits for its end.
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
        self._hurries = False
        self._sheds = False
        self._stopping = False
        self._ended = False
        self._changed = threading.Condition()
        self.thread = Worker(_NAME, self._work, on_failure, niceness=WRITING_NICENESS)

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Takes a cut; returns at once."""
        with self._changed:
            if self._waiting is not None:
                log.info(
                    "checkpoint passed over seq=%d for=%d: they come faster than the disk takes them",
                    self._waiting.seq,
                    checkpoint.seq,
                )
            self._waiting = checkpoint
            self._changed.notify_all()

    def shed(self) -> None:
        """Removes one checkpoint besides the newest, if there is one, to make room on the disk; returns at once."""
        with self._changed:
            self._sheds = True
            self._changed.notify_all()

    def settle(self, timeout_s: float) -> bool:
        """Returns once nothing waits and nothing is being written. False if the deadline passed, or nobody writes."""
        with self._changed:
            self._hurry()
            settled = self._changed.wait_for(
                lambda: self._ended or (self._waiting is None and not self.thread.is_busy), timeout_s
            )
            self._hurries = False
            return settled and not self._ended

    def _hurry(self) -> None:
        self._hurries = True
        self._changed.notify_all()

    def stop(self, timeout_s: float) -> bool:
        """Writes what waits, then ends. False if the deadline passed."""
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
                checkpoint = None  # its memory is wanted for the next cut
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _next(self) -> tuple[bool, Checkpoint | None]:
        """Whether to make room, and what to write; neither when stopping."""
        with self._changed:
            with self.thread.waiting():
                self._changed.notify_all()  # whoever waits for it to have nothing in hand
                self._changed.wait_for(lambda: self._waiting is not None or self._stopping or self._sheds)
            taken = self._sheds, self._waiting
            self._sheds, self._waiting = False, None
            return taken

    def _write(self, checkpoint: Checkpoint) -> None:
        start = time.perf_counter()
        size = 0
        failure: Exception | None
        while True:
            failure = None
            try:
                size = self._store.write(checkpoint, self._take_time)
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
        """Whether an old checkpoint gave way."""
        try:
            freed = self._store.shed()
        except (OSError, Unavailable) as error:
            log.warning("old checkpoints stay error=%s", error)
            return False
        if freed:
            log.warning("disk full: an old checkpoint was removed, rollback reaches less far back bytes=%d", freed)
        return freed > 0

    def _take_time(self, size: int) -> None:
        self.thread.progressed()
        if self._bytes_per_s:
            with self._changed:
                self._changed.wait_for(lambda: self._hurries, size / self._bytes_per_s)
