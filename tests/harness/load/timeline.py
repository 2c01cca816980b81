"""When requests were answered, and how long each answer took."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np


@dataclass
class Timeline:
    """Answers in order of time. Times are those of the monotonic clock, which all processes of a machine share."""

    ended_s: list[float] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], object]) -> None:
        """Calls `work` and adds it, unless it raises."""
        begun = time.monotonic()
        work()
        self.add(begun)

    def add(self, begun_s: float) -> None:
        """Adds a request that began then and is answered now."""
        now = time.monotonic()
        self.ended_s.append(now)
        self.took_ms.append(1e3 * (now - begun_s))

    def between(self, first_s: float, last_s: float) -> Self:
        """The answers that came between two times."""
        kept = [pair for pair in zip(self.ended_s, self.took_ms, strict=True) if first_s <= pair[0] <= last_s]
        return type(self)([end for end, _ in kept], [took for _, took in kept])

    def percentile(self, percent: float) -> float:
        """Milliseconds; 0 without answers."""
        return float(np.percentile(self.took_ms, percent)) if self.took_ms else 0.0

    def longest_gap_s(self) -> float:
        """The longest time between two answers."""
        return max((later - earlier for earlier, later in pairwise(self.ended_s)), default=0.0)

    def per_second(self, seconds: float) -> float:
        """Answers a second."""
        return len(self.ended_s) / seconds
