"""Checkpoints are written beside learning: a thread that takes cuts and makes them durable."""

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from ffstream.checkpoint.store import Checkpoint, CheckpointStore

log = logging.getLogger(__name__)


class Written(NamedTuple):
    """The outcome of one write. `error` is None when the checkpoint is durable."""

    seq: int
    bytes: int
    seconds: float
    error: OSError | None


class CheckpointWriter:
    """Thread `ff-checkpoint`. `on_written` is called on it after every write, failed ones included."""

    def __init__(self, store: CheckpointStore, on_written: Callable[[Written], None]) -> None:
        self._store = store
        self._on_written = on_written
        self._inbox: SimpleQueue[Checkpoint | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="ff-checkpoint", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Takes a cut; returns at once."""
        self._inbox.put(checkpoint)

    def stop(self, timeout_s: float) -> bool:
        """Writes what was submitted, then ends. False if the deadline passed."""
        self._inbox.put(None)
        self.thread.join(timeout_s)
        return not self.thread.is_alive()

    def _run(self) -> None:
        while (checkpoint := self._inbox.get()) is not None:
            start = time.perf_counter()
            size, failure = 0, None
            try:
                size = self._store.write(checkpoint)
            except OSError as error:
                failure = error
                log.error("checkpoint failed seq=%d error=%r", checkpoint.seq, str(error))
            seconds = time.perf_counter() - start
            if failure is None:
                log.info("checkpoint written seq=%d bytes=%d seconds=%.2f", checkpoint.seq, size, seconds)
            self._on_written(Written(checkpoint.seq, size, seconds, failure))
