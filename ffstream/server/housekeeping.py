"""Housekeeping of the journal: deletes rows and forgets clients that are not needed any more, and finds shortages.

It runs on the journal's thread between groups of messages, in small portions, and is the only place that deletes
anything from the journal. Every turn deletes a few rows that no recent checkpoint needs. Once a second it measures
disk, memory and descriptors, probes whether commits succeed again after a failed one, folds the write-ahead log
into the file, and forgets clients.
"""

import math
import time
from contextlib import suppress

from ffstream.config import Limits
from ffstream.errors import DiskFull, Unavailable
from ffstream.journal.journal import Journal
from ffstream.learning.checkpoints import Checkpoints
from ffstream.metrics import Metrics
from ffstream.server.resources import Resources, Usage
from ffstream.server.warnings import Warnings

_MEASURE_EVERY_S = 1.0
_NEAR_SHARE = 0.9  # of a limit on clients; beyond it, nameless clients are forgotten sooner
_LOG_SHARE = 0.25  # of journal_max_bytes; a larger log is folded, within the two bounds that follow
_LOG_MIN_BYTES, _LOG_MAX_BYTES = 8 << 20, 64 << 20  # SQLite folds it at about 32 MiB by itself
_FOLDS_MAX = 3  # failed attempts in a row; then a reader pins the log, and does not just read at the moment


class Housekeeping:
    """For the journal's thread. Other threads may read what it has measured."""

    def __init__(
        self, journal: Journal, checkpoints: Checkpoints, limits: Limits, resources: Resources, metrics: Metrics
    ) -> None:
        self._journal = journal
        self._checkpoints = checkpoints
        self._limits = limits
        self._resources = resources
        self._metrics = metrics
        self.warnings = Warnings(metrics)
        self.journal_bytes = 0
        self.log_bytes = 0
        self._shortage: Unavailable | None = None
        self._failed: Unavailable | None = None  # what the last commit met
        self._probe_bytes = 0
        self._log_allowed_bytes = int(min(max(_LOG_SHARE * limits.journal_max_bytes, _LOG_MIN_BYTES), _LOG_MAX_BYTES))
        self._folds_failed = 0
        self._measured_at = 0.0
        metrics.disk_min_free.set(limits.disk_min_free_bytes)
        metrics.memory_max.set(resources.memory_max)
        metrics.disk_free.set_function(lambda: self.usage and self.usage.disk_free_bytes)

    @property
    def usage(self) -> Usage | None:
        """Disk and memory as measured last. None before the first measurement."""
        return self._resources.usage

    @property
    def shortage(self) -> Unavailable | None:
        """Why nothing can be stored now: a commit failed, or disk, memory or descriptors run short."""
        return self._failed or self._shortage

    @property
    def disk_is_short(self) -> bool:
        """Whether nothing can be stored because the disk has too little room."""
        return isinstance(self.shortage, DiskFull)

    @property
    def journal_is_full(self) -> bool:
        """Whether the journal holds as many bytes as it may, not counting its log."""
        return self.journal_bytes >= self._limits.journal_max_bytes

    @property
    def log_is_pinned(self) -> bool:
        """Whether a reader keeps the log from being folded."""
        return self._folds_failed >= _FOLDS_MAX

    def stored(self, size: int) -> None:
        """That many bytes were committed since the last measurement."""
        self.journal_bytes += size

    def failed(self, error: Unavailable, size: int = 0) -> None:
        """A commit of that many bytes failed. Nothing is stored until a probe succeeds."""
        self._failed = error
        self._probe_bytes = size if isinstance(error, DiskFull) else 0
        self._measured_at = time.monotonic()

    def turn(self) -> bool:
        """One portion of work. True when more rows can be deleted at once."""
        more = self._trim()
        now = time.monotonic()
        if now - self._measured_at >= _MEASURE_EVERY_S:
            self._measured_at = now
            self._measure()
        return more

    def _trim(self) -> bool:
        if self.disk_is_short:
            self._checkpoints.make_room()
        with (
            suppress(Unavailable),  # no room to note what is deleted: tried again in the next turn
            self._checkpoints.retention.removable(journal_is_full=self.journal_is_full) as seq,
        ):
            return self._journal.trim(seq)
        return False

    def _measure(self) -> None:
        self._shortage = self._resources.shortage(self._journal.bytes_free())
        self._probe()
        self._fold_log()
        if self._failed is None:
            with suppress(Unavailable):  # tried again a second later; a commit finds out whether it is serious
                self._journal.keep_time()
                self._forget_clients()
        self.journal_bytes = self._journal.bytes_used()
        self._metrics.journal_bytes.set(self.journal_bytes)
        self._metrics.journal_log_bytes.set(self.log_bytes)
        self._metrics.clients.set(len(self._journal.clients))

    def _probe(self) -> None:
        """After a failed commit, unless a shortage is known: whether commits succeed again."""
        if self._failed is None or self._shortage is not None:
            return
        try:
            self._journal.probe(self._probe_bytes)
        except Unavailable as error:
            self._failed = error
        else:
            self._failed = None

    def _fold_log(self) -> None:
        """Folds the log when it is larger than usual, or when the disk is short."""
        size = self._journal.log_bytes()
        if size > self._log_allowed_bytes:
            self._folds_failed = 0 if self._journal.fold_log() else self._folds_failed + 1
        else:
            self._folds_failed = 0
            if size and isinstance(self._shortage, DiskFull):
                self._journal.fold_log()
        self.log_bytes = self._journal.log_bytes()
        pinned = f"the journal's log has grown to {self.log_bytes >> 20} MiB; {self.pinned_hint()}"
        self.warnings.set("log_pinned", pinned if self.log_is_pinned else None)

    def pinned_hint(self) -> str:
        """What to do about a reader that pins the log."""
        return f"end the program that reads {self._journal.path}: fuser -v {self._journal.path}-wal names it"

    def _forget_clients(self) -> None:
        limits, journal = self._limits, self._journal
        near = math.ceil(_NEAR_SHARE * limits.clients_max)
        near_names = math.ceil(_NEAR_SHARE * limits.client_names_max)
        try:
            journal.forget_clients(limits.client_forget_after_s)
            if len(journal.clients) >= near:
                journal.forget_nameless(limits.client_nameless_forget_after_s)
            if journal.clients.most_names() >= near_names:
                journal.forget_nameless(limits.client_nameless_forget_after_s, names_at_least=near_names)
        finally:
            text = None
            if len(journal.clients) >= near:
                text = f"{len(journal.clients)} clients are known; at {limits.clients_max} no new one is accepted"
                text += " (limits.clients_max, limits.client_forget_after_s)"
            elif journal.clients.most_names() >= near_names:
                text = (
                    f"a key has {journal.clients.most_names()} names; at {limits.client_names_max} it gets no new one"
                )
                text += " (limits.client_names_max, limits.client_forget_after_s)"
            self.warnings.set("clients_near_limit", text)
