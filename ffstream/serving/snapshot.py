"""The weights that predict. A snapshot is immutable; publishing one replaces a reference."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ffstream.ff.classifier import Classifier
from ffstream.metrics import Metrics


@dataclass(frozen=True)
class Snapshot:
    """EMA weights that have learned every sample up to `seq`. `published` is when, by `time.monotonic`."""

    classifier: Classifier
    version: int
    seq: int
    published: float = field(default_factory=time.monotonic)


class Snapshots:
    """The current snapshot, and a way to wait for a later one. The first must be published before anyone asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._current: Snapshot | None = None
        self._published = threading.Condition()
        self._closed = False
        self._recedes = False
        self._kept_until = 0  # the sample up to which the next one must have learned
        metrics.snapshot_age.set_function(lambda: time.monotonic() - self.current.published)
        metrics.snapshot_seq.set_function(lambda: self.current.seq)
        metrics.snapshot_version.set_function(lambda: self.current.version)

    @property
    def current(self) -> Snapshot:
        """The snapshot that predicts now."""
        assert self._current is not None, "a training run publishes its first snapshot when it is made"
        return self._current

    def publish(self, snapshot: Snapshot) -> None:
        """Replaces the current snapshot, unless that is a later one: barriers may complete out of order."""
        with self._published:
            if snapshot.seq < self._kept_until:
                return
            if self._current is None or snapshot.version > self._current.version:
                self._current = snapshot
                self._recedes = False
                self._published.notify_all()

    def replace(self, snapshot: Snapshot) -> None:
        """Replaces the current snapshot, whatever its version: the daemon that a replica follows has restarted."""
        with self._published:
            self._current = snapshot
            self._published.notify_all()

    def recede(self) -> None:
        """A rollback begins: what the current one has learned no longer counts, and the next may know less."""
        with self._published:
            self._recedes = True
            self._kept_until = 0

    def keep(self) -> None:
        """Learning begins again at an earlier sample: the current one predicts until another has learned as much."""
        with self._published:
            self._kept_until = self.current.seq

    def wait_for(self, seq: int, timeout_s: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """True once a snapshot has learned every sample up to `seq`. False after the timeout, once closed, or when
        `unless` returns True; it is called again after each `wake`."""
        with self._published:
            self._published.wait_for(lambda: self._has_learned(seq) or self._closed or unless(), timeout_s)
            return self._has_learned(seq)

    def wake(self) -> None:
        """Makes all waits call `unless` again."""
        with self._published:
            self._published.notify_all()

    def _has_learned(self, seq: int) -> bool:
        return self.current.seq >= seq and not self._recedes

    def close(self) -> None:
        """No later snapshot comes: ends all waits."""
        with self._published:
            self._closed = True
            self._published.notify_all()
