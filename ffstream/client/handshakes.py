"""What becomes of a client's connections, through libzmq's monitor.

libzmq tries again in silence where a connection breaks; where it was refused, or met bytes that make no sense, it
never tries again, in silence, too. Here the first is heard of, and the second is tried again now and then.

HANDSHAKE_FAILED_PROTOCOL would say more, but must not be asked for: see ffstream/server/handshakes.py.
"""

import time
from contextlib import suppress
from typing import NoReturn

import zmq
from zmq.utils.monitor import parse_monitor_message

from ffstream.errors import RequestRefused, Unauthorized

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
)
# A daemon that dies breaks a handshake off, too, but not several: without it connections fail before they begin.
_BROKEN_MAX = 3
_RETRY_S = 1.0


class Handshakes:
    """Belongs to the socket's thread. Make it before the socket connects: then it sees every handshake."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, *, has_keys: bool) -> None:
        self.is_up = True  # as far as anybody has said
        self.came_up = False  # set by each success, for whoever resets it
        self._endpoint = endpoint
        self._has_keys = has_keys
        self._is_shaking = False
        self._was_let_in = False
        self._broken = 0
        self._retry_at: float | None = None
        self._socket = socket
        self._monitor = socket.get_monitor_socket(_EVENTS)

    def look(self) -> None:
        """Reads what happened since the last look. Raises RequestRefused if the daemon does not let us in."""
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._retry_at = None
            self._connect_again()
        while True:
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(parse_monitor_message(frames)["event"])

    def _connect_again(self) -> None:
        """Of the session that gave up only the name is left, and would make connecting a matter of nothing."""
        with suppress(zmq.ZMQError):
            self._socket.disconnect(self._endpoint)
        self._socket.connect(self._endpoint)

    def _take(self, event: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            self._is_shaking = True
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self._retry_at = None  # libzmq does it
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.is_up = self.came_up = self._was_let_in = True
            self._is_shaking = False
        else:
            self.is_up = False
            self._retry_at = time.monotonic() + _RETRY_S
            self._lost(event)

    def _lost(self, event: int) -> None:
        """A handshake that breaks the protocol ends in a disconnection, with nothing said before."""
        was_shaking, self._is_shaking = self._is_shaking, False
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refuse("does not admit this key", "its .key file belongs into the folder of that socket's clients")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._has_keys and not self._was_let_in:
            self._broken += 1
            if self._broken >= _BROKEN_MAX:
                self._refuse("breaks every handshake off", "is --server-key the public key of this daemon?")
        elif event == zmq.EVENT_DISCONNECTED and was_shaking and self._has_keys:
            self._refuse("knows no keys", "connect without --key, or start it with security.server_key")
        elif event == zmq.EVENT_DISCONNECTED and was_shaking:
            self._refuse("wants a key", "--key and --server-key, or keys=CurveKeys.load(…)")

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise RequestRefused(Unauthorized.code, f"the daemon at {self._endpoint} {what}", hint=hint)

    def close(self) -> None:
        """Ends the monitor, before the socket."""
        self._socket.disable_monitor()
