"""Decides whether samples may be stored now, at all and from one client: the limits of ingest.

While a resource is short (backlog, disk, memory, descriptors), samples are rejected with a retryable error, credit
is 0, and a metric and the readiness show it. Acked samples are safe, predictions continue, and samples are accepted
again when the shortage is over. A commit that failed counts as a shortage until a probe, a commit of the daemon's
own, succeeds.
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
from ffstream.server.backlog import BacklogLimit
from ffstream.server.housekeeping import Housekeeping
from ffstream.server.rate_limit import RateLimiter

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 1.0


class Admission:
    """For the journal's thread. Other threads may call `rejection_reason` and `credit`."""

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
        """`leftover_samples`: how many may stay in the backlog because they do not fill a microbatch."""
        self.draining = False
        self._journal = journal
        self._limits = limits
        self._housekeeping = housekeeping
        self._applied_seq = applied_seq
        self._metrics = metrics
        self._backlog = BacklogLimit(limits.backlog_max_samples, leftover_samples)
        self._reported: str | None = None  # the code that log and metric show
        self._reported_at = 0.0
        # Of the messages in the current group, which the journal does not know yet:
        self._new: set[str] = set()  # new clients
        self._new_names: Counter[str] = Counter()  # number of new clients by owner
        self._new_samples = self._new_bytes = 0
        self._rates = RateLimiter(limits.client_samples_per_s)
        for kind in (Draining, BacklogFull, JournalFull, DiskFull, MemoryFull, TooManyFiles, Unavailable):
            metrics.refusing.labels(kind.code).set(0)

    def rejection_reason(self) -> Unavailable | None:
        """Why all samples are rejected now; None if they are accepted."""
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
                f"the journal has {measured.journal_bytes} bytes, its log {measured.log_bytes} that a reader pins",
                hint=measured.pinned_hint(),
            )
        return measured.shortage

    def _waiting(self) -> int:
        return self._journal.backlog(self._applied_seq())

    def _backlog_full(self, waiting: int) -> BacklogFull:
        return BacklogFull(
            f"{waiting} samples wait to be learned",
            hint="slow down; they are accepted again when learning has caught up (limits.backlog_max_samples)",
        )

    def _journal_full(self, held: int) -> JournalFull:
        return JournalFull(
            f"the journal has {held} bytes, which is the maximum",
            hint="wait until learning has caught up, or raise limits.journal_max_bytes",
        )

    def status(self) -> dict[str, Any]:
        """Usage that is limited, and active warnings."""
        measured = self._housekeeping
        return {
            "journal": {"used_bytes": measured.journal_bytes, "log_bytes": measured.log_bytes},
            "clients": {"known": len(self._journal.clients), "max": self._limits.clients_max},
            "resources": measured.usage and measured.usage._asdict(),
            "warnings": measured.warnings.active,
        }

    def credit(self) -> int:
        """Messages that a client may have unanswered.

        The window, less when the backlog is nearly full, 0 while samples are rejected.
        """
        if self.rejection_reason():
            return 0
        return self._backlog.credit(self._waiting(), self._limits.window_messages)

    def admit(self, entry: Entry) -> None:
        """Raises Unavailable if a message may not be stored together with those of its group that were admitted.

        One message may exceed a limit. Otherwise a message that is larger than the limit could never be stored.
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
                hint="slow down (limits.client_samples_per_s; all names of a key count together)",
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
                f"{clients} clients are known, which is the maximum",
                hint="limits.clients_max; idle clients are forgotten after limits.client_forget_after_s",
            )
        names = self._journal.clients.names(owner) + self._new_names[owner]
        if names >= limits.client_names_max:
            raise TooManyClients(
                f"no new name for {identity.describe(client)}: its key has {names}, which is the maximum",
                hint="use a known name (limits.client_names_max, limits.client_forget_after_s)",
            )

    def _check_unresolved(self, entry: Entry, owner: str) -> None:
        limits, most = self._limits, self._limits.client_unresolved_max_messages
        stored = self._journal.clients.unresolved(owner)
        if (
            stored >= most
            # A producer that is gone leaves up to a window unresolved, which must not block the key's next producer.
            and self._journal.clients.unresolved_of(entry.client) >= min(limits.window_messages, most)
            # The lowest unanswered message is accepted: without an answer to it, `base` could never be raised.
            and entry.n > entry.base
        ):
            raise TooManyUnresolved(
                f"{stored} stored messages of {identity.describe(entry.client)} are unresolved",
                hint="raise `base` to the lowest unanswered number (all names of a key count together)",
            )

    def end_group(self) -> None:
        """The group was committed, or failed. The journal counts its messages from now on."""
        self._new.clear()
        self._new_names.clear()
        self._new_samples = self._new_bytes = 0

    def report(self, *, at_once: bool = False) -> None:
        """Writes to log and metric whether samples are accepted, if that has changed; once a second or `at_once`."""
        now = time.monotonic()
        if now - self._reported_at < _REPORT_EVERY_S and not at_once:
            return
        self._reported_at = now
        self._rates.forget_idle()
        reason = self.rejection_reason()
        code = reason.code if reason else None
        if code == self._reported:
            return
        if self._reported is not None:
            self._metrics.refusing.labels(self._reported).set(0)
        if reason is None:
            log.info("samples are accepted again after=%s", self._reported)
        else:
            self._metrics.refusing.labels(reason.code).set(1)
            log.warning("samples are rejected code=%s: %s", reason.code, reason.message)
        self._reported = code
