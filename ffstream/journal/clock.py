"""How long daemons have run on a journal, in seconds. The time since a client was last seen is measured on this
clock.

The time of day may jump by decades, between two runs and during one. Clients would then be forgotten too early, so
that their messages could be stored twice, or never. This clock advances with the monotonic clock while a daemon runs.
Time during which no daemon runs, or during which the machine is suspended, does not count.

`clock_s` in the table meta is saved about once a minute. A kill loses at most that much, which keeps clients longer.
"""

import time

BEGIN_S = 1  # in the table clients, 0 marks a client that will not use its name again
_SAVE_S = 60.0


class RunningTime:
    """Continues from `saved_s`, or from the newest time in the file if that was written after `saved_s`.

    A time later than a daemon can have reached since it saved the clock is damage, and is limited accordingly.
    """

    def __init__(self, saved_s: int, newest_s: float) -> None:
        self._begin_s = min(max(float(saved_s), newest_s), saved_s + 2 * _SAVE_S)
        self._began = self._saved_at = time.monotonic()

    def now(self) -> float:
        """The current time on this clock, in seconds."""
        return self._begin_s + time.monotonic() - self._began

    def unsaved_s(self) -> float:
        """Seconds since the clock was last saved."""
        return time.monotonic() - self._saved_at

    def is_due(self) -> bool:
        """Whether the clock should be saved now."""
        return self.unsaved_s() >= _SAVE_S

    def saved(self) -> None:
        """Call this when the clock has been saved."""
        self._saved_at = time.monotonic()
