"""Which rows the journal may delete: those that each of the newest checkpoints (`checkpoint.keep`) has learned.

Valid at all times: for each deleted row there is a whole checkpoint that has learned it. When the journal is full,
the newest checkpoint alone must be enough, so every byte of it is verified first.

No rows are kept for the older checkpoints of the ladder: days of samples would fill the disk and make each start
slow. So after a rollback to one of them, what came after it cannot be learned again; see `recovery`.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ffstream.checkpoint.store import CheckpointStore
from ffstream.errors import CheckpointDamaged, Unavailable
from ffstream.learning.training_run import TrainingRun

log = logging.getLogger(__name__)

_ASK_EVERY_S = 2.0  # between two checkpoints that a full journal asks for


class Retention:
    """Until `follow` is called, and while it is suspended, neither rows nor old checkpoints may be deleted."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._run: TrainingRun | None = None
        self._deleting = threading.Lock()  # held while something is deleted, and while that is suspended
        self._limit = 0  # sample up to which the oldest of the newest checkpoints has learned
        self._verified = -1  # the newest checkpoint when the journal was full
        self._verified_limit = 0  # its sequence number if it is whole
        self._asked_at = 0.0

    def follow(self, run: TrainingRun) -> None:
        """A run begins. After a rollback, sequence numbers repeat, and so do the numbers of checkpoints."""
        self._run = run
        self._verified, self._verified_limit = -1, 0
        self._limit = min(self._limit, *self._store.seqs(), run.applied_seq)

    def wrote(self, seq: int) -> None:
        """A checkpoint is durable."""
        with suppress(Unavailable):  # no descriptor to read the folder: what is known stays true
            self._limit = min(self._store.recent(at_most=seq))

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Nothing is deleted within the block. Waits for the end of a deletion."""
        with self._deleting:
            yield

    @contextmanager
    def unless_suspended(self) -> Iterator[bool]:
        """Whether something may be deleted within the block. Never waits."""
        if not self._deleting.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        finally:
            self._deleting.release()

    @contextmanager
    def removable(self, *, journal_is_full: bool = False) -> Iterator[int]:
        """Within the block, rows up to this sequence number may be deleted; 0 while it is suspended. Never waits."""
        with self.unless_suspended() as allowed:
            if not allowed:
                yield 0
            else:
                yield self._full_limit() if journal_is_full else self._limit

    def _full_limit(self) -> int:
        """The limit for a full journal: the newest checkpoint is enough, and another one is asked for.

        Otherwise no sample could be stored, no checkpoint would follow, and no row could ever be deleted.
        """
        newest = (self._store.whole_seqs() or [0])[-1]
        now = time.monotonic()
        if self._run and newest < self._run.applied_seq and now - self._asked_at > _ASK_EVERY_S:
            self._asked_at = now
            self._run.request_checkpoint()
        if newest != self._verified:
            self._verified = newest
            self._verified_limit = newest if newest > self._limit and self._is_whole(newest) else 0
        return max(self._limit, self._verified_limit)

    def _is_whole(self, newest: int) -> bool:
        try:
            self._store.verify(newest)
        except CheckpointDamaged as damage:
            log.error("journal full, and the newest checkpoint is damaged error=%s", damage.message)
            return False
        log.warning("journal full: rows up to the newest checkpoint are deleted seq=%d", newest)
        return True
