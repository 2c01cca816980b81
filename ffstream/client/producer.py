"""Sends labelled images and keeps the promise's other half: what is not acked is sent again.

Messages are numbered 1, 2, 3 … and kept until they are acked or refused for good. After a reconnect, or when an
answer is overdue, the producer says hello, and when it is welcome sends everything unanswered again under its old
number; the daemon acks what it already has and stores the rest: each sample is learned exactly once, and a lost
connection does not change the order.

Invariants: `_unanswered` holds, in order, every message that was sent and has no final answer; its first number is
the `base` that the next message declares. On each connection, a message goes out only after the welcome, and after
all unanswered ones before it: until then nothing is handed to the socket, and then it all is, in order.

There is no thread behind a producer: a ZeroMQ socket belongs to one thread, and handing each message to another one
would cost more than sending it. Answers are read, and messages sent again, inside `send`, `flush` and `poll` only.
"""

import operator
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import msgpack
import zmq
from numpy.typing import ArrayLike

from ffstream.client.connection import Connection, duration, seconds
from ffstream.client.images import Encoder
from ffstream.client.keys import CurveKeys
from ffstream.errors import ConfigError, DeadlineExceeded, Reason, RequestRefused, Unauthorized
from ffstream.wire.messages import (
    DEFAULT_LEARN,
    NAMELESS_PREFIX,
    SEPARATOR,
    VERSION,
    Ack,
    Bye,
    ErrorReply,
    Hello,
    Ping,
    Pong,
    Welcome,
)

_PING_S = 1.0
_BYE_MS = 1000  # for a last message to leave
_RETRY_S = 0.1
_RETRY_MAX_S = 60.0  # whatever the daemon says
_NOW = int(zmq.NOBLOCK)  # as plain numbers: an enum costs as much as the call
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_NUMBER_END = 2**62
_READ_S = 0.002  # answers are read no more often between sends: each look costs a system call


class Refused(NamedTuple):
    """A message that the daemon will never take, and why."""

    n: int
    samples: int
    code: str
    message: str
    hint: str


@dataclass
class Counts:
    """Samples so far. `acked` counts each once, however often it was sent."""

    sent: int = 0
    acked: int = 0
    resent: int = 0
    rejected: int = 0
    resolved_earlier: int = 0  # with `start_at`: the daemon had a final answer for them before this producer began


class _Message(NamedTuple):
    samples: int
    header: dict[str, Any]
    frame: bytes


