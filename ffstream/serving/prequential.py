"""Prequential evaluation: predict, then learn.

Each microbatch is predicted by the snapshot that the last barrier before it in the stream published. That snapshot
has learned everything before the barrier and nothing of the microbatch, however the threads are scheduled, so the
error of a stream is reproducible, as long as the stream does not pause: a pause publishes earlier.

Evaluation never blocks learning. When it falls behind, it evaluates every second microbatch, every fourth, and so on,
until it keeps up. Skipped samples are counted, and the microbatch evaluated next stands for them in the error over
all samples. A snapshot is kept for as long as a waiting microbatch needs it.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffstream.metrics import Metrics
from ffstream.serving.drift_detector import DriftDetector
from ffstream.serving.mistakes import Mistakes
from ffstream.serving.recent import RecentSamples
from ffstream.serving.snapshot import Snapshot
from ffstream.util.error_record import ErrorRecord
from ffstream.util.labels import UNLABELLED
from ffstream.util.threads import EVALUATION_NICENESS, OnFailure, Worker

NAME = "ff-prequential"
_STRIDE_MAX = 1024


class _Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    version: int
    stands_for: int  # its own samples and those skipped before it
    seqs: Tensor


class _Mark(NamedTuple):
    contribute: Callable[[dict[str, Any]], None]


class Prequential:
    """Thread `ff-prequential`, at a low priority."""

    def __init__(
        self,
        metrics: Metrics,
        first: Snapshot,
        *,
        fraction: float,
        busy_fraction: float = 1.0,
        queue_depth: int,
        record: ErrorRecord,
        detector: DriftDetector | None = None,
        on_failure: OnFailure,
    ) -> None:
        self.record = record
        self.mistakes = Mistakes(first.classifier.recipe.labels)
        self.recent = RecentSamples()
        self._metrics = metrics
        self._fraction = fraction
        self._busy_fraction = min(fraction, busy_fraction)
        self._queue_depth = queue_depth
        self._inbox: deque[_Batch | _Mark] = deque()
        self._detector = detector
        self._changed = threading.Condition()
        self._snapshots = {first.version: first}
        self._skipped = 0
        self._due = 0.0
        self._stride = 1
        self._stopping = False
        self._wanted: int | None = None
        self.thread = Worker(NAME, self._work, on_failure, niceness=EVALUATION_NICENESS)
        metrics.prequential_error.set_function(lambda: record.recent)
        metrics.prequential_window.set_function(lambda: record.window_samples)

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    def stop(self, timeout_s: float, *, drop: bool = False) -> bool:
        """Ends the thread after what is queued, marks included; with `drop`, after its current microbatch. False if
        the deadline passed."""
        with self._changed:
            self._stopping = True
            if drop:
                self._inbox.clear()
            self._changed.notify_all()
        return self.thread.join(timeout_s)

    def observe(self, images: Tensor, labels: Tensor, version: int, *, behind: bool = False, seq: int = 0) -> None:
        """Takes a microbatch that is about to be learned; `version` is the last one sent before it, `seq` its last
        sample.

        While learning is `behind` the stream, the busy fraction is evaluated at most. Samples without a label do not
        count.
        """
        known = labels != UNLABELLED
        size = int(known.sum())
        with self._changed:
            if not size or not self._takes_next(self._busy_fraction if behind else self._fraction):
                self._skipped += size
                self._metrics.prequential_skipped.inc(size)
                return
            seqs = torch.arange(seq - len(labels) + 1, seq + 1)
            if size < len(labels):
                images, labels, seqs = images[known], labels[known], seqs[known]
            self._inbox.append(_Batch(images, labels, version, size + self._skipped, seqs))
            self._skipped = 0
            self._changed.notify_all()

    def _takes_next(self, fraction: float) -> bool:
        """Whether the next microbatch is one of those to evaluate."""
        if len(self._inbox) >= self._queue_depth:
            self._stride = min(2 * self._stride, _STRIDE_MAX)
            self._due = 0.0
            return False
        if not self._inbox:
            self._stride = max(1, self._stride // 2)
        self._due += fraction / self._stride
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def mark(self, contribute: Callable[[dict[str, Any]], None]) -> None:
        """Calls back with the record as it is after everything observed so far."""
        with self._changed:
            self._inbox.append(_Mark(contribute))
            self._changed.notify_all()

    def publish(self, snapshot: Snapshot) -> None:
        """Adds a snapshot that batches may wait for."""
        with self._changed:
            self._snapshots[snapshot.version] = snapshot
            self._forget_unneeded(snapshot.version)  # what is observed from now on needs this one or a later one
            self._changed.notify_all()

    def _work(self) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, _Mark):
                item.contribute({"prequential": self.record.state()})
            else:
                self._evaluate(item)

    def _next(self) -> _Batch | _Mark | None:
        with self._changed:
            with self.thread.waiting():
                self._changed.wait_for(lambda: self._inbox or self._stopping)
            item = self._inbox.popleft() if self._inbox else None
            self._wanted = item.version if isinstance(item, _Batch) else None
            return item

    def _evaluate(self, batch: _Batch) -> None:
        snapshot = self._snapshot(batch.version)
        if snapshot is None:
            return
        prediction = snapshot.classifier.predict(batch.images)
        wrong_B = prediction.labels_B != batch.labels
        wrong = int(wrong_B.sum())
        size = len(batch.labels)
        self.record.add(size, wrong, batch.stands_for)
        self._metrics.prequential_samples.inc(size)
        self._metrics.prequential_errors.inc(wrong)
        if self._detector is not None:
            self._detector.add(wrong_B, int(batch.seqs[-1]))
        self.mistakes.add(batch.images, batch.labels, prediction, batch.seqs)
        self.recent.add(batch.images, batch.labels)

    def _snapshot(self, version: int) -> Snapshot | None:
        """The snapshot of that version, once it is published; None if it never will be."""
        with self._changed:
            with self.thread.waiting():  # until it is published, the layers are still working on it
                self._changed.wait_for(lambda: version in self._snapshots or self._stopping)
            return self._snapshots.get(version)

    def _forget_unneeded(self, newest: int) -> None:
        needed = {item.version for item in self._inbox if isinstance(item, _Batch)} | {self._wanted}
        for old in [each for each in self._snapshots if each < newest and each not in needed]:
            del self._snapshots[old]
