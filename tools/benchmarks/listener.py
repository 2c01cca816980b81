"""The listener of a pipeline that is measured."""

import threading

from ffstream.pipeline.messages import Barrier, MicroBatch


class Learned:
    """Waits until everything up to a sequence number is learned. There must be a snapshot at that number."""

    def __init__(self, seq: int) -> None:
        self._seq = seq
        self._done = threading.Event()
        self._failures: list[Exception] = []

    def on_microbatch(self, microbatch: MicroBatch, version: int) -> None:
        """Nothing is predicted."""

    def on_saving(self, barrier: Barrier) -> None:
        """Nothing is saved."""

    def on_barrier(self, barrier: Barrier) -> None:
        """Notices the end."""
        if barrier.seq == self._seq:
            self._done.set()

    def on_failure(self, error: Exception) -> None:
        """Ends the measurement."""
        self._failures.append(error)
        self._done.set()

    def wait(self, timeout_s: float) -> None:
        """Returns at the end. Raises RuntimeError."""
        if not self._done.wait(timeout_s) or self._failures:
            raise RuntimeError(f"the pipeline did not learn its samples: {self._failures}")
