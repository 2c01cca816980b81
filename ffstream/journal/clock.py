"""How long daemons have run on a journal, in seconds. The ages of clients are measured on this clock.

The time of day may jump by decades, between two runs and within one; then clients would be forgotten too early and
their messages stored twice, or never be forgotten. This clock advances with the monotonic clock while a daemon runs.
Time during which no daemon runs, or the machine sleeps, does not count.

`clock_s` in the table meta is saved about every minute, so that a kill loses at most that: clients then seem younger
than they are.
"""

import time

BEGIN_S = 1  # 0 in the table clients marks a client that has ended
_SAVE_S = 60.0


class RunningTime:
    """Continues where `saved_s` says, or at the newest time in the file where that was written after it.

    A time further ahead than a daemon may have run since it saved the clock is damage, and counts as that limit.
    """

    def __init__(self, saved_s: int, newest_s: float) -> None:
        self._begin_s = min(max(float(saved_s), newest_s), saved_s + 2 * _SAVE_S)
        self._began = self._saved_at = time.monotonic()

    def now(self) -> float:
        """Seconds."""
        return self._begin_s + time.monotonic() - self._began

    def unsaved_s(self) -> float:
        """Seconds since it was saved last."""
        return time.monotonic() - self._saved_at

    def is_due(self) -> bool:
        """Whether it is time to save it."""
        return self.unsaved_s() >= _SAVE_S

    def saved(self) -> None:
        """What `now` said is on disk."""
        self._saved_at = time.monotonic()
