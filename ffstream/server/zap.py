"""The ZAP handler: libzmq asks it whether a client may connect (ZAP 1.0, rfc.zeromq.org/spec/27, for CURVE).

The answer contains the client's public key. Every message from that connection then carries it as `User-Id`.
"""

import threading
import time
from collections.abc import Mapping, Sequence

import zmq
from zmq.utils import z85

from ffstream.server.keyring import Keyring
from ffstream.server.rejections import RejectedConnections
from ffstream.util.os_errors import listen_error
from ffstream.util.threads import OnFailure, Worker

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_POLL_MS = 100
_REFRESH_S = 1.0


class Zap:
    """Thread `ff-zap`. It must run before a guarded socket is bound and until the last one is closed."""

    name = "ff-zap"

    def __init__(
        self, domains: Mapping[bytes, tuple[Sequence[Keyring], RejectedConnections]], on_failure: OnFailure
    ) -> None:
        """In each of the `domains` the keys of all keyrings are accepted."""
        self._domains = domains
        self._stopping = threading.Event()
        self.thread = Worker(self.name, self._serve, on_failure)

    def start(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Binds the handler's socket and starts the thread. Raises StartBlocked."""
        try:
            self._socket = context.socket(zmq.REP)
        except zmq.ZMQError as error:  # no free descriptor
            raise listen_error("security.server_key", _ENDPOINT, error) from error
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self.thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Stops the thread. No client can connect afterwards. False if the deadline passed."""
        self._stopping.set()
        return self.thread.join(timeout_s)

    def _serve(self) -> None:
        refreshed_at = time.monotonic()
        try:
            while not self._stopping.is_set():
                with self.thread.waiting():
                    has_request = self._socket.poll(_POLL_MS)
                if has_request:
                    self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
                if time.monotonic() - refreshed_at >= _REFRESH_S:
                    refreshed_at = time.monotonic()
                    self._refresh()
        finally:
            self._socket.close()

    def _refresh(self) -> None:
        for keyrings, rejections in self._domains.values():
            for keyring in keyrings:
                keyring.refresh()
            rejections.flush()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, id, domain, address, _, mechanism, *credentials = request
        if version != _VERSION or mechanism != b"CURVE" or len(credentials) != 1 or domain not in self._domains:
            return [_VERSION, id, b"400", b"Unknown domain or mechanism", b"", b""]
        key = z85.encode(credentials[0])
        keyrings, rejections = self._domains[domain]
        for keyring in keyrings:
            keyring.refresh()
            if key.decode() in keyring.accepted:
                return [_VERSION, id, b"200", b"OK", key, b""]
        rejections.add("unknown_key", f"address={address.decode(errors='replace')} key={key.decode()}")
        return [_VERSION, id, b"400", b"Unknown key", b"", b""]
