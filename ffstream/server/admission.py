"""Whether samples may be stored now, by anybody and by one client: here ingest meets its limits.

What is short (backlog, disk, memory, descriptors) turns into an error with `retry`, credit 0, a metric and a
readiness that says so. Nothing acked is touched, predictions go on, and samples are taken again when it is back.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

from ffstream.config import Limits
from ffstream.errors import (
    DiskFull,
    Draining,
    JournalFull,
    MemoryFull,
    RateLimited,
    TooManyClients,
    TooManyFiles,
    TooManyUnresolved,
    Unavailable,
)
from ffstream.journal import identity
from ffstream.journal.journal import Entry, Journal
from ffstream.metrics import Metrics
from ffstream.server.resources import Resources

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class Admission:
    """For the journal's thread. `obstacle` and `credit` may be read by others."""

    def __init__(
        self,
        journal: Journal,
        limits: Limits,
        resources: Resources,
        *,
        applied_seq: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self.draining = False
        self._journal = journal
        self._limits = limits
        self._resources = resources
        self._applied_seq = applied_seq
        self._metrics = metrics
        self._lacking: Unavailable | None = None
        self._journal_bytes = 0
        self._looked_at = 0.0
        self._told: str | None = None
        self._new: set[str] = set()  # clients in the group at hand that the journal does not know
        self._new_names: Counter[str] = Counter()  # how many of them each owner has
        self._rates = _Rates(limits.client_samples_per_s)
        for kind in (Draining, JournalFull, DiskFull, MemoryFull, TooManyFiles, Unavailable):
            metrics.refusing.labels(kind.code).set(0)

    def obstacle(self) -> Unavailable | None:
        """Why nothing can be stored now."""
        limits = self._limits
        if self.draining:
            return Draining("the daemon is stopping", hint="send again after its restart")
        backlog = self._journal.backlog(self._applied_seq())
        if backlog >= limits.backlog_max_samples:
            return JournalFull(f"{backlog} samples wait to be learned", hint="slow down; limits.backlog_max_samples")
        if self.journal_is_full:
            return JournalFull(f"the journal holds {self._journal_bytes} bytes", hint="limits.journal_max_bytes")
        return self._lacking

    @property
    def journal_is_full(self) -> bool:
        """Whether the journal holds as many bytes as it may."""
        return self._journal_bytes >= self._limits.journal_max_bytes

    def credit(self) -> int:
        """Messages that a client may have unanswered: the window, or 0 while there is an obstacle."""
        return 0 if self.obstacle() else self._limits.window_messages

    def admit(self, entry: Entry) -> None:
        """Raises TooManyClients or RateLimited when this client may not have that message stored now."""
        client, owner = entry.client, identity.owner(entry.client)
        is_new = not self._journal.knows(client) and client not in self._new
        if is_new:
            self._check_names(client, owner)
        self._check_unresolved(entry, owner)
        if self._limits.client_samples_per_s and (wait_s := self._rates.take(owner, entry.samples)):
            raise RateLimited(
                f"{identity.describe(client)} sends too fast",
                hint="slow down; limits.client_samples_per_s, all names of a key count together",
                retry_after_s=wait_s,
            )
        if is_new:
            self._new.add(client)
            self._new_names[owner] += 1

    def _check_names(self, client: str, owner: str) -> None:
        limits = self._limits
        clients = self._journal.clients + len(self._new)
        if clients >= limits.clients_max:
            raise TooManyClients(f"{clients} clients are known", hint="limits.clients_max")
        names = self._journal.names(owner) + self._new_names[owner]
        if names >= limits.client_names_max:
            raise TooManyClients(
                f"{identity.describe(client)} would be one name too many: {names} are known",
                hint="send under a known one; limits.client_names_max, limits.client_forget_after_s",
            )

    def _check_unresolved(self, entry: Entry, owner: str) -> None:
        limits, most = self._limits, self._limits.client_unresolved_max_messages
        stored = self._journal.unresolved(owner)
        if (
            stored >= most
            # Whoever is gone leaves up to a window behind: that must not hold back a key's next producer.
            and self._journal.unresolved_of(entry.client) >= min(limits.window_messages, most)
            # The lowest unanswered one is let in: without an answer to it, `base` could never be raised.
            and entry.n > entry.base
        ):
            raise TooManyUnresolved(
                f"{stored} stored messages of {identity.describe(entry.client)} are unresolved",
                hint="raise `base` to the lowest unanswered; all names of a key count together",
            )

    def stored(self, size: int) -> None:
        """That many bytes were committed since the last look."""
        self._journal_bytes += size
        self._end_group()

    def failed(self, error: Unavailable) -> None:
        """A commit met this. Nothing is stored until the next look; then it is tried again."""
        self._lacking = error
        self._end_group()
        self._looked_at = time.monotonic()
        self._tell()

    def _end_group(self) -> None:
        self._new.clear()
        self._new_names.clear()

    def look(self) -> None:
        """Once a second: what is short, and which clients can be forgotten."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        self._lacking = self._resources.lacking(self._journal.bytes_free())
        self._rates.forget_idle()
        try:
            self._journal.forget_clients(self._limits.client_forget_after_s)
        except Unavailable as error:
            self._lacking = self._lacking or error
        self._journal_bytes = self._journal.bytes_used()
        self._metrics.journal_bytes.set(self._journal_bytes)
        self._metrics.clients.set(self._journal.clients)
        self._tell()

    def _tell(self) -> None:
        """Says in log and metric what has changed since it last did."""
        obstacle = self.obstacle()
        code = obstacle.code if obstacle else None
        if code == self._told:
            return
        if self._told is not None:
            self._metrics.refusing.labels(self._told).set(0)
        if obstacle is None:
            log.info("samples are accepted again after=%s", self._told)
        else:
            self._metrics.refusing.labels(obstacle.code).set(1)
            log.warning("samples are refused code=%s: %s", obstacle.code, obstacle.message)
        self._told = code


class _Rates:
    """A bucket of samples for each owner: a second's worth at most, filled at the rate."""

    def __init__(self, samples_per_s: float) -> None:
        self._rate = samples_per_s
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and when it was

    def take(self, owner: str, samples: int) -> float:
        """0 if that many may pass, or the seconds until they may.

        More than a bucket holds pass when it is full, and leave a debt.
        """
        rate = self._rate
        now = time.monotonic()
        left, at = self._buckets.get(owner, (rate, now))
        left = min(rate, left + (now - at) * rate)
        missing = min(samples, rate) - left
        self._buckets[owner] = (left if missing > 0 else left - samples, now)
        return max(0.0, missing / rate)

    def forget_idle(self) -> None:
        """A bucket that is full again need not be remembered."""
        now = time.monotonic()
        for owner in [o for o, (left, at) in self._buckets.items() if left + (now - at) * self._rate >= self._rate]:
            del self._buckets[owner]
