"""A limit on samples a second for each client, or for all clients with one key."""

import time


class RateLimiter:
    """A token bucket for each owner. It holds the samples of one second and is refilled at the rate."""

    def __init__(self, samples_per_s: float) -> None:
        self._rate = samples_per_s
        self._buckets: dict[str, tuple[float, float]] = {}  # the content of a bucket, and when it was measured

    def take(self, owner: str, samples: int) -> float:
        """Takes samples from a bucket and returns 0, or returns the seconds until they may be taken.

        More samples than a bucket holds may be taken when it is full; the bucket is in debt then.
        """
        rate = self._rate
        now = time.monotonic()
        left, at = self._buckets.get(owner, (rate, now))
        left = min(rate, left + (now - at) * rate)
        missing = min(samples, rate) - left
        self._buckets[owner] = (left if missing > 0 else left - samples, now)
        return max(0.0, missing / rate)

    def forget_idle(self) -> None:
        """Drops buckets that are full again."""
        now = time.monotonic()
        for owner in [o for o, (left, at) in self._buckets.items() if left + (now - at) * self._rate >= self._rate]:
            del self._buckets[owner]
