"""Counts connections whose handshake fails, through libzmq's socket monitor.

One of libzmq's events must not be requested: HANDSHAKE_FAILED_PROTOCOL. To report it for a frame that cannot be
decrypted, libzmq 4.3 loses the errno that makes it close the connection. The connection then hangs, and at the first
heartbeat after the peer has gone libzmq aborts the process. Protocol errors are therefore inferred: they are
connections that ended although neither a success nor another failure was reported for them. A success does not name
its connection, so with several handshakes at a time a protocol error may be counted only when the others are
finished.
"""

import time

import zmq
from prometheus_client import Counter
from zmq.utils.monitor import parse_monitor_message

from ffstream.server.rejections import RejectedConnections

_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_POLL_S = 0.1
_EVENTS_PER_POLL_MAX = 500  # a flood of connections must not delay messages
_EVENTS_QUEUED_MAX = 100_000  # beyond that libzmq itself blocks


class HandshakeMonitor:
    """For the socket's own thread. Create it before the socket is bound, and `close` it before the socket."""

    def __init__(
        self, socket: zmq.Socket[bytes], rejections: RejectedConnections, ended: Counter, timeout_s: float
    ) -> None:
        self._rejections = rejections
        self._ended = ended
        self._timeout_s = 2 * timeout_s
        self._polled_at = 0.0
        self._tally = _Tally()
        self._socket = socket
        self._monitor = socket.context.socket(zmq.PAIR)
        try:
            self._monitor.setsockopt(zmq.RCVHWM, _EVENTS_QUEUED_MAX)
            self._monitor.setsockopt(zmq.LINGER, 0)
            socket.monitor(endpoint := f"inproc://ff-handshakes-{id(self)}", _EVENTS)
            self._monitor.connect(endpoint)
        except zmq.ZMQError:  # no free descriptor
            self.close()
            raise

    def close(self) -> None:
        """Ends the monitor."""
        self._socket.disable_monitor()
        self._monitor.close()

    def poll(self) -> None:
        """Counts the events since the last poll. Does so ten times a second at most."""
        now = time.monotonic()
        if now - self._polled_at < _POLL_S:
            return
        self._polled_at = now
        for _ in range(_EVENTS_PER_POLL_MAX):
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            event = parse_monitor_message(frames)
            self._handle(event["event"], event["value"], now)
        self._tally.forget(now - self._timeout_s)
        for _ in range(self._tally.take_unexplained()):
            self._rejections.add("handshake")
        self._rejections.flush()

    def _handle(self, event: int, value: int, now: float) -> None:
        tally = self._tally
        if event == zmq.EVENT_ACCEPTED:
            tally.accepted(value, now)
        elif event == zmq.EVENT_DISCONNECTED:
            tally.disconnected(value)
            # Whoever closed it. A frame above ZMQ_MAXMSGSIZE, over which libzmq closes a connection, is the same
            # event.
            self._ended.inc()
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            tally.finished()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            tally.finished()  # the ZAP thread has counted it with its key
        else:
            tally.failed()
            self._rejections.add("broken_off")


class _Tally:
    """Connections and handshakes. `_unfinished` handshakes have no result yet.

    Each of them belongs to one of the `_open` connections, or to one that ended without a result.
    """

    def __init__(self) -> None:
        self._open: dict[int, float] = {}  # when they were accepted, by descriptor
        self._unfinished = 0
        self._failing = False

    def accepted(self, fd: int, now: float) -> None:
        self._open[fd] = now
        self._unfinished += 1

    def finished(self) -> None:
        self._unfinished = max(0, self._unfinished - 1)
        if not self._unfinished:
            self._open.clear()

    def failed(self) -> None:
        """libzmq reports the end of the same connection in the next event."""
        self._failing = True

    def disconnected(self, fd: int) -> None:
        was_open = self._open.pop(fd, None) is not None
        if self._failing and was_open:
            self.finished()
        self._failing = False

    def forget(self, before: float) -> None:
        """Drops connections that were accepted so long ago that their handshake has a result."""
        for fd in [fd for fd, accepted in self._open.items() if accepted < before]:
            del self._open[fd]

    def take_unexplained(self) -> int:
        """How many connections have ended without a result since the last call."""
        unexplained = max(0, self._unfinished - len(self._open))
        self._unfinished -= unexplained
        return unexplained
