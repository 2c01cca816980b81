"""The events that a pipeline reports. `learning.TrainingRun` is the listener of a daemon."""

from typing import Protocol

from ffstream.errors import FFStreamError
from ffstream.pipeline.messages import Barrier, MicroBatch


class Listener(Protocol):
    """Called on the pipeline's threads. No method may block for long: learning waits for it."""

    def on_microbatch(self, microbatch: MicroBatch, version: int) -> None:
        """Fresh samples are about to be learned. `version` is that of the last barrier sent before them."""

    def on_saving(self, barrier: Barrier) -> None:
        """A saving barrier is about to be sent, in stream order. Other contributors prepare their part of it."""

    def on_barrier(self, barrier: Barrier) -> None:
        """All contributors have added their part to a barrier. Runs on the thread of the last one."""

    def on_failure(self, error: FFStreamError) -> None:
        """A thread has died."""
