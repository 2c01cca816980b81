"""Whether samples may be stored now, by anybody and by one client: here ingest meets its limits.

What is short (backlog, disk, memory, descriptors) turns into an error with `retry`, credit 0, a metric and a
readiness that says so. Nothing acked is touched, predictions go on, and samples are taken again when it is back.
A commit that failed counts as short until a probe, a commit of our own, succeeds.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ffstream.config import Limits
from ffstream.errors import (
    BacklogFull,
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
from ffstream.server.backlog import Backlog
from ffstream.server.housekeeping import Housekeeping

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 1.0


class Admission:
    """For the journal's thread. `obstacle` and `credit` may be read by others."""

    def __init__(
        self,
        journal: Journal,
        limits: Limits,
        housekeeping: Housekeeping,
        *,
        applied_seq: Callable[[], int],
        metrics: Metrics,
        leftover_samples: int = 0,
    ) -> None:
        """`leftover_samples`: how many may wait for ever because they are no whole microbatch."""
        self.draining = False
        self._journal = journal
        self._limits = limits
        self._housekeeping = housekeeping
        self._applied_seq = applied_seq
        self._metrics = metrics
        self._backlog = Backlog(limits.backlog_max_samples, leftover_samples)
        self._told: str | None = None
        self._reported_at = 0.0
        self._new: set[str] = set()  # clients in the group at hand that the journal does not know
        self._new_names: Counter[str] = Counter()  # how many of them each owner has
        self._new_samples = self._new_bytes = 0  # of the group
        self._rates = _Rates(limits.client_samples_per_s)
        for kind in (Draining, BacklogFull, JournalFull, DiskFull, MemoryFull, TooManyFiles, Unavailable):
            metrics.refusing.labels(kind.code).set(0)

    def obstacle(self) -> Unavailable | None:
        """Why nothing can be stored now."""
        if self.draining:
            return Draining("the daemon is stopping", hint="send again after its restart")
        waiting = self._waiting()
        if self._backlog.is_full(waiting):
            return self._backlog_full(waiting)
        measured = self._housekeeping
        if measured.journal_is_full:
            return self._journal_full(measured.journal_bytes)
        held = measured.journal_bytes + measured.log_bytes
        if measured.log_is_pinned and held >= self._limits.journal_max_bytes:
            return JournalFull(
                f"the journal holds {measured.journal_bytes} bytes,"
                f" and its log {measured.log_bytes} that a reader pins",
                hint=measured.pinned_hint(),
            )
        return measured.shortage

    def _waiting(self) -> int:
        return self._journal.backlog(self._applied_seq())

    def _backlog_full(self, waiting: int) -> BacklogFull:
        return BacklogFull(
            f"{waiting} samples wait to be learned",
            hint="slow down; it accepts again when learning has caught up (limits.backlog_max_samples)",
        )

    def _journal_full(self, held: int) -> JournalFull:
        return JournalFull(f"the journal holds {held} bytes", hint="limits.journal_max_bytes")

    def status(self) -> dict[str, Any]:
        """What the limits are compared with, and what needs attention."""
        measured = self._housekeeping
        return {
            "journal": {"used_bytes": measured.journal_bytes, "log_bytes": measured.log_bytes},
            "clients": {"known": len(self._journal.clients), "max": self._limits.clients_max},
            "warnings": measured.warnings.active,
        }

    def credit(self) -> int:
        """Messages that a client may have unanswered: the window, less when the backlog is nearly full, or 0 while
        there is an obstacle."""
        if self.obstacle():
            return 0
        return self._backlog.credit(self._waiting(), self._limits.window_messages)

    def admit(self, entry: Entry) -> None:
        """Raises an error when that message may not be stored with those of its group that were admitted before it.

        A limit may be passed by one message, or a message larger than the limit would wait for ever.
        """
        self._check_room()
        client, owner = entry.client, identity.owner(entry.client)
        is_new = client not in self._journal.clients and client not in self._new
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
        self._new_samples += entry.samples
        self._new_bytes += len(entry.images)

    def _check_room(self) -> None:
        waiting = self._waiting() + self._new_samples
        if self._new_samples and waiting >= self._backlog.limit:
            raise self._backlog_full(waiting)
        held = self._housekeeping.journal_bytes + self._new_bytes
        if self._new_bytes and held >= self._limits.journal_max_bytes:
            raise self._journal_full(held)

    def _check_names(self, client: str, owner: str) -> None:
        limits = self._limits
        clients = len(self._journal.clients) + len(self._new)
        if clients >= limits.clients_max:
            raise TooManyClients(
                f"{clients} clients are known, as many as may be",
                hint="limits.clients_max; they are forgotten after limits.client_forget_after_s",
            )
        names = self._journal.clients.names(owner) + self._new_names[owner]
        if names >= limits.client_names_max:
            raise TooManyClients(
                f"{identity.describe(client)} would be one name too many: {names} are known",
                hint="send under a known one; limits.client_names_max, limits.client_forget_after_s",
            )

    def _check_unresolved(self, entry: Entry, owner: str) -> None:
        limits, most = self._limits, self._limits.client_unresolved_max_messages
        stored = self._journal.clients.unresolved(owner)
        if (
            stored >= most
            # Whoever is gone leaves up to a window behind: that must not hold back a key's next producer.
            and self._journal.clients.unresolved_of(entry.client) >= min(limits.window_messages, most)
            # The lowest unanswered one is let in: without an answer to it, `base` could never be raised.
            and entry.n > entry.base
        ):
            raise TooManyUnresolved(
                f"{stored} stored messages of {identity.describe(entry.client)} are unresolved",
                hint="raise `base` to the lowest unanswered; all names of a key count together",
            )

    def end_group(self) -> None:
        """The group is stored, or is not: what was admitted is counted by the journal from now on."""
        self._new.clear()
        self._new_names.clear()
        self._new_samples = self._new_bytes = 0

    def report(self, *, at_once: bool = False) -> None:
        """Once a second, or at once: whether samples are accepted, in log and metric, if that has changed."""
        now = time.monotonic()
        if now - self._reported_at < _REPORT_EVERY_S and not at_once:
            return
        self._reported_at = now
        self._rates.forget_idle()
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
        """Drops buckets that are full again."""
        now = time.monotonic()
        for owner in [o for o, (left, at) in self._buckets.items() if left + (now - at) * self._rate >= self._rate]:
            del self._buckets[owner]
