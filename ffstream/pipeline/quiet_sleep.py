"""Sleep while the stream is quiet: decided by the clock once, and from then on by the journal.

A decision is an event of the kind `sleep` (see journal/events.py): after a sample, some sleep microbatches. It is on
disk before it takes effect, and the number of microbatches that were learned of it is in every checkpoint. So a run
that begins at a checkpoint learns the same ones at the same place, without the clock. After a crash:

    before the commit of the event      nothing was decided
    after it                            the microbatches are learned, those after the last checkpoint once more

The place is the end of a microbatch, also when it was cut short by a flush: the batcher cuts it there again.
"""

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ffstream.config import Learning
from ffstream.errors import Unavailable
from ffstream.journal import events
from ffstream.journal.events import SLEEP_MICROBATCHES
from ffstream.journal.schema import SEQ_MAX
from ffstream.util import failpoints

log = logging.getLogger(__name__)


class QuietSleep:
    """Knows the decisions in a journal, and adds new ones. Owned by the feeder's thread."""

    def __init__(self, journal: Path, decided: Iterable[int], options: Learning) -> None:
        """`decided` holds the sample of each event."""
        self._journal = journal
        self._events = Counter(decided)
        self._places = sorted(self._events)
        self._quiet_s = options.sleep_when_quiet_s
        self._max = options.sleep_when_quiet_max_microbatches
        self._head = -1  # the last sample on disk, and since when it is the last one
        self._since = 0.0

    def left(self, seq: int, slept: int) -> int:
        """Sleep microbatches still to be learned after sample `seq`, of which `slept` are learned."""
        return max(0, self._events[seq] * SLEEP_MICROBATCHES - slept)

    def next_place(self, seq: int) -> int:
        """The first sample after `seq` that is followed by sleep; SEQ_MAX if there is none."""
        at = bisect_right(self._places, seq)
        return self._places[at] if at < len(self._places) else SEQ_MAX

    def wait_s(self, slept: int) -> float | None:
        """How long to wait for samples before asking again; None if waiting changes nothing."""
        return self._quiet_s if self._is_allowed(slept) else None

    def _is_allowed(self, slept: int) -> bool:
        return self._quiet_s > 0 and slept + SLEEP_MICROBATCHES <= self._max

    def decide(self, seq: int, slept: int, *, head: int, now: float) -> bool:
        """Decides to sleep after sample `seq`, if the stream is quiet. `head` is the last sample on disk, `now` the
        time in seconds."""
        if head != self._head:
            self._head, self._since = head, now
        if not self._is_allowed(slept) or now - self._since < self._quiet_s:
            return False
        failpoints.reached("sleep.before")
        try:
            events.add(self._journal, events.Event(events.SLEEP, seq))
        except Unavailable as error:
            log.warning("no sleep while the stream is quiet error=%s", error)
            self._since = now
            return False
        failpoints.reached("sleep.recorded")
        if not slept:
            log.info("the stream is quiet: sleep seq=%d", seq)
        if not self._events[seq]:
            self._places.append(seq)  # no later place is known: the stream ends here
        self._events[seq] += 1
        return True
