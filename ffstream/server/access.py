"""Who gets in: the guards of the sockets, as `doors` reads them from [security]."""

import logging
from typing import NamedTuple

import zmq

from ffstream.config import Listen, Security
from ffstream.metrics import Metrics
from ffstream.security.keys import KeyPair
from ffstream.server.doors import check_exposure, load_secrets
from ffstream.server.keyring import Keyring
from ffstream.server.refusals import Refusals
from ffstream.server.zap import Zap
from ffstream.util.threads import OnFailure

log = logging.getLogger(__name__)


class Guard(NamedTuple):
    """How one socket knows its clients. Its name is its ZAP domain."""

    name: str
    pair: KeyPair
    keyring: Keyring

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Before it is bound: everybody needs a key, and one that the ZAP thread admits."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.pair.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, self.name.encode())
        # Without it libzmq lets every key in while there is no ZAP thread.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


class Access:
    """The guards of the three sockets, the thread that they ask, and the HTTP token. Raises ConfigError."""

    def __init__(self, listen: Listen, security: Security, metrics: Metrics, on_failure: OnFailure) -> None:
        for exposed in check_exposure(listen, security):
            log.warning("anybody who reaches it gets in %s", exposed)
        pair, clients, self.http_token = load_secrets(security)
        self.guards: dict[str, Guard] = {}
        if pair is not None:
            self.guards = {name: Guard(name, pair, Keyring(folder)) for name, folder in clients.items()}
        self.http_refusals = Refusals("http", metrics)
        domains = {name.encode(): (guard.keyring, Refusals(name, metrics)) for name, guard in self.guards.items()}
        self.zap = Zap(domains, on_failure) if domains else None

    def reload(self) -> None:
        """Reads the folders of client keys again, now. Never raises OSError."""
        for guard in self.guards.values():
            guard.keyring.refresh(now=True)
        admitted = " ".join(f"{name}_keys={len(guard.keyring.admitted)}" for name, guard in self.guards.items())
        log.info("reloaded %s; options, server key and token are read at the start only", admitted or "nothing")
