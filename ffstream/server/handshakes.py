"""Watches who comes to a socket and is not let in, through libzmq's monitor.

Of libzmq's events one must not be asked for: HANDSHAKE_FAILED_PROTOCOL. To report it about a frame that does not
decrypt, libzmq 4.3 loses the errno by which it was to close the connection; that then hangs, and at the next
heartbeat after its peer has gone the whole process aborts. So what breaks the protocol is what is left over:
connections that are gone, of which neither a success nor another failure was said. A success does not say which
connection it was; with several handshakes at a time, one left over may be counted only when the others are done.
"""

import time

import zmq
from prometheus_client import Counter
from zmq.utils.monitor import parse_monitor_message

from ffstream.server.refusals import Refusals

_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_LOOK_S = 0.1
_AT_ONCE = 500  # events a look: a flood must not keep the loop from its messages
_WAITING_MAX = 100_000  # events; with more, libzmq itself waits


class HandshakeWatch:
    """Belongs to the socket's own thread. Make it before the bind, `close` it before the socket."""

    def __init__(self, socket: zmq.Socket[bytes], refusals: Refusals, ended: Counter, timeout_s: float) -> None:
        self._refusals = refusals
        self._ended = ended
        self._timeout_s = 2 * timeout_s
        self._looked_at = 0.0
        self._tally = _Tally()
        self._socket = socket
        self._monitor = socket.context.socket(zmq.PAIR)
        try:
            self._monitor.setsockopt(zmq.RCVHWM, _WAITING_MAX)
            self._monitor.setsockopt(zmq.LINGER, 0)
            socket.monitor(endpoint := f"inproc://ff-handshakes-{id(self)}", _EVENTS)
            self._monitor.connect(endpoint)
        except zmq.ZMQError:  # no descriptor left
            self.close()
            raise

    def close(self) -> None:
        """Ends it."""
        self._socket.disable_monitor()
        self._monitor.close()

    def look(self) -> None:
        """Counts what happened, ten times a second at most."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        for _ in range(_AT_ONCE):
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            event = parse_monitor_message(frames)
            self._take(event["event"], event["value"], now)
        self._tally.forget(now - self._timeout_s)
        for _ in range(self._tally.take_silent()):
            self._refusals.count("handshake")
        self._refusals.say()

    def _take(self, event: int, value: int, now: float) -> None:
        tally = self._tally
        if event == zmq.EVENT_ACCEPTED:
            tally.came(value, now)
        elif event == zmq.EVENT_DISCONNECTED:
            tally.went(value)
            # Whoever ended it: that libzmq did, over a frame above ZMQ_MAXMSGSIZE, is the same event.
            self._ended.inc()
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            tally.resolved()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            tally.resolved()  # the ZAP thread has counted it, and knows whose key it was
        else:
            tally.failed()
            self._refusals.count("broken_off")


class _Tally:
    """`_shaking` connections have no result yet; each of them is one of `_open`, or went in silence."""

    def __init__(self) -> None:
        self._open: dict[int, float] = {}
        self._shaking = 0
        self._failing = False

    def came(self, fd: int, now: float) -> None:
        self._open[fd] = now
        self._shaking += 1

    def resolved(self) -> None:
        self._shaking = max(0, self._shaking - 1)
        if not self._shaking:
            self._open.clear()

    def failed(self) -> None:
        """libzmq reports the end of the same connection next."""
        self._failing = True

    def went(self, fd: int) -> None:
        was_open = self._open.pop(fd, None) is not None
        if self._failing and was_open:
            self.resolved()
        self._failing = False

    def forget(self, before: float) -> None:
        """Those that came so long ago have a result."""
        for fd in [fd for fd, came in self._open.items() if came < before]:
            del self._open[fd]

    def take_silent(self) -> int:
        silent = max(0, self._shaking - len(self._open))
        self._shaking -= silent
        return silent
