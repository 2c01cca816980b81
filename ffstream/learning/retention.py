"""Which rows the journal may give up: those that each of the newest checkpoints (`checkpoint.keep`) has learned.

Valid at all times: some whole checkpoint has learned each row that is gone. When the journal is full, one checkpoint
must be enough for that, so it is looked at first, every byte.

Older checkpoints, those of the ladder, hold no rows: days of samples would fill the disk and make each start slow. A
rollback to one of them can therefore not relearn what came after it; see `recovery`.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from ffstream.checkpoint.store import CheckpointStore
from ffstream.errors import CheckpointDamaged, Unavailable

log = logging.getLogger(__name__)

_PRESS_S = 2.0  # between two checkpoints that a full journal asks for, or that are removed from a full disk


class Retention:
    """It is told what becomes of checkpoints, and says up to where rows may go."""

    def __init__(
        self, store: CheckpointStore, applied_seq: Callable[[], int], request_checkpoint: Callable[[], None]
    ) -> None:
        self._store = store
        self._applied_seq = applied_seq
        self._request_checkpoint = request_checkpoint
        self.limit = 0  # the oldest checkpoint's; nothing before the first one is written
        self._looked_at = -1  # the newest checkpoint when the journal was full
        self._vouched_for = 0  # up to where rows may then give way
        self._pressed_at = 0.0
        self._shed_at = 0.0

    def wrote(self, seq: int) -> None:
        """A checkpoint is durable."""
        with suppress(Unavailable):  # no descriptor to look with: what is known stays true
            self.limit = min(self._store.recent(at_most=seq))

    def goes_back(self, seq: int) -> None:
        """Learning begins again there: numbers come again, and so do checkpoints of these numbers."""
        self._looked_at = -1
        self.limit = min(self.limit, *self._store.seqs(), seq)

    def press(self) -> int:
        """The limit for a full journal: the newest checkpoint is taken as enough, and another one is asked for.

        Otherwise no sample could come, hence no checkpoint, hence no room, for ever.
        """
        newest = (self._store.whole_seqs() or [0])[-1]
        now = time.monotonic()
        if newest < self._applied_seq() and now - self._pressed_at > _PRESS_S:
            self._pressed_at = now
            self._request_checkpoint()
        if newest != self._looked_at:
            self._looked_at, self._vouched_for = newest, self.limit
            if newest > self.limit:
                self._vouch_for(newest)
        return self._vouched_for

    def sheds(self) -> bool:
        """While the disk is short: whether it is time for another old checkpoint to give way."""
        now = time.monotonic()
        if now - self._shed_at < _PRESS_S:
            return False
        self._shed_at = now
        return True

    def _vouch_for(self, newest: int) -> None:
        try:
            self._store.verify(newest)
        except CheckpointDamaged as damage:
            log.error("journal full, and the newest checkpoint is damaged: %s", damage.message)
        else:
            self._vouched_for = newest
            log.warning("journal full: rows up to the newest checkpoint give way seq=%d", newest)
