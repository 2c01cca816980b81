"""The learn socket: check, commit, ack. The journal belongs to this loop's thread.

The order that makes an ack a promise: all messages that wait are checked, the good ones committed in one transaction,
and only when that has returned are they acked.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ffstream import moments
from ffstream.errors import (
    BadHeader,
    Draining,
    FFStreamError,
    JournalFull,
    StaleSequence,
    TooManyClients,
    Unavailable,
)
from ffstream.journal.journal import Entry, Journal, Receipt
from ffstream.metrics import Metrics
from ffstream.server.router import Received, RouterLoop, SocketLimits
from ffstream.wire import codec
from ffstream.wire.messages import Ack, Hello, Samples, Welcome


@dataclass(frozen=True)
class LearnLimits:
    """Limits of ingest."""

    window_messages: int
    commit_max_messages: int
    commit_max_bytes: int
    message_max_bytes: int
    backlog_max_samples: int
    journal_max_bytes: int
    clients_max: int


class LearnLoop(RouterLoop):
    """Thread `ff-learn`."""

    def __init__(
        self,
        journal: Journal,
        checker: codec.ImageChecker,
        limits: LearnLimits,
        sockets: SocketLimits,
        *,
        applied_seq: Callable[[], int],
        trim: Callable[[], bool],
        metrics: Metrics,
        on_failure: Callable[[Exception], None],
    ) -> None:
        super().__init__(
            "learn",
            (Hello, Samples),
            sockets,
            metrics,
            on_failure,
            batch_messages=limits.commit_max_messages,
            batch_bytes=limits.commit_max_bytes,
        )
        self.journal = journal
        self._checker = checker
        self._own_limits = limits
        self._applied_seq = applied_seq
        self._trim = trim
        self._trims = False
        self._measured = 0.0
        self._journal_bytes = 0
        self.draining = False

    def credit(self) -> int:
        """The window, or 0 while the journal is over a limit or the daemon drains."""
        return 0 if self._obstacle() else self._own_limits.window_messages

    def _obstacle(self) -> Unavailable | None:
        """Why nothing can be stored now."""
        limits = self._own_limits
        if self.draining:
            return Draining("the daemon is stopping", hint="send again after its restart")
        backlog = self.journal.backlog(self._applied_seq())
        if backlog >= limits.backlog_max_samples:
            return JournalFull(f"{backlog} samples wait to be learned", hint="slow down; limits.backlog_max_samples")
        if self._journal_bytes >= limits.journal_max_bytes:
            return JournalFull(f"the journal holds {self._journal_bytes} bytes", hint="limits.journal_max_bytes")
        return None

    def handle(self, batch: list[Received]) -> None:
        """Stores what is new, acks what is stored, refuses the rest."""
        accepted: dict[tuple[str, int], tuple[bytes, Entry]] = {}
        acks: dict[bytes, list[Receipt]] = {}
        greetings: list[tuple[bytes, Hello]] = []
        obstacle = self._obstacle()
        for peer, message, payload in batch:
            if isinstance(message, Hello):
                greetings.append((peer, message))
                continue
            assert isinstance(message, Samples)
            try:
                receipt, entry = self._check(message, payload)
                if receipt is not None and receipt.samples != message.count:
                    raise StaleSequence(
                        f"message {message.n} was stored with {receipt.samples} samples",
                        hint="a client's name belongs to one producer at a time",
                    )
                if receipt is not None:
                    self._metrics.samples_duplicate.inc(receipt.samples)
                    acks.setdefault(peer, []).append(receipt)
                elif (entry.client, entry.n) in accepted:
                    self._metrics.samples_duplicate.inc(entry.samples)
                    first = accepted[entry.client, entry.n][1]
                    accepted[entry.client, entry.n] = (
                        peer,
                        first,
                    )  # sent again after a reconnect: ack the new one
                elif obstacle is not None:
                    self.refuse(peer, obstacle, n=message.n)
                else:
                    self._admit(entry)
                    accepted[entry.client, entry.n] = (peer, entry)
            except FFStreamError as error:
                self.refuse(peer, error, n=message.n)
        self._commit(list(accepted.values()), acks)
        for peer, hello in greetings:
            self._welcome(peer, hello)  # after the commit: `next` must be above all that came before
        credit = self.credit()
        for peer, receipts in acks.items():
            moments.reached("ack.before")
            self.reply(peer, Ack.model_construct(acks=receipts, credit=credit))
            moments.reached("ack.after")

    def _welcome(self, peer: bytes, hello: Hello) -> None:
        limits = self._own_limits
        welcome = Welcome(
            next=self.journal.next_n(hello.client),
            credit=self.credit(),
            max_samples=self._checker.max_samples,
            max_bytes=limits.message_max_bytes,
            inputs=self._checker.inputs,
            labels=self._checker.labels,
        )
        self.reply(peer, welcome)

    def _check(self, message: Samples, payload: list[bytes]) -> tuple[Receipt | None, Entry]:
        (images,) = codec.expect_payload(payload, 1)
        if message.base > message.n:
            raise BadHeader("samples.base is above n", hint="base is the lowest number without an answer")
        self._checker.check_samples(message, images)
        self._metrics.samples_received.inc(message.count)
        entry = Entry(message.client, message.n, message.base, message.count, message.dtype, message.labels, images)
        return self.journal.receipt(message.client, message.n), entry

    def _admit(self, entry: Entry) -> None:
        if self.journal.clients >= self._own_limits.clients_max and not self.journal.knows(entry.client):
            raise TooManyClients(f"{self.journal.clients} clients are known", hint="limits.clients_max")

    def _commit(self, accepted: list[tuple[bytes, Entry]], acks: dict[bytes, list[Receipt]]) -> None:
        """One transaction. After it has returned, and only then, the messages appear among the acks."""
        if not accepted:
            return
        start = time.perf_counter()
        try:
            receipts = self.journal.append([entry for _, entry in accepted])
        except Unavailable as error:
            for peer, entry in accepted:
                self.refuse(peer, error, n=entry.n)
            return
        metrics = self._metrics
        metrics.journal_commit.observe(time.perf_counter() - start)
        metrics.journal_commit_messages.observe(len(accepted))
        metrics.samples_acked.inc(sum(receipt.samples for receipt in receipts))
        for (peer, _), receipt in zip(accepted, receipts, strict=True):
            acks.setdefault(peer, []).append(receipt)

    def idle(self) -> None:
        """Deletes a few rows that no kept checkpoint needs, and looks at sizes now and then."""
        try:
            self._trims = self._trim()
        except Unavailable:
            self._trims = False  # no room to note what is deleted: tried again at the next turn
        now = time.monotonic()
        if now - self._measured > 1.0:
            self._measured = now
            self._journal_bytes = self.journal.bytes_used()
            self._metrics.journal_bytes.set(self._journal_bytes)
            self._metrics.clients.set(self.journal.clients)

    def _poll_ms(self) -> int:
        return 0 if self._trims else super()._poll_ms()
