"""The limit on samples that wait to be learned: when it is reached, and how much credit is left before.

Refused from `limit` on, accepted again below nine tenths of it: at a steady overload, refusal would otherwise change
with every microbatch. Before that, credit shrinks with the room that is left, so that producers slow down instead of
running into refusals.
"""

import math

_RESUME_SHARE = 0.9


class Backlog:
    """`leftover`: samples that may wait for ever, because a microbatch of them is not whole; they do not keep samples
    refused. Any thread may ask."""

    def __init__(self, limit: int, leftover: int = 0) -> None:
        self.limit = limit
        below = math.ceil(_RESUME_SHARE * limit)
        self._ramp = limit - below
        self._resume_below = min(limit, max(below, leftover + 1))
        self._is_full = False

    def is_full(self, waiting: int) -> bool:
        """Whether no sample is accepted with that many waiting, given whether the backlog was full before."""
        self._is_full = waiting >= (self._resume_below if self._is_full else self.limit)
        return self._is_full

    def credit(self, waiting: int, window: int) -> int:
        """Messages that a client may have unanswered while the backlog is not full: 1 to `window`.

        Never more than the samples for which there is room, since a message has one at least.
        """
        room = max(1, self.limit - waiting)
        share = window * room // self._ramp if room < self._ramp else window
        return min(window, room, max(1, share))
