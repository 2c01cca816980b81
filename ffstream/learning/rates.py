"""How fast something is counted, over the last seconds."""

import time
from collections import deque
from collections.abc import Mapping

_REACH = 6  # readings, one a second: five seconds
_STALE_S = 5.0  # without a reading for so long, a rate is not known any more


class Rates:
    """One thread adds readings of counters, others ask."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=_REACH)

    def add(self, clock_s: float, totals: Mapping[str, float]) -> None:
        """What the counters say at this time of `time.monotonic`."""
        self._readings.append((clock_s, totals))

    def per_second(self, name: str) -> float | None:
        """Of one counter. None before the second reading, and when there is no recent one."""
        readings = list(self._readings)
        if len(readings) < 2:
            return None
        (first_s, first), (last_s, last) = readings[0], readings[-1]
        if time.monotonic() - last_s > _STALE_S or last_s <= first_s:
            return None
        return max(0.0, last[name] - first[name]) / (last_s - first_s)
