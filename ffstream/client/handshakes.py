"""What becomes of a client's connections, through libzmq's monitor.

libzmq tries again in silence when a connection breaks or cannot be made. After a refused key, or bytes that make no
sense, it never tries again, in silence too. This class hears of the first and tries the second again now and then. A
probe (probe.py) finds out what is at the endpoint. It runs on a thread of its own, one at a time, because resolving
a name may take longer than any deadline.

Only two things are refusals: libzmq reports that the key is not admitted, or the probe finds something that this
client cannot talk to: a daemon that wants a key, knows none or has another key, or an HTTP server. A handshake that
breaks off is not a refusal: the daemon may be starting.

HANDSHAKE_FAILED_PROTOCOL would say more, but must not be asked for: see ffstream/server/handshakes.py.
"""

import contextlib
import itertools
import os
import queue
import threading
import time
import weakref
from typing import NoReturn

import zmq
from zmq.utils.monitor import parse_monitor_message

from ffstream.client.probe import Finding, host_of, probe
from ffstream.errors import ConfigError, RequestRefused, Unauthorized

_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
# A daemon that dies breaks a handshake off, too, but not several: without it connections fail before they begin.
_BROKEN_MAX = 3
_RETRY_S = 1.0
_PROBE_EVERY_S = 1.0
_PROBE_STEP_S = 0.5
_SILENT_S = 0.5  # a server greets in less
_names = itertools.count()


class Handshakes:
    """Belongs to the socket's thread. Make it before the socket connects: then it sees every handshake."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, *, has_keys: bool) -> None:
        self.is_up = False
        self.was_up = False  # at any time
        self.came_up = False  # set by each success, for whoever resets it
        self.finding: Finding | None = None  # what the last probe found; None while the connection is up
        self._endpoint = endpoint
        self._has_keys = has_keys
        self._is_ipv6 = ":" in host_of(endpoint)
        self._shaking_since: float | None = None
        self._has_failed = False  # since the last probe
        self._was_lost = False
        self._broken = 0
        self._retry_at: float | None = None
        self._probe_at = 0.0
        self._probing: queue.SimpleQueue[Finding | None] | None = None
        self._socket = socket
        socket.setsockopt(zmq.IPV6, int(self._is_ipv6))
        # pyzmq would name it by a file descriptor, whose number another socket may have had a moment before.
        socket.monitor(monitored := f"inproc://ff-client-{next(_names)}", _EVENTS)
        self._monitor = socket.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        # libzmq's I/O thread waits when this queue is full: all sockets of the process would stand still because of
        # one idle client whose daemon is away.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.connect(monitored)
        # libzmq's I/O thread would wait for ever to report an event if the receiver were gone before the monitor has
        # ended, and with it all clients of the process. So the order holds also for a client that nobody closes: the
        # finalizer keeps both sockets until it has run.
        self._finalizer = weakref.finalize(self, _end_monitor, socket, self._monitor, os.getpid())
        self._finalizer.atexit = False

    def look(self) -> None:
        """Reads what happened since the last look. Raises RequestRefused or ConfigError for a refusal."""
        while True:
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._take(parse_monitor_message(frames)["event"])
        if not self.is_up:
            self._recover(time.monotonic())

    def settle(self, timeout_s: float) -> None:
        """Waits for a probe under way, so that an error can say what it found. Raises as `look`."""
        self.look()
        if self._probing is not None:
            self._await_probe(timeout_s)

    def describe(self) -> Finding:
        """What is known while the connection is not up."""
        if self.finding is not None:
            return self.finding
        if self.was_up:
            return Finding(f"the connection to {self._endpoint} is broken", "it is tried again")
        return Finding(
            f"{self._endpoint} does not answer the connection request",
            "is the host up, and do firewalls let the port through?",
        )

    def _recover(self, now: float) -> None:
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._connect_again()
        is_silent = self._shaking_since is not None and now - self._shaking_since > _SILENT_S
        if self._probing is not None:
            self._await_probe(0.0)
        elif (self._has_failed or is_silent) and now >= self._probe_at:
            self._start_probe(now)

    def _connect_again(self) -> None:
        """Of the session that gave up only the name is left, and would make connecting a matter of nothing."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disconnect(self._endpoint)
        self._socket.connect(self._endpoint)

    def _take(self, event: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            self._shaking_since = time.monotonic()
        elif event == zmq.EVENT_CLOSED:
            self._has_failed = True
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self._retry_at = None  # libzmq does it
            self._has_failed |= not self._was_lost
            self._was_lost = False
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.is_up = self.came_up = self.was_up = True
            self._shaking_since = self.finding = None
            self._has_failed = False
            self._broken = 0
        else:
            self.is_up = False
            self._was_lost = True
            self._retry_at = time.monotonic() + _RETRY_S
            self._lost(event)

    def _lost(self, event: int) -> None:
        """A handshake that breaks the protocol ends in a disconnection, with nothing said before."""
        was_shaking, self._shaking_since = self._shaking_since is not None, None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refuse("does not admit this key", "its .key file belongs into the folder of that socket's clients")
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or was_shaking:
            self._broken += 1
            self._has_failed = True

    def _start_probe(self, now: float) -> None:
        self._probe_at = now + _PROBE_EVERY_S
        self._has_failed = False
        found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        self._probing = found

        def run() -> None:
            finding = None
            try:
                finding = probe(self._endpoint, _PROBE_STEP_S)
            finally:
                found.put(finding)  # or no later one would ever start

        # It ends by itself: each of its steps has a limit, and it holds nothing that anybody waits for.
        threading.Thread(target=run, name="ff-probe", daemon=True).start()

    def _await_probe(self, timeout_s: float) -> None:
        assert self._probing is not None
        try:
            found = self._probing.get(timeout=timeout_s) if timeout_s else self._probing.get_nowait()
        except queue.Empty:
            return
        self._probing = None
        if self.is_up or found is None:
            return
        self.finding = found
        self._judge(found)
        if found.connects and found.is_ipv6 != self._is_ipv6:
            self._is_ipv6 = found.is_ipv6
            self._socket.setsockopt(zmq.IPV6, int(found.is_ipv6))
            self._connect_again()

    def _judge(self, found: Finding) -> None:
        if found.is_http:
            raise ConfigError(found.text, hint=found.hint)
        if found.mechanism is None:
            return
        if found.mechanism == "CURVE" and not self._has_keys:
            self._refuse("wants a key", "--key and --server-key, or keys=CurveKeys.load(…)")
        if found.mechanism == "NULL" and self._has_keys:
            self._refuse("knows no keys", "connect without --key, or start it with security.server_key")
        if self._has_keys and self._broken >= _BROKEN_MAX:
            self._refuse("breaks every handshake off", "is --server-key the public key of this daemon?")

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise RequestRefused(Unauthorized.code, f"the daemon at {self._endpoint} {what}", hint=hint)

    def close(self) -> None:
        """Ends the monitor, before the socket."""
        self._finalizer()


def _end_monitor(monitored: zmq.Socket[bytes], receiver: zmq.Socket[bytes], pid: int) -> None:
    if os.getpid() == pid:  # a forked process has copies of the parent's sockets, and must not touch them
        monitored.disable_monitor()
        receiver.close()
