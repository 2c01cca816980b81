"""For how long something was the case, in all."""

import time
from collections.abc import Callable


class Stopwatch:
    """Set by one thread at a time; any thread may read it. `monotonic_s` is a clock."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._state: tuple[float, float | None] = (0.0, None)  # seconds up to its last stop, and when it was started

    def run(self, running: bool) -> None:
        """Starts or stops it; does nothing if it runs or stands already."""
        total_s, started_s = self._state
        if running and started_s is None:
            self._state = (total_s, self._monotonic_s())
        elif not running and started_s is not None:
            self._state = (self.seconds(), None)

    def seconds(self) -> float:
        """The sum of all times for which it ran."""
        total_s, started_s = self._state  # read once: another thread may replace it
        return total_s if started_s is None else total_s + self._monotonic_s() - started_s
