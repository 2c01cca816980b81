"""Watches the connections of a client's socket, through libzmq's socket monitor.

libzmq reconnects silently when a connection breaks or cannot be made. After a rejected key, or bytes that are not
ZMTP, it gives up, silently too. This class learns about the first and reconnects after the second. A probe
(probe.py) finds out what listens at the endpoint. It runs on a thread of its own, one at a time, because resolving a
name may take longer than any deadline.

Two results count as a rejection: libzmq reports that the key is not accepted, or the probe finds a server that this
client cannot talk to. That is a daemon that needs a key, uses no keys or has another key, or an HTTP server. A
handshake that fails is not a rejection: the daemon may be starting.

HANDSHAKE_FAILED_PROTOCOL would give more details but must not be requested: see ffstream/server/handshakes.py.
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

from ffstream.client.probe import ProbeResult, host_of, probe
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
# One handshake may fail because the daemon dies, but not several: then the connections themselves fail.
_FAILED_HANDSHAKES_MAX = 3
_RECONNECT_S = 1.0
_PROBE_INTERVAL_S = 1.0
_PROBE_STEP_S = 0.5
_SILENT_S = 0.5  # a server sends its greeting sooner
_names = itertools.count()


class ConnectionMonitor:
    """For the socket's thread. Create it before the socket connects, so that it sees every handshake."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, *, has_keys: bool) -> None:
        self.is_up = False
        self.was_up = False  # at any time
        self.came_up = False  # set by each successful handshake, reset by the caller
        self.probed: ProbeResult | None = None  # by the last probe; None while the connection is up
        self._endpoint = endpoint
        self._has_keys = has_keys
        self._is_ipv6 = ":" in host_of(endpoint)
        self._handshake_since: float | None = None
        self._has_failed = False  # since the last probe
        self._was_lost = False
        self._failed_handshakes = 0
        self._reconnect_at: float | None = None
        self._probe_at = 0.0
        self._probing: queue.SimpleQueue[ProbeResult | None] | None = None
        self._socket = socket
        socket.setsockopt(zmq.IPV6, int(self._is_ipv6))
        # pyzmq would name it by a file descriptor, a number that another socket may have used just before.
        socket.monitor(address := f"inproc://ff-client-{next(_names)}", _EVENTS)
        self._monitor = socket.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        # libzmq's I/O thread blocks when this queue is full. Then one idle client without a daemon would block all
        # sockets of the process.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.connect(address)
        # It blocks forever when it reports an event after the receiver was closed. So the events must end first,
        # also if the client is dropped without being closed: the finalizer keeps both sockets until it has run.
        self._end = weakref.finalize(self, _end_events, socket, self._monitor, os.getpid())
        self._end.atexit = False

    def poll(self) -> None:
        """Handles the events since the last poll. Raises RequestRefused or ConfigError for a rejection."""
        while True:
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._handle(parse_monitor_message(frames)["event"])
        if not self.is_up:
            self._recover(time.monotonic())

    def finish_probe(self, timeout_s: float) -> None:
        """Waits for a running probe, so that an error can contain its result. Raises as `poll`."""
        self.poll()
        if self._probing is not None:
            self._await_probe(timeout_s)

    def describe(self) -> ProbeResult:
        """What is known about a connection that is not up."""
        if self.probed is not None:
            return self.probed
        if self.was_up:
            return ProbeResult(f"the connection to {self._endpoint} is broken", "the client reconnects")
        return ProbeResult(
            f"{self._endpoint} does not answer the connection request",
            "is the host up, and do firewalls let the port through?",
        )

    def _recover(self, now: float) -> None:
        if self._reconnect_at is not None and now >= self._reconnect_at:
            self._reconnect_at = None
            self._reconnect()
        is_silent = self._handshake_since is not None and now - self._handshake_since > _SILENT_S
        if self._probing is not None:
            self._await_probe(0.0)
        elif (self._has_failed or is_silent) and now >= self._probe_at:
            self._start_probe(now)

    def _reconnect(self) -> None:
        """libzmq ignores `connect` while it remembers the endpoint, even if it has given up on it."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disconnect(self._endpoint)
        self._socket.connect(self._endpoint)

    def _handle(self, event: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            self._handshake_since = time.monotonic()
        elif event == zmq.EVENT_CLOSED:
            self._has_failed = True
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self._reconnect_at = None  # libzmq reconnects
            self._has_failed |= not self._was_lost
            self._was_lost = False
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.is_up = self.came_up = self.was_up = True
            self._handshake_since = self.probed = None
            self._has_failed = False
            self._failed_handshakes = 0
        else:
            self.is_up = False
            self._was_lost = True
            self._reconnect_at = time.monotonic() + _RECONNECT_S
            self._handle_loss(event)

    def _handle_loss(self, event: int) -> None:
        """A handshake that violates the protocol ends with a disconnection and no other event."""
        in_handshake, self._handshake_since = self._handshake_since is not None, None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._reject(
                "does not accept this key", "copy the .key file into the folder with that socket's client keys"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or in_handshake:
            self._failed_handshakes += 1
            self._has_failed = True

    def _start_probe(self, now: float) -> None:
        self._probe_at = now + _PROBE_INTERVAL_S
        self._has_failed = False
        results: queue.SimpleQueue[ProbeResult | None] = queue.SimpleQueue()
        self._probing = results

        def run() -> None:
            result = None
            try:
                result = probe(self._endpoint, _PROBE_STEP_S)
            finally:
                results.put(result)  # also after an exception, or no other probe would ever start

        # It ends by itself, because each of its steps has a limit, and it holds no resource that others wait for.
        threading.Thread(target=run, name="ff-probe", daemon=True).start()

    def _await_probe(self, timeout_s: float) -> None:
        assert self._probing is not None
        try:
            result = self._probing.get(timeout=timeout_s) if timeout_s else self._probing.get_nowait()
        except queue.Empty:
            return
        self._probing = None
        if self.is_up or result is None:
            return
        self.probed = result
        self._check(result)
        if result.connects and result.is_ipv6 != self._is_ipv6:
            self._is_ipv6 = result.is_ipv6
            self._socket.setsockopt(zmq.IPV6, int(result.is_ipv6))
            self._reconnect()

    def _check(self, result: ProbeResult) -> None:
        """Raises if the client cannot talk to this server."""
        if result.is_http:
            raise ConfigError(result.text, hint=result.hint)
        if result.mechanism is None:
            return
        if result.mechanism == "CURVE" and not self._has_keys:
            self._reject("needs a key", "--key and --server-key, or keys=CurveKeys.load(…)")
        if result.mechanism == "NULL" and self._has_keys:
            self._reject("uses no keys", "connect without --key, or start the daemon with security.server_key")
        if self._has_keys and self._failed_handshakes >= _FAILED_HANDSHAKES_MAX:
            self._reject("fails every handshake", "is --server-key the public key of this daemon?")

    def _reject(self, what: str, hint: str) -> NoReturn:
        raise RequestRefused(Unauthorized.code, f"the daemon at {self._endpoint} {what}", hint=hint)

    def close(self) -> None:
        """Ends the monitor. Call it before the socket is closed."""
        self._end()


def _end_events(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], pid: int) -> None:
    if os.getpid() == pid:  # a forked process has copies of its parent's sockets and must not use them
        socket.disable_monitor()
        monitor.close()
