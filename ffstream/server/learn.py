"""The learn socket: checks samples, commits them to the journal, acks them. Only this thread writes to the journal.

The order makes an ack a promise: the messages of a batch are checked, the valid ones are committed in one
transaction, and they are acked after the commit has returned.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field

from ffstream.config import Limits
from ffstream.errors import (
    BadHeader,
    FFStreamError,
    NameTaken,
    StoredDifferently,
    Unavailable,
)
from ffstream.journal import identity
from ffstream.journal.clients import Receipt
from ffstream.journal.journal import Entry, Journal
from ffstream.metrics import Metrics
from ffstream.server.admission import Admission
from ffstream.server.housekeeping import Housekeeping
from ffstream.server.lessons import Lesson, Lessons
from ffstream.server.received import Received
from ffstream.server.router import RouterLoop
from ffstream.util import failpoints
from ffstream.util.threads import OnFailure
from ffstream.wire import codec
from ffstream.wire.images import ImageChecker, count_unlabelled
from ffstream.wire.messages import PAGE_CLIENT, Ack, Bye, Hello, Samples

_GREETED_MAX = 20_000
_LESSONS_A_TURN = 64


@dataclass
class _Group:
    """The messages of one batch: those to store, by client and number, each with the peer to ack; and acks, by peer.

    `received_s`: when each message that gets an ack was received.
    `rejection_reason`: why no new message may be stored, if that is so.
    """

    rejection_reason: Unavailable | None
    accepted: dict[tuple[str, int], tuple[bytes, Entry]] = field(default_factory=dict)
    acks: dict[bytes, list[Receipt]] = field(default_factory=dict)
    received_s: list[float] = field(default_factory=list)


class LearnLoop(RouterLoop):
    """Thread `ff-learn`."""

    def __init__(
        self,
        journal: Journal,
        checker: ImageChecker,
        admission: Admission,
        housekeeping: Housekeeping,
        limits: Limits,
        *,
        boot: str,
        metrics: Metrics,
        on_failure: OnFailure,
    ) -> None:
        super().__init__(
            "learn",
            limits,
            metrics,
            on_failure,
            checker=checker,
            boot=boot,
            payload_max_bytes=limits.message_max_bytes,
            batch_messages=limits.commit_max_messages,
            batch_bytes=limits.commit_max_bytes,
        )
        self.journal = journal
        self.lessons = Lessons()
        self._admission = admission
        self._housekeeping = housekeeping
        self._has_more_to_delete = False
        metrics.credit.set_function(self.credit)
        self._greeted: dict[str, bytes] = {}  # by client, the peer that said hello last

    def credit(self) -> int:
        """Messages that a client may have unanswered."""
        return self._admission.credit()

    def rejection_reason(self) -> Unavailable | None:
        """Why every sample is rejected at present; None if samples are accepted."""
        return self._admission.rejection_reason()

    def handle(self, batch: list[Received]) -> None:
        """Stores new messages, acks stored ones, rejects the others."""
        group = _Group(self._admission.rejection_reason())
        greetings: list[tuple[bytes, str]] = []
        ended: list[str] = []  # clients that said bye
        for received in batch:
            peer, message, payload, key, *_ = received
            assert isinstance(message, Hello | Samples | Bye)
            if message.client is None:
                nameless = BadHeader("hello.client: Field required", hint="the learn socket needs a name")
                self.reject(peer, nameless, sender=received.sender())
                continue
            client = identity.join(key, message.client)
            if isinstance(message, Samples):
                try:
                    self._take(group, peer, client, message, payload)
                    group.received_s.append(received.at_s)
                except FFStreamError as error:
                    self.reject(peer, error, sender=received.sender(), n=message.n)
            elif isinstance(message, Hello):
                self._take_over(client, peer)
                greetings.append((peer, client))
            elif self._greeted.get(client) == peer:
                ended.append(client)
        self._commit(group)
        for peer, client in greetings:
            # After the commit, because `next` must be above all numbers stored before.
            self.welcome(peer, next=self.journal.clients.next_n(client))
        self._end(ended)
        credit = self.credit()
        for peer, receipts in group.acks.items():
            failpoints.reached("ack.before")
            self.reply(peer, Ack.model_construct(acks=receipts, credit=credit))
            failpoints.reached("ack.after")
        acked_s = time.perf_counter()
        for received_s in group.received_s:
            self._metrics.ack_seconds.observe(acked_s - received_s)

    def _take(self, group: _Group, peer: bytes, client: str, message: Samples, payload: list[bytes]) -> None:
        """Adds a message to those to store or to those to ack. Raises FFStreamError if it is rejected."""
        if self._greeted.get(client, peer) != peer:
            # From an earlier connection: the `next` in the welcome of the later one must remain true.
            raise NameTaken(
                "another connection has said hello under this name",
                hint="a client's name belongs to one producer at a time",
            )
        receipt, entry = self._check(client, message, payload)
        if receipt is not None:
            # Otherwise the ack would be for samples that are not stored.
            if receipt.samples != entry.samples or not self.journal.holds(receipt, entry):
                raise _stored_differently(message.n)
            self._metrics.samples_duplicate.inc(receipt.samples)
            group.acks.setdefault(peer, []).append(receipt)
        elif (client, entry.n) in group.accepted:
            self._metrics.samples_duplicate.inc(entry.samples)
            _, first = group.accepted[client, entry.n]
            if (first.labels, first.images) != (entry.labels, entry.images):
                raise _stored_differently(message.n)
            group.accepted[client, entry.n] = (peer, first)  # sent again after a reconnect: ack the new connection
        elif group.rejection_reason is not None:
            raise group.rejection_reason
        else:
            self._admission.admit(entry)
            group.accepted[client, entry.n] = (peer, entry)

    def _end(self, clients: list[str]) -> None:
        for client in clients:
            with suppress(Unavailable):  # then it is forgotten later, when it has been idle for long
                self.journal.end(client)

    def _take_over(self, client: str, peer: bytes) -> None:
        self._greeted.pop(client, None)
        self._greeted[client] = peer
        if len(self._greeted) > _GREETED_MAX:
            del self._greeted[next(iter(self._greeted))]  # the client that said hello longest ago

    def _check(self, client: str, message: Samples, payload: list[bytes]) -> tuple[Receipt | None, Entry]:
        (images,) = codec.expect_payload(payload, 1)
        if message.base > message.n:
            raise BadHeader("samples.base is above n", hint="base is the lowest number without an answer")
        images = self._checker.check_samples(message, images)
        self._metrics.samples_received.inc(message.count)
        entry = Entry(client, message.n, message.base, message.count, message.dtype, message.labels, images)
        return self.journal.clients.receipt(client, message.n), entry

    def _commit(self, group: _Group) -> None:
        """Commits the group in one transaction, and then adds its messages to the acks."""
        if not group.accepted:
            return
        try:
            receipts = self._append([entry for _, entry in group.accepted.values()])
        except Unavailable as error:
            group.received_s.clear()  # those that were stored before are acked, but say nothing about a commit
            for peer, entry in group.accepted.values():
                self.reject(peer, error, sender=f"client={identity.describe(entry.client)}", n=entry.n)
            return
        for (peer, _), receipt in zip(group.accepted.values(), receipts, strict=True):
            group.acks.setdefault(peer, []).append(receipt)

    def _append(self, entries: list[Entry]) -> list[Receipt]:
        """Stores admitted messages in one transaction. Raises Unavailable; then nothing was stored."""
        size = sum(len(entry.images) for entry in entries)
        start = time.perf_counter()
        try:
            receipts = self.journal.append(entries)
        except Unavailable as error:
            self._housekeeping.failed(error, size)
            self._admission.end_group()
            self._admission.report(at_once=True)
            raise
        metrics = self._metrics
        metrics.journal_commit.observe(time.perf_counter() - start)
        metrics.journal_commit_messages.observe(len(entries))
        metrics.samples_acked.inc(sum(receipt.samples for receipt in receipts))
        if self._checker.unlabelled:
            metrics.samples_unlabelled.inc(sum(count_unlabelled(entry.labels) for entry in entries))
        self._housekeeping.stored(size)
        self._admission.end_group()
        return receipts

    def _store_lessons(self) -> None:
        """Stores what is taught over HTTP: each sample is a message, all of them in one transaction."""
        n = self.journal.clients.next_n(PAGE_CLIENT)
        admitted: list[tuple[Lesson, Entry]] = []
        for _ in range(_LESSONS_A_TURN):
            lesson = self.lessons.take()
            if lesson is None:
                break
            try:
                admitted.append((lesson, self._admit_lesson(lesson, n=n + len(admitted), base=n)))
            except FFStreamError as error:
                self._reject_lesson(lesson, error)
        if not admitted:
            return
        try:
            receipts = self._append([entry for _, entry in admitted])
        except Unavailable as error:
            for lesson, _ in admitted:
                self._reject_lesson(lesson, error)
            return
        for (lesson, _), receipt in zip(admitted, receipts, strict=True):
            lesson.result.set_result(receipt.first_seq)

    def _admit_lesson(self, lesson: Lesson, *, n: int, base: int) -> Entry:
        """The message to store. Raises FFStreamError if it is not to be stored."""
        message = Samples.model_construct(
            client=PAGE_CLIENT,
            n=n,
            base=base,  # all earlier ones are answered
            count=1,
            dtype="uint8",
            shape=[self._checker.inputs],
            labels=lesson.label.to_bytes(2, "little"),
        )
        _, entry = self._check(PAGE_CLIENT, message, [lesson.image])
        if (reason := self._admission.rejection_reason()) is not None:
            raise reason
        self._admission.admit(entry)
        return entry

    def _reject_lesson(self, lesson: Lesson, error: FFStreamError) -> None:
        self.note_rejection(error, f"client={PAGE_CLIENT!r}")
        lesson.result.set_exception(error)

    def idle(self) -> None:
        """Between groups: what is taught, and one portion of housekeeping."""
        self._store_lessons()
        self._has_more_to_delete = self._housekeeping.turn()
        self._admission.report()

    def finish(self) -> None:
        """Rejects what is taught from now on."""
        self.lessons.close()

    def _poll_ms(self) -> int:
        return 0 if self._has_more_to_delete else super()._poll_ms()


def _stored_differently(n: int) -> StoredDifferently:
    return StoredDifferently(
        f"message {n} is on disk with other samples; these were not stored",
        hint="number new messages from `next` in the welcome; a client name belongs to one producer at a time",
    )
