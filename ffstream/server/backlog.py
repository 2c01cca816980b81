"""The limit on samples that wait to be learned, and the credit that is left below it.

Samples are rejected from `limit` on, and accepted again below nine tenths of it: otherwise a steady overload would
switch between both with every microbatch. Before the limit is reached credit shrinks with the room that is left, so
that producers slow down instead of being rejected.
"""

import math

_RESUME_SHARE = 0.9


class BacklogLimit:
    """Any thread may ask.

    `leftover`: samples that may stay in the backlog indefinitely because they do not fill a microbatch. They do not
    keep the backlog full.
    """

    def __init__(self, limit: int, leftover: int = 0) -> None:
        self.limit = limit
        below = math.ceil(_RESUME_SHARE * limit)
        self._ramp = limit - below
        self._resume_below = min(limit, max(below, leftover + 1))
        self._is_full = False

    def is_full(self, waiting: int) -> bool:
        """Whether samples must be rejected while `waiting` samples wait. Depends on the answer before."""
        self._is_full = waiting >= (self._resume_below if self._is_full else self.limit)
        return self._is_full

    def credit(self, waiting: int, window: int) -> int:
        """Messages that a client may have unanswered while the backlog is not full: 1 to `window`.

        Never more than the samples that fit, since a message has at least one.
        """
        room = max(1, self.limit - waiting)
        share = window * room // self._ramp if room < self._ramp else window
        return min(window, room, max(1, share))
