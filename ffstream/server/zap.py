"""Answers libzmq's question who may connect: ZAP 1.0 (rfc.zeromq.org/spec/27), for CURVE.

The answer names the client by its public key, which every message from that connection then carries as `User-Id`.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

import zmq
from zmq.utils import z85

from ffstream.server.keyring import Keyring
from ffstream.server.refusals import Refusals

log = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_POLL_MS = 100
_REFRESH_S = 1.0


class Zap:
    """Thread `ff-zap`. It must serve before a guarded socket is bound, and until the last one is closed."""

    name = "ff-zap"

    def __init__(
        self, domains: Mapping[bytes, tuple[Keyring, Refusals]], on_failure: Callable[[Exception], None]
    ) -> None:
        self._domains = domains
        self._on_failure = on_failure
        self.busy_since: float | None = None  # when it began to answer or to look; None while it waits
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Returns once it answers."""
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self._thread.start()
        self._started.wait()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread; from then on nobody gets in. False if the deadline passed."""
        self._stopping.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._started.set()
        refreshed_at = time.monotonic()
        try:
            while not self._stopping.is_set():
                self.busy_since = None
                waiting = self._socket.poll(_POLL_MS)
                self.busy_since = time.monotonic()
                if waiting:
                    self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
                if time.monotonic() - refreshed_at >= _REFRESH_S:
                    refreshed_at = time.monotonic()
                    self._refresh()
        except Exception as error:
            log.exception("thread failed name=%s", self.name)
            self._on_failure(error)
        finally:
            self._socket.close()

    def _refresh(self) -> None:
        for keyring, refusals in self._domains.values():
            keyring.refresh()
            refusals.say()

    def _answer(self, question: list[bytes]) -> list[bytes]:
        version, id, domain, address, _, mechanism, *credentials = question
        if version != _VERSION or mechanism != b"CURVE" or len(credentials) != 1 or domain not in self._domains:
            return [_VERSION, id, b"400", b"Unknown domain or mechanism", b"", b""]
        key = z85.encode(credentials[0])
        keyring, refusals = self._domains[domain]
        keyring.refresh()
        if key.decode() in keyring.admitted:
            return [_VERSION, id, b"200", b"OK", key, b""]
        refusals.count("unknown_key", f"address={address.decode(errors='replace')} key={key.decode()}")
        return [_VERSION, id, b"400", b"Unknown key", b"", b""]
