"""Delivers the messages of one producer exactly once, over connections that may break.

Messages are numbered and kept until they are acked or rejected for good. After a reconnect, or when an answer is
overdue, this side says hello, and when it is welcome it sends everything unanswered again under its old number. The
daemon acks what it has stored before and stores the rest. So each sample is learned exactly once, and a lost
connection does not change the order.

Invariants: `unanswered` contains, in order, every message that was sent and has no final answer; its lowest number
is the `base` of the next message. On each connection, nothing is sent before the welcome, and then all unanswered
messages are sent in order, before new ones.

There is no thread: a ZeroMQ socket belongs to one thread, and handing each message to another thread would cost more
than sending it. Answers are read, and messages sent again, in `work` only.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import zmq

from ffstream.client.connection import Connection
from ffstream.client.images import EncodedImages, Encoder
from ffstream.client.unanswered import RETRY_S, Message, Retries, Unanswered
from ffstream.errors import BelowBase, RequestRefused, Unauthorized
from ffstream.wire import codec
from ffstream.wire.messages import Ack, ErrorReply, Hello, Ping, Pong, Samples, Welcome

_PING_S = 1.0
_NOW = int(zmq.NOBLOCK)  # plain numbers: using the enum costs as much as the call
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class Rejected(NamedTuple):
    """A message that the daemon has rejected for good, and why."""

    n: int
    samples: int
    code: str
    message: str
    hint: str


@dataclass
class Counts:
    """Numbers of samples so far. `acked` counts each sample once, however often it was sent."""

    sent: int = 0
    acked: int = 0
    resent: int = 0
    rejected: int = 0
    resolved_earlier: int = 0  # with `start_at`: they had a final answer before this producer was created


class Window(NamedTuple):
    """Limits on what may be unanswered."""

    messages: int
    bytes: int


class Delivery:
    """The messages of `client`, over a connection that was greeted. `start_at`: the first number, else `next`.

    Methods raise RequestRefused for a message that was rejected for good, unless there is an `on_rejected`, and
    always with the code `unauthorized` if the daemon does not accept the key.
    """

    def __init__(
        self,
        connection: Connection,
        welcome: Welcome,
        client: str,
        *,
        window: Window,
        ack_timeout_s: float,
        start_at: int | None,
        on_rejected: Callable[[Rejected], None] | None,
    ) -> None:
        self.counts = Counts()
        self.last_seq = 0
        self.next_n = welcome.next if start_at is None else start_at
        self.unanswered = Unanswered(self.next_n)
        self.worked_at = 0.0  # time of the last `work`
        self.ack_timeout_s = ack_timeout_s
        self._connection = connection
        self._client = client
        self._window = window
        self._resumes = start_at is not None
        self._on_rejected = on_rejected
        self._retries = Retries(window.messages)
        self._boot = welcome.boot
        self._hello_at = self._heard_at = self._asked_at = 0.0
        self._is_greeted = False  # on the connection that is up
        self._set_welcome(welcome)

    # --- sending ---------------------------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether a message with that many bytes may be sent now."""
        waiting = len(self.unanswered)
        return (
            waiting < min(self._window.messages, self._credit)
            and (not waiting or self.unanswered.bytes + size <= self._window.bytes)
            and not self._retries  # messages that were rejected for now go first
        )

    def send(self, encoded: EncodedImages, labels: bytes) -> int:
        """Sends a message, now or after the next welcome. Returns its number."""
        n = self.next_n
        self.next_n += 1
        fields = {
            "client": self._client,
            "n": n,
            "count": encoded.samples,
            "dtype": encoded.dtype,
            "shape": encoded.shape,
            "labels": labels,
        }
        self.unanswered.add(n, Message(encoded.samples, fields, encoded.frame))
        self.counts.sent += encoded.samples
        if len(self.unanswered) == 1:
            self._heard_at = self.worked_at  # an answer is due from now on
        self._transmit(n)
        return n

    def work(self, timeout_s: float) -> None:
        """Reads answers, waiting up to `timeout_s` for one, sends again what is due, asks for credit if it is 0."""
        received = self._connection.receive(timeout_s)
        while received is not None:
            self.handle(received[0])
            received = self._connection.receive(0.0)
        self.worked_at = now = time.monotonic()
        if self._connection.came_up():
            self._greet(now)
        elif not self._connection.monitor.is_up:
            self._connection.note_broken_connection()
        elif self._is_overdue(now):
            self._greet(now)
        elif self._is_greeted:
            self._resend(self._retries.take(now, self._credit, self.ack_timeout_s))
        if self._credit == 0 and now - self._asked_at > _PING_S:
            self._asked_at = now
            self._connection.send_if_up(Ping())

    def work_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Works until `done`. False if the timeout passed."""
        deadline = time.monotonic() + timeout_s
        while not done():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self.work(min(left_s, RETRY_S))
        return True

    def _is_overdue(self, now: float) -> bool:
        if not self._is_greeted:
            return now - self._hello_at > self.ack_timeout_s
        return bool(self.unanswered) and now - self._heard_at > self.ack_timeout_s

    def _greet(self, now: float) -> None:
        """Everything unanswered is sent again after the welcome."""
        self._is_greeted = False
        self._hello_at = now
        self._connection.send_if_up(Hello(client=self._client))

    def _resend(self, numbers: Iterable[int]) -> None:
        for n in numbers:
            if n in self.unanswered:
                self.counts.resent += self.unanswered[n].samples
                self._transmit(n)

    def _transmit(self, n: int) -> None:
        if not (self._connection.monitor.is_up and self._is_greeted):
            return  # it is sent with all others, after the welcome
        message = self.unanswered[n]
        message.fields["base"] = self.unanswered.base()
        socket = self._connection.socket
        try:
            socket.send(codec.encode_fields(Samples, message.fields), _MORE)
            socket.send(message.frame, _NOW)  # ZeroMQ accepts a message completely or not at all
        except zmq.Again:
            self._connection.monitor.is_up = False

    # --- answers ---------------------------------------------------------------------------------------------------

    def handle(self, answer: Any) -> None:
        """Handles an answer of the daemon."""
        if isinstance(answer, Ack):
            self._handle_ack(answer)
        elif isinstance(answer, Pong):
            self._set_credit(answer.credit)
            self._check_boot(answer.boot)
            self._note_rejection(answer)
            self._clear_reason()
        elif isinstance(answer, Welcome):
            self._handle_welcome(answer)
        elif isinstance(answer, ErrorReply):
            self._heard_at = time.monotonic()
            self._handle_error(answer)

    def _handle_ack(self, ack: Ack) -> None:
        self._set_credit(ack.credit)
        self._retries.acked(n for n, _, _ in ack.acks)
        for n, first_seq, count in ack.acks:
            if self._settle(n):
                self.counts.acked += count
                self.last_seq = max(self.last_seq, first_seq + count - 1)
        self._clear_reason()

    def _handle_welcome(self, welcome: Welcome) -> None:
        self._connection.check_socket(welcome)
        self._check_boot(welcome.boot)
        was_greeted = self._is_greeted
        self._set_welcome(welcome)
        if not was_greeted:
            self._retries.clear()
            self._clear_reason()
            self._reject_too_large()
            self._resend(list(self.unanswered))

    def _set_welcome(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self.encoder = Encoder(welcome)
        self._is_greeted = True
        self._set_credit(welcome.credit)
        self._note_rejection(welcome)

    def _set_credit(self, credit: int) -> None:
        self._credit = credit
        self._heard_at = self._asked_at = time.monotonic()

    def _note_rejection(self, answer: Welcome | Pong) -> None:
        if answer.refusing is not None:
            self._connection.note_reason(answer.refusing, answer.message, answer.hint)

    def _clear_reason(self) -> None:
        if self._credit and not self._retries:
            self._connection.reason = None

    def _check_boot(self, boot: str) -> None:
        """A restarted daemon may have another journal: sequence numbers are valid again from its first ack on."""
        if boot != self._boot:
            self._boot = boot
            self.last_seq = 0

    def _reject_too_large(self) -> None:
        """A restarted daemon may have a lower limit. Messages above it would break each connection."""
        most = self.welcome.max_bytes
        for n in [n for n in self.unanswered if len(self.unanswered[n].frame) > most]:
            size = len(self.unanswered[n].frame)
            self._reject(n, "too_large", f"message {n} has {size} bytes of images", f"at most {most} since a restart")

    def _handle_error(self, error: ErrorReply) -> None:
        if error.retry:
            self._connection.note_reason(error.code, error.message, error.hint)
            if error.retry_after_s is None:
                self._credit = 0  # until a pong says otherwise
            n = error.n if error.n in self.unanswered else None
            self._retries.rejected(n, time.monotonic(), error.retry_after_s)
        elif error.code == BelowBase.code and self._resumes and error.n is not None:
            message = self._settle(error.n)
            self.counts.resolved_earlier += message.samples if message else 0
        elif error.code == Unauthorized.code:  # not about the message: it is sent again when the key is accepted
            raise RequestRefused(error.code, error.message, hint=error.hint)
        else:
            self._reject(error.n, error.code, error.message, error.hint)

    def _reject(self, n: int | None, code: str, message: str, hint: str) -> None:
        settled = self._settle(n) if n is not None else None
        count = settled.samples if settled else 0
        self.counts.rejected += count
        if self._on_rejected is None:
            raise RequestRefused(code, message, hint=hint)
        self._on_rejected(Rejected(n or 0, count, code, message, hint))

    def _settle(self, n: int) -> Message | None:
        self._retries.settle(n)
        return self.unanswered.settle(n)
