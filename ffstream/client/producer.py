"""Sends labelled images and keeps the promise's other half: what is not acked is sent again.

Messages are numbered 1, 2, 3 … and kept until they are acked or refused for good. After a reconnect, or when an
answer is overdue, everything unanswered is sent again under its old number; the daemon acks what it already has and
stores the rest: each sample is learned exactly once, and a lost connection does not change the order.

Invariants: `_unanswered` holds, in order, every message that was sent and has no final answer; its first number is
the `base` that the next message declares. On each connection, a message goes out only after all unanswered ones
before it: without a connection nothing is handed to the socket, and when there is one again it all is, in order.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import msgpack
import numpy as np
import zmq
from numpy.typing import ArrayLike, NDArray

from ffstream.client.connection import Connection
from ffstream.client.keys import CurveKeys
from ffstream.errors import ConfigError, DeadlineExceeded, RequestRefused, TooLarge, Unauthorized
from ffstream.wire import codec
from ffstream.wire.messages import (
    DEFAULT_LEARN,
    NAMELESS_PREFIX,
    VERSION,
    Ack,
    Bye,
    ErrorReply,
    Hello,
    Message,
    Ping,
    Pong,
    Welcome,
)

_PING_S = 1.0
_BYE_MS = 1000  # for a last message to leave
_RETRY_S = 0.1
_NOW = int(zmq.NOBLOCK)  # as plain numbers: an enum costs as much as the call
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_NUMBER_END = 2**62
_LOOK_S = 0.01  # well below the time that a connection takes to come up again


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
    """A connection to the learn socket. For one thread.

    `client` names this producer for the daemon's memory of what it has seen. Without a name it gets a new one.
    `on_refused` is told about each message that was refused for good; without it, `send` and `flush` raise.
    That the daemon does not let us in is always raised: RequestRefused with the code `unauthorized`.

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
        keys: CurveKeys | None = None,
        start_at: int | None = None,
    ) -> None:
        if start_at is not None and not 1 <= start_at < _NUMBER_END:
            raise ConfigError(f"start_at={start_at}", hint="message numbers are 1 to 2**62 - 1")
        self.client = client or NAMELESS_PREFIX + uuid.uuid4().hex
        self._is_named = bool(client)
        if len(self.client.encode()) > 64:
            raise ConfigError("the client's name is longer than 64 bytes", hint="take a shorter one")
        self.counts = Counts()
        self.last_seq = 0
        self._window_messages = window_messages
        self._window_bytes = window_bytes
        self._ack_timeout_s = ack_timeout_s
        self._on_refused = on_refused
        self._unanswered: dict[int, _Message] = {}
        self._unanswered_bytes = 0
        self._retry: deque[int] = deque()
        self._retry_at = 0.0
        self._credit = 1
        self._looked_at = 0.0
        self._connection = Connection(endpoint, (Welcome, Ack, Pong), immediate=True, keys=keys)
        self._handshakes = self._connection.handshakes
        try:
            self.daemon_next = self._greet(connect_timeout_s)
        except BaseException:
            self.close()
            raise
        self._resumes = start_at is not None
        self._next_n = self._base = self.daemon_next if start_at is None else start_at

    def _greet(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._reconnected():  # at first, and whenever a daemon died before its welcome
                self._say(Hello(client=self.client))
            received = self._connection.receive(min(left_s, _LOOK_S))
            if received is None:
                continue
            if isinstance(received[0], ErrorReply):
                raise RequestRefused(received[0].code, received[0].message, hint=received[0].hint)
            if isinstance(received[0], Welcome):
                self._heard(received[0].credit)
                self._limits = received[0]
                return received[0].next
        raise DeadlineExceeded(
            f"no welcome from {self._connection.endpoint} in {timeout_s:g} s",
            hint="does the daemon run there?",
        )

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

    def send(self, images: ArrayLike, labels: ArrayLike, timeout_s: float = 60.0) -> int:
        """Sends images (B, …; uint8 0 to 255, or float 0.0 to 1.0) and labels (B) as one message; returns its number.

        A single image may come without the first dimension if its label is a plain number. Waits while the window is
        full. Raises DeadlineExceeded when it stays full, RequestRefused for an earlier message that was refused, and
        BadDtype, BadShape, LabelOutOfRange or TooLarge for what cannot be sent.
        """
        array: NDArray[Any] = np.asarray(images)
        if np.ndim(labels) == 0:
            array = array[None]
        dtype, shape, frame = codec.array_to_images(array)
        label_bytes = codec.labels_to_bytes(labels, len(array))
        self._check_size(len(array), len(frame))
        self._await_window(len(frame), timeout_s)
        if time.monotonic() - self._looked_at > _LOOK_S and self._reconnected():
            self._resend_all()
        n = self._next_n
        self._next_n += 1
        header = {
            "v": VERSION,
            "type": "samples",
            "client": self.client,
            "n": n,
            "count": len(array),
            "dtype": dtype,
            "shape": shape,
            "labels": label_bytes,
        }
        message = _Message(len(array), header, frame)
        self._unanswered[n] = message
        self._unanswered_bytes += len(frame)
        self.counts.sent += len(array)
        if len(self._unanswered) == 1:
            self._heard_at = time.monotonic()  # an answer is due from now on
        self._transmit(message)
        return n

    def flush(self, timeout_s: float = 60.0) -> None:
        """Returns once every message has a final answer. Raises DeadlineExceeded, RequestRefused."""
        self._work_until(lambda: not self._unanswered, timeout_s, "unanswered messages remain")

    def _check_size(self, samples: int, size: int) -> None:
        # The daemon cannot answer a message over its byte limit: the connection breaks, and would again and again.
        limits = self._limits
        if samples > limits.max_samples or size > limits.max_bytes:
            raise TooLarge(
                f"{samples} samples, {size} bytes in a message",
                hint=f"at most {limits.max_samples} samples, {limits.max_bytes} bytes",
            )

    def _await_window(self, size: int, timeout_s: float) -> None:
        if self._has_room(size):
            # Answers are read in passing now and then; each look costs a system call.
            if self._next_n % 32 == 0:
                self._work(0.0)
            return
        self._work_until(lambda: self._has_room(size), timeout_s, "the window stays full")

    def _has_room(self, size: int) -> bool:
        window = min(self._window_messages, self._credit)
        waiting = len(self._unanswered)
        return waiting < window and (not waiting or self._unanswered_bytes + size <= self._window_bytes)

    def _work_until(self, done: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(
                    f"{otherwise} after {timeout_s:g} s: {len(self._unanswered)} messages",
                    hint="ffstream status",
                )
            self._work(min(left_s, _RETRY_S))

    def _work(self, timeout_s: float) -> None:
        """Reads answers, sends again what must be sent again, asks for credit when there is none."""
        received = self._connection.receive(timeout_s)
        while received is not None:
            self._take(received[0])
            received = self._connection.receive(0.0)
        now = time.monotonic()
        overdue = self._handshakes.is_up and self._unanswered and now - self._heard_at > self._ack_timeout_s
        if self._reconnected() or overdue:
            self._resend_all()
        elif self._retry and self._credit and now >= self._retry_at:
            self._resend(self._retry)
            self._retry.clear()
        if self._credit == 0 and now - self._asked_at > _PING_S:
            self._asked_at = now
            self._say(Ping())

    def _take(self, answer: Any) -> None:
        if isinstance(answer, Ack):
            self._heard(answer.credit)
            for n, first_seq, count in answer.acks:
                if self._settle(n):
                    self.counts.acked += count
                    self.last_seq = max(self.last_seq, first_seq + count - 1)
        elif isinstance(answer, Pong | Welcome):
            self._heard(answer.credit)
        elif isinstance(answer, ErrorReply):
            self._heard_at = time.monotonic()
            self._handle_error(answer)

    def _handle_error(self, error: ErrorReply) -> None:
        if error.retry and error.n in self._unanswered:
            self._retry.append(error.n)
            self._credit = 0  # until a pong says otherwise
            self._retry_at = time.monotonic() + _RETRY_S
            return
        message = self._settle(error.n) if error.n is not None else None
        count = message.samples if message else 0
        if error.code == "below_base" and self._resumes:
            self.counts.resolved_earlier += count
            return
        self.counts.rejected += count
        if self._on_refused is None or error.code == Unauthorized.code:
            raise RequestRefused(error.code, error.message, hint=error.hint)
        self._on_refused(Refused(error.n or 0, count, error.code, error.message, error.hint))

    def _settle(self, n: int) -> _Message | None:
        message = self._unanswered.pop(n, None)
        if message is not None:
            self._unanswered_bytes -= len(message.frame)
        return message

    def _reconnected(self) -> bool:
        """Whether the connection came up again since the last look."""
        self._looked_at = time.monotonic()
        self._handshakes.look()
        again = self._handshakes.came_up and self._handshakes.is_up
        self._handshakes.came_up = False
        return again

    def _resend_all(self) -> None:
        self._say(Hello(client=self.client))
        self._heard_at = time.monotonic()
        self._retry.clear()
        self._resend(list(self._unanswered))

    def _resend(self, numbers: Any) -> None:
        for n in numbers:
            message = self._unanswered.get(n)
            if message is not None:
                self.counts.resent += message.samples
                self._transmit(message)

    def _transmit(self, message: _Message) -> None:
        if not self._handshakes.is_up:
            return
        while self._base not in self._unanswered:  # cheaper than the first key of a dict that shrinks from the front
            self._base += 1
        message.header["base"] = self._base
        socket = self._connection.socket
        try:
            socket.send(msgpack.packb(message.header), _MORE)
            socket.send(message.frame, _NOW)  # ZeroMQ takes a message whole or not at all
        except zmq.Again:
            self._handshakes.is_up = False

    def _say(self, message: Message) -> None:
        try:
            self._connection.send(message)
        except zmq.Again:
            self._handshakes.is_up = False

    def close(self) -> None:
        """Closes the connection. What is unanswered may or may not have been stored: `flush` first."""
        if self._connection.socket.closed:
            return
        if self._unanswered or self._is_named:  # it may come again, or somebody of that name
            self._connection.close()
        else:
            self._say(Bye(client=self.client))
            self._connection.close(_BYE_MS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()
