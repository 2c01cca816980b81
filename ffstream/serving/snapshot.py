"""The weights that predict. A snapshot is immutable; publishing one is replacing a reference."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ffstream.ff.classifier import Classifier


@dataclass(frozen=True)
class Snapshot:
    """Averaged weights of one moment, which have learned every sample up to `seq`."""

    classifier: Classifier
    version: int
    seq: int
    published: float = field(default_factory=time.monotonic)


class Snapshots:
    """The current snapshot, and a way to wait for a later one."""

    def __init__(self, first: Snapshot) -> None:
        self._current = first
        self._published = threading.Condition()
        self._closed = False
        self._recedes = False

    @property
    def current(self) -> Snapshot:
        """What predicts now."""
        return self._current

    def publish(self, snapshot: Snapshot) -> None:
        """Replaces the current snapshot, unless that is a later one: barriers may complete out of order."""
        with self._published:
            if snapshot.version > self._current.version:
                self._current = snapshot
                self._recedes = False
                self._published.notify_all()

    def recede(self) -> None:
        """Learning goes back: what the current one has learned counts no more, and the next one may know less."""
        with self._published:
            self._recedes = True

    def wait_for(self, seq: int, timeout_s: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """True once a snapshot has learned every sample up to `seq`; False after the timeout, once closed, or when
        `unless` says so, which is asked again after each `wake`."""
        with self._published:
            self._published.wait_for(lambda: self._has_learned(seq) or self._closed or unless(), timeout_s)
            return self._has_learned(seq)

    def wake(self) -> None:
        """Makes everybody who waits ask again whether to go on waiting."""
        with self._published:
            self._published.notify_all()

    def _has_learned(self, seq: int) -> bool:
        return self._current.seq >= seq and not self._recedes

    def close(self) -> None:
        """No later snapshot comes: whoever waits for one stops waiting."""
        with self._published:
            self._closed = True
            self._published.notify_all()