class Producer:
    """A connection to the learn socket, for the thread that uses it first (see owner.py).

    `client` names this producer for the daemon's memory of what it has seen. Without a name it gets a new one.
    `on_refused` is told about each message that was refused for good; without it, `send`, `flush` and `poll` raise.
    That the daemon does not let us in is always raised: RequestRefused with the code `unauthorized`.

    The constructor waits up to `connect_timeout_s` for a daemon that is still starting. Once connected, `send` and
    `flush` go on trying until their own timeout, however often the daemon restarts. While they wait, `waiting` says
    why; `on_waiting` is told about each new reason, also while connecting, and their DeadlineExceeded carries it.

    Work is done inside `send`, `flush` and `poll` only: a producer that is idle for long calls `poll` now and then,
    or `flush` before it goes idle. Otherwise a message that the daemon refused for now, or that got lost with a
    connection, is sent again only with the next call.

    Resuming after a crash, so that each sample is learned exactly once: give the producer a name, store for each
    message number which samples it holds before it is sent, and store `answered_n` now and then. After a restart,
    pass `start_at=answered_n + 1` (the stored one) and send the same messages from there on. Those that the daemon
    stored before the crash are acked again and not stored again; those that it did not store are stored now. A
    stored `answered_n` that is too low costs time and nothing else.
    Without `start_at` the producer begins at the daemon's `next`: above every number that was stored. That is the
    same only if no message below it lacked an answer when the producer crashed.
    `daemon_next` of a new producer is 1 when the daemon does not know the name: it is new, was forgotten, or the
    state folder was replaced.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_LEARN,
        *,
        client: str | None = None,
        window_messages: int = 1024,
        window_bytes: int = 64 << 20,
        ack_timeout_s: float = 5.0,
        connect_timeout_s: float = 10.0,
        on_refused: Callable[[Refused], None] | None = None,
        on_waiting: Callable[[Reason], None] | None = None,
        keys: CurveKeys | None = None,
        start_at: int | None = None,
    ) -> None:
        if start_at is not None and not 1 <= _whole(start_at, "start_at") < _NUMBER_END:
            raise ConfigError(f"start_at={start_at}", hint="message numbers are 1 to 2**62 - 1")
        self.client = NAMELESS_PREFIX + uuid.uuid4().hex if client is None else _checked_name(client)
        self.counts = Counts()
        self.last_seq = 0
        self._is_named = client is not None
        self._hello = Hello(client=self.client)
        self._window_messages = _whole(window_messages, "window_messages")
        self._window_bytes = _whole(window_bytes, "window_bytes")
        self._ack_timeout_s = seconds(ack_timeout_s, "ack_timeout_s")
        self._on_refused = on_refused
        self._unanswered: dict[int, _Message] = {}
        self._unanswered_bytes = 0
        self._retry: dict[int, None] = {}
        self._retry_at = 0.0
        self._burst = 1  # refused messages that are sent again at a time: twice as many when they are acked
        self._sent_again: set[int] = set()  # the last of them
        self._full_since: float | None = None
        self._worked_at = 0.0
        self._is_greeted = False  # on the connection that is up
        self._hello_at = 0.0
        connect_timeout_s = seconds(connect_timeout_s, "connect_timeout_s")
        self._connection = Connection(endpoint, "learn", (Ack, Pong), immediate=True, keys=keys)
        self._connection.on_reason = on_waiting
        self._handshakes = self._connection.handshakes
        self._owner = self._connection.owner
        try:
            welcome = self._connection.greet(self._hello, connect_timeout_s)
        except BaseException:
            self._connection.close()
            raise
        self._boot = welcome.boot
        self.daemon_next = welcome.next
        self._resumes = start_at is not None
        self._next_n = self._base = welcome.next if start_at is None else int(start_at)
        self._welcomed(welcome)

    def _welcomed(self, welcome: Welcome) -> None:
        self._limits = welcome
        self._encoder = Encoder(welcome)
        self._is_greeted = True
        self._heard(welcome.credit)
        self._note_refusal(welcome)

    def _heard(self, credit: int) -> None:
        self._credit = credit
        self._heard_at = self._asked_at = time.monotonic()

    @property
    def unanswered(self) -> int:
        """Messages without a final answer."""
        return len(self._unanswered)

    @property
    def next_n(self) -> int:
        """The number that the next message gets."""
        return self._next_n

    @property
    def answered_n(self) -> int:
        """Each message up to this number has a final answer: it was acked, or refused for good."""
        return next(iter(self._unanswered), self._next_n) - 1

    @property
    def welcome(self) -> Welcome:
        """What the daemon said of itself: its limits, and the inputs and labels of its network."""
        return self._limits

    @property
    def waiting(self) -> Reason | None:
        """Why messages wait: the daemon's last refusal that will pass, or what is wrong with the connection. None
        while all goes well."""
        return self._connection.reason

    def send(self, images: ArrayLike, labels: ArrayLike, timeout_s: float = 60.0) -> int:
        """Sends images (B, …; uint8 0 to 255, float 0.0 to 1.0, or bool) and labels (B) as one message; returns its
        number.

        A single image may come without the first dimension. Waits while the window is full. Raises DeadlineExceeded
        when it stays full, RequestRefused for an earlier message that was refused, and BadDtype, BadShape,
        LabelOutOfRange, NotFinite, ValueOutOfRange or TooLarge for what the daemon would not take: then nothing is
        sent.
        """
        self._owner.check()
        encoded = self._encoder.images(images)
        label_bytes = self._encoder.labels(labels, encoded.samples)
        self._await_window(len(encoded.frame), timeout_s)
        n = self._next_n
        self._next_n += 1
        header = {
            "v": VERSION,
            "type": "samples",
            "client": self.client,
            "n": n,
            "count": encoded.samples,
            "dtype": encoded.dtype,
            "shape": encoded.shape,
            "labels": label_bytes,
        }
        message = _Message(encoded.samples, header, encoded.frame)
        self._unanswered[n] = message
        self._unanswered_bytes += len(encoded.frame)
        self.counts.sent += encoded.samples
        if len(self._unanswered) == 1:
            self._heard_at = self._worked_at  # an answer is due from now on
        self._transmit(message)
        return n

    def flush(self, timeout_s: float = 60.0) -> None:
        """Returns once every message has a final answer. Raises DeadlineExceeded, RequestRefused."""
        self._owner.check()
        began = time.monotonic()
        if not self._work_until(lambda: not self._unanswered, seconds(timeout_s, "timeout_s")):
            raise self._late("unanswered messages remain", time.monotonic() - began)

    def poll(self, timeout_s: float = 0.0) -> int:
        """Reads the answers that have come, waiting up to `timeout_s` for one, and sends again what is due.

        Returns how many messages have no final answer. Raises RequestRefused.
        """
        self._owner.check()
        self._work(seconds(timeout_s, "timeout_s"))
        return len(self._unanswered)

    def _await_window(self, size: int, timeout_s: float) -> None:
        now = time.monotonic()
        if now - self._worked_at > _READ_S:
            self._work(0.0)
        if not self._has_room(size):
            if self._full_since is None:
                self._full_since = now
            if not self._work_until(lambda: self._has_room(size), seconds(timeout_s, "timeout_s")):
                raise self._late("the window stays full", time.monotonic() - self._full_since)
        self._full_since = None

    def _has_room(self, size: int) -> bool:
        window = min(self._window_messages, self._credit)
        waiting = len(self._unanswered)
        return (
            waiting < window
            and (not waiting or self._unanswered_bytes + size <= self._window_bytes)
            and not self._retry  # what was refused for now goes first
        )

    def _work_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not done():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self._work(min(left_s, _RETRY_S))
        return True

    def _late(self, what: str, waited_s: float) -> DeadlineExceeded:
        """The error that says why it took so long, as far as is known."""
        reason = self.waiting
        why = f"; {reason}" if reason is not None else ""
        return DeadlineExceeded(
            f"{what} after {duration(waited_s)}: {len(self._unanswered)} messages{why}",
            hint=(reason.hint if reason is not None else "") or "`ffstream status` tells what the daemon is doing",
            reason=reason,
        )

    def _work(self, timeout_s: float) -> None:
        """Reads answers, sends again what must be sent again, asks for credit when there is none."""
        received = self._connection.receive(timeout_s)
        while received is not None:
            self._take(received[0])
            received = self._connection.receive(0.0)
        self._worked_at = now = time.monotonic()
        if self._connection.came_up():
            self._greet_again(now)
        elif not self._handshakes.is_up:
            self._connection.note_connection()
        elif not self._is_greeted:
            if now - self._hello_at > self._ack_timeout_s:
                self._greet_again(now)
        elif self._unanswered and now - self._heard_at > self._ack_timeout_s:
            self._greet_again(now)
        elif self._retry and self._credit and now >= self._retry_at:
            self._resend_refused(now)
        if self._credit == 0 and now - self._asked_at > _PING_S:
            self._asked_at = now
            self._connection.say(Ping())

    def _resend_refused(self, now: float) -> None:
        """The lowest ones; the others when these are acked. All at once would meet the same limit again."""
        burst = sorted(self._retry)[: min(self._burst, self._credit)]
        self._sent_again = set(burst)
        for n in burst:
            del self._retry[n]
        self._retry_at = now + self._ack_timeout_s
        self._resend(burst)

    def _greet_again(self, now: float) -> None:
        """Everything unanswered is sent again after the welcome."""
        self._is_greeted = False
        self._hello_at = now
        self._connection.say(self._hello)

    def _take(self, answer: Any) -> None:
        if isinstance(answer, Ack):
            self._heard(answer.credit)
            if not self._sent_again.isdisjoint(n for n, _, _ in answer.acks):
                self._burst = min(2 * self._burst, self._window_messages)
                self._retry_at = 0.0
            for n, first_seq, count in answer.acks:
                if self._settle(n):
                    self.counts.acked += count
                    self.last_seq = max(self.last_seq, first_seq + count - 1)
            self._goes_on()
        elif isinstance(answer, Pong):
            self._heard(answer.credit)
            self._check_boot(answer.boot)
            self._note_refusal(answer)
            self._goes_on()
        elif isinstance(answer, Welcome):
            self._take_welcome(answer)
        elif isinstance(answer, ErrorReply):
            self._heard_at = time.monotonic()
            self._handle_error(answer)

    def _note_refusal(self, answer: Welcome | Pong) -> None:
        if answer.refusing is not None:
            self._connection.note(answer.refusing, answer.message, answer.hint)

    def _goes_on(self) -> None:
        if self._credit and not self._retry:
            self._connection.reason = None

    def _check_boot(self, boot: str) -> None:
        """Another start of the daemon may have another journal: sequence numbers begin again with its acks."""
        if boot != self._boot:
            self._boot = boot
            self.last_seq = 0

    def _take_welcome(self, welcome: Welcome) -> None:
        self._connection.check_socket(welcome)
        self._check_boot(welcome.boot)
        was_greeted = self._is_greeted
        self._welcomed(welcome)
        if not was_greeted:
            self._retry.clear()
            self._goes_on()
            self._refuse_too_large()
            self._resend(list(self._unanswered))

    def _refuse_too_large(self) -> None:
        """A restarted daemon may have a lower limit; what is over it would break each connection."""
        most = self._limits.max_bytes
        for n in [n for n, message in self._unanswered.items() if len(message.frame) > most]:
            size = len(self._unanswered[n].frame)
            self._refused(
                n, "too_large", f"message {n} has {size} bytes of images", f"at most {most} since a restart"
            )

    def _handle_error(self, error: ErrorReply) -> None:
        if error.retry:
            self._wait_to_retry(error)
        elif error.code == "below_base" and self._resumes and error.n in self._unanswered:
            message = self._settle(error.n)
            self.counts.resolved_earlier += message.samples if message else 0
        elif error.code == Unauthorized.code:  # of the key, not of the message: it is sent again when the key is back
            raise RequestRefused(error.code, error.message, hint=error.hint)
        else:
            self._refused(error.n, error.code, error.message, error.hint)

    def _wait_to_retry(self, error: ErrorReply) -> None:
        self._connection.note(error.code, error.message, error.hint)
        if error.n in self._unanswered:
            self._retry[error.n] = None
        if error.retry_after_s is None:
            self._credit = 0  # until a pong says otherwise
        self._burst = 1
        self._sent_again.clear()
        wait_s = min(max(error.retry_after_s or 0.0, _RETRY_S), _RETRY_MAX_S)
        self._retry_at = time.monotonic() + wait_s

    def _refused(self, n: int | None, code: str, message: str, hint: str) -> None:
        settled = self._settle(n) if n is not None else None
        count = settled.samples if settled else 0
        self.counts.rejected += count
        if self._on_refused is None:
            raise RequestRefused(code, message, hint=hint)
        self._on_refused(Refused(n or 0, count, code, message, hint))

    def _settle(self, n: int) -> _Message | None:
        message = self._unanswered.pop(n, None)
        if message is not None:
            self._unanswered_bytes -= len(message.frame)
            self._retry.pop(n, None)
        return message

    def _resend(self, numbers: Iterable[int]) -> None:
        for n in numbers:
            message = self._unanswered.get(n)
            if message is not None:
                self.counts.resent += message.samples
                self._transmit(message)

    def _transmit(self, message: _Message) -> None:
        if not (self._handshakes.is_up and self._is_greeted):
            return  # it goes out with all others, after the welcome
        while self._base not in self._unanswered:  # cheaper than the first key of a dict that shrinks from the front
            self._base += 1
        message.header["base"] = self._base
        socket = self._connection.socket
        try:
            socket.send(msgpack.packb(message.header), _MORE)
            socket.send(message.frame, _NOW)  # ZeroMQ takes a message whole or not at all
        except zmq.Again:
            self._handshakes.is_up = False

    def close(self) -> None:
        """Closes the connection. What is unanswered may or may not have been stored: `flush` first."""
        if self._connection.socket.closed:
            return
        self._owner.check()
        if self._unanswered or self._is_named:  # it may come again, or somebody of that name
            self._connection.close()
        else:
            self._connection.say(Bye(client=self.client))
            self._connection.close(_BYE_MS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()


def _whole(value: Any, name: str) -> int:
    """A whole number from 1 on. Raises ConfigError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name}={value!r}", hint="a whole number, 1 or more")
    return number


def _checked_name(client: Any) -> str:
    """A client's name. Raises ConfigError."""
    if not isinstance(client, str):
        raise ConfigError(f"client={client!r}", hint="the client's name is text: client=str(…)")
    try:
        size = len(client.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 64 or SEPARATOR in client:
        raise ConfigError(
            f"client={client!r} is no client's name",
            hint="1 to 64 bytes of UTF-8 without U+001F; leave it out for a new name",
        )
    return client
