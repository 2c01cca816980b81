"""A client for the learn socket: sends labelled images, and sends again what is not acked."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Self

from numpy.typing import ArrayLike

from ffstream.client.arguments import client_name, positive_int, seconds
from ffstream.client.connection import Connection, duration
from ffstream.client.delivery import Counts, Delivery, Rejected, Window
from ffstream.client.keys import CurveKeys
from ffstream.errors import ConfigError, DeadlineExceeded, Reason
from ffstream.wire.messages import DEFAULT_LEARN, NAMELESS_PREFIX, Ack, Bye, Hello, Pong, Welcome

_BYE_MS = 1000  # for the last message to be sent
_NUMBER_END = 2**62
_READ_S = 0.002  # between two reads of answers in `send`: each costs a system call


class Producer:
    """A connection to the learn socket, for the thread that uses it first (see thread_affinity.py).

    `client` is the name under which the daemon remembers what this producer has sent; a name is generated without
    it. `on_rejected` is called with each message that was rejected for good; without it, `send`, `flush` and `poll`
    raise. They always raise RequestRefused with the code `unauthorized` if the daemon does not accept the key.

    The constructor waits up to `connect_timeout_s` for a daemon that is still starting. Once connected, `send` and
    `flush` retry until their own timeout, however often the daemon restarts. While they wait, `waiting` is the
    reason. `on_waiting` is called with each new reason, also while connecting, and their DeadlineExceeded contains
    it.

    All work is done in `send`, `flush` and `poll`. A producer that is idle for long calls `poll` now and then, or
    `flush` before it becomes idle. Otherwise a message that was rejected for now, or lost with a connection, is sent
    again only in the next call.

    To resume after a crash so that each sample is learned exactly once: give the producer a name, record which
    samples a message holds before it is sent, and record `answered_n` now and then. After the restart pass
    `start_at=answered_n + 1` (the recorded one) and send the same messages from there on. Those that were stored
    before the crash are acked again and not stored again. A recorded `answered_n` that is too low only costs time.
    Without `start_at` the producer begins at the daemon's `next`, above every number that was stored. That is only
    the same if no message below it was unanswered at the crash. `daemon_next` of a new producer is 1 if the daemon
    does not know the name: it is new or was forgotten, or the state folder was replaced.
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
        on_rejected: Callable[[Rejected], None] | None = None,
        on_waiting: Callable[[Reason], None] | None = None,
        keys: CurveKeys | None = None,
        start_at: int | None = None,
    ) -> None:
        self.client = NAMELESS_PREFIX + uuid.uuid4().hex if client is None else client_name(client)
        self._is_named = client is not None
        self._full_since: float | None = None
        window = Window(positive_int(window_messages, "window_messages"), positive_int(window_bytes, "window_bytes"))
        ack_timeout_s = seconds(ack_timeout_s, "ack_timeout_s")
        connect_timeout_s = seconds(connect_timeout_s, "connect_timeout_s")
        start_at = None if start_at is None else positive_int(start_at, "start_at")
        if start_at is not None and start_at >= _NUMBER_END:
            raise ConfigError(f"start_at={start_at}", hint="message numbers are 1 to 2**62 - 1")
        self._connection = Connection(endpoint, "learn", (Ack, Pong), immediate=True, keys=keys)
        self._connection.on_reason = on_waiting
        self._affinity = self._connection.affinity
        try:
            welcome = self._connection.greet(Hello(client=self.client), connect_timeout_s)
        except BaseException:
            self._connection.close()
            raise
        self.daemon_next = welcome.next
        self._delivery = Delivery(
            self._connection,
            welcome,
            self.client,
            window=window,
            ack_timeout_s=ack_timeout_s,
            start_at=start_at,
            on_rejected=on_rejected,
        )

    @property
    def counts(self) -> Counts:
        """Numbers of samples so far."""
        return self._delivery.counts

    @property
    def last_seq(self) -> int:
        """The highest sequence number that was acked since the daemon's start; 0 before."""
        return self._delivery.last_seq

    @property
    def unanswered(self) -> int:
        """Number of messages without a final answer."""
        return len(self._delivery.unanswered)

    @property
    def next_n(self) -> int:
        """The number of the next message."""
        return self._delivery.next_n

    @property
    def answered_n(self) -> int:
        """Every message up to this number has a final answer: it was acked, or rejected for good."""
        return next(iter(self._delivery.unanswered), self._delivery.next_n) - 1

    @property
    def welcome(self) -> Welcome:
        """The daemon's latest `welcome`: its limits, and the images and labels of its network."""
        return self._delivery.welcome

    @property
    def waiting(self) -> Reason | None:
        """Why messages wait: the last retryable error, or the problem with the connection. None if there is none."""
        return self._connection.reason

    def send(
        self, images: ArrayLike, labels: ArrayLike | Sequence[int | None] | None, timeout_s: float = 60.0
    ) -> int:
        """Sends images (B, …) and labels (B) as one message and returns its number.

        Images are uint8 (0 to 255), float (0.0 to 1.0) or bool. A single image may come without the first dimension.
        A label that is None or UNLABELLED is that of a sample without one; with `labels` None, no sample has one.
        `welcome.unlabelled` says whether the daemon accepts such samples.

        Waits while the window is full. Raises DeadlineExceeded if it stays full, RequestRefused for an earlier
        message that was rejected, and BadDtype, BadShape, LabelOutOfRange, LabelRequired, NotFinite, ValueOutOfRange
        or TooLarge for a message that the daemon would reject; it is not sent then.
        """
        self._affinity.check()
        encoder = self._delivery.encoder
        encoded = encoder.images(images)
        label_bytes = encoder.labels(labels, encoded.samples)
        self._await_window(len(encoded.frame), timeout_s)
        return self._delivery.send(encoded, label_bytes)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Waits until every message has a final answer. Raises DeadlineExceeded, RequestRefused."""
        self._affinity.check()
        began = time.monotonic()
        if not self._delivery.work_until(lambda: not self._delivery.unanswered, seconds(timeout_s, "timeout_s")):
            raise self._deadline_error("unanswered messages remain", time.monotonic() - began)

    def poll(self, timeout_s: float = 0.0) -> int:
        """Reads the answers that have arrived, waiting up to `timeout_s` for one, and sends again what is due.

        Returns the number of messages without a final answer. Raises RequestRefused.
        """
        self._affinity.check()
        self._delivery.work(seconds(timeout_s, "timeout_s"))
        return self.unanswered

    def _await_window(self, size: int, timeout_s: float) -> None:
        delivery, now = self._delivery, time.monotonic()
        if now - delivery.worked_at > _READ_S:
            delivery.work(0.0)
        if not delivery.has_room(size):
            if self._full_since is None:
                self._full_since = now
            if not delivery.work_until(lambda: delivery.has_room(size), seconds(timeout_s, "timeout_s")):
                raise self._deadline_error("the window stays full", time.monotonic() - self._full_since)
        self._full_since = None

    def _deadline_error(self, what: str, waited_s: float) -> DeadlineExceeded:
        reason = self.waiting
        why = f"; {reason}" if reason is not None else ""
        return DeadlineExceeded(
            f"{what} after {duration(waited_s)}: {self.unanswered} messages{why}",
            hint=(reason.hint if reason is not None else "") or "`ffstream status` shows what the daemon is doing",
            reason=reason,
        )

    def close(self) -> None:
        """Closes the connection. Unanswered messages may be stored or not: call `flush` first."""
        if self._connection.socket.closed:
            return
        self._affinity.check()
        if self.unanswered or self._is_named:  # the name may be used again
            self._connection.close()
        else:
            self._connection.send_if_up(Bye(client=self.client))
            self._connection.close(_BYE_MS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()
