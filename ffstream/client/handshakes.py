"""What becomes of a client's connections, through libzmq's monitor: which would otherwise try again in silence."""

from typing import NoReturn

import zmq
from zmq.utils.monitor import parse_monitor_message

from ffstream.errors import RequestRefused, Unauthorized

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
# A daemon that dies breaks a handshake off, too, but not several: without it connections fail before they begin.
_BROKEN_MAX = 3


class Handshakes:
    """Belongs to the socket's thread. Make it before the socket connects: then it sees every handshake."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, *, has_keys: bool) -> None:
        self.is_up = True  # as far as anybody has said
        self.came_up = False  # set by each success, for whoever resets it
        self._endpoint = endpoint
        self._has_keys = has_keys
        self._was_let_in = False
        self._broken = 0
        self._socket = socket
        self._monitor = socket.get_monitor_socket(_EVENTS)

    def look(self) -> None:
        """Reads what happened since the last look. Raises RequestRefused if the daemon does not let us in."""
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            self._take(event["event"], event["value"])

    def _take(self, event: int, value: int) -> None:
        self.is_up = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if self.is_up:
            self.came_up = self._was_let_in = True
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refuse("does not admit this key", "its .key file belongs into the folder of that socket's clients")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            if self._has_keys:
                self._refuse("knows no keys", "connect without --key, or start it with security.server_key")
            self._refuse("wants a key", "--key and --server-key, or keys=CurveKeys.load(…)")
        elif event != zmq.EVENT_DISCONNECTED and self._has_keys and not self._was_let_in:
            self._broken += 1
            if self._broken >= _BROKEN_MAX:
                self._refuse("breaks every handshake off", "is --server-key the public key of this daemon?")

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise RequestRefused(Unauthorized.code, f"the daemon at {self._endpoint} {what}", hint=hint)

    def close(self) -> None:
        """Ends the monitor, before the socket."""
        self._socket.disable_monitor()
