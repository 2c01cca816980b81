"""Keeps a share of the time for learning while predictions are asked for without a pause.

Predictions go before learning when cores are scarce, so that they are answered soon. Without a limit, a few clients
that always have a query waiting would take almost all of learning's time.
"""

import time
from collections.abc import Callable

BURST_S = 0.25  # of idle time that may be saved up: a burst after a quiet time is answered at once


class Pacer:
    """Tells a thread how long to wait, so that it works for at most 1 − `min_share` of the time.

    Time in which it has nothing to do counts as waiting, up to BURST_S of it: a thread that is idle for that share
    between short pieces of work never waits.

    >>> now = 0.0
    >>> pacer = Pacer(0.25, clock=lambda: now)
    >>> pacer.begin(); now += 3.0; pacer.end()
    >>> pacer.owed_s()  # a third of what was worked is a quarter of the whole
    1.0
    """

    def __init__(self, min_share: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ratio = min_share / (1.0 - min_share)
        self._clock = clock
        self._owed_s = 0.0
        self._at = clock()  # the end of the last work, or when idle time was last counted
        self._began = self._at

    def begin(self) -> None:
        """Work begins; until now the thread was idle."""
        self._count_idle()
        self._began = self._at

    def end(self) -> None:
        """It has ended."""
        self._at = self._clock()
        self._owed_s += (self._at - self._began) * self._ratio

    def owed_s(self) -> float:
        """Seconds that the thread has to wait now; 0 when it may work on."""
        self._count_idle()
        return max(0.0, self._owed_s)

    def forgive(self) -> None:
        """Nothing is owed: nobody needs the time."""
        self._count_idle()
        self._owed_s = min(0.0, self._owed_s)

    def _count_idle(self) -> None:
        now = self._clock()
        self._owed_s = max(-BURST_S, self._owed_s - (now - self._at))
        self._at = now
