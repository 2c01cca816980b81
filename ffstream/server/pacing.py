"""Reserves a share of the time for learning while clients ask for predictions without a pause.

Predictions have a higher priority than learning when cores are scarce, so that they are answered quickly. Without a
limit, a few clients that always have a query waiting would leave almost no time for learning.
"""

import time
from collections.abc import Callable

BURST_S = 0.25  # idle time that can be saved up, so that a burst after a quiet time is answered without a pause


class Pacer:
    """Tells a thread how long to pause, so that it works for at most 1 − `min_share` of the time.

    Idle time counts as a pause, up to BURST_S of it. A thread that is idle for that share between short pieces of
    work never has to pause.

    >>> now = 0.0
    >>> pacer = Pacer(0.25, clock=lambda: now)
    >>> pacer.begin(); now += 3.0; pacer.end()
    >>> pacer.owed_s()  # 1 s of 4 s is a quarter
    1.0
    """

    def __init__(self, min_share: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ratio = min_share / (1.0 - min_share)
        self._clock = clock
        self._owed_s = 0.0
        self._at = clock()  # the end of the last work, or when idle time was last counted
        self._began = self._at

    def begin(self) -> None:
        """The thread begins to work; it was idle until now."""
        self._count_idle()
        self._began = self._at

    def end(self) -> None:
        """The thread has finished the work."""
        self._at = self._clock()
        self._owed_s += (self._at - self._began) * self._ratio

    def owed_s(self) -> float:
        """Seconds for which the thread has to pause now; 0 if it may continue."""
        self._count_idle()
        return max(0.0, self._owed_s)

    def forgive(self) -> None:
        """Drops the pause that is owed: learning does not need the time."""
        self._count_idle()
        self._owed_s = min(0.0, self._owed_s)

    def _count_idle(self) -> None:
        now = self._clock()
        self._owed_s = max(-BURST_S, self._owed_s - (now - self._at))
        self._at = now
