"""Access control of the sockets while the daemon runs: CURVE keys of the three sockets, the token of HTTP."""

import logging
from collections.abc import Collection
from typing import NamedTuple

import zmq

from ffstream.config import Config
from ffstream.metrics import Metrics
from ffstream.security.keys import KeyPair
from ffstream.server.credentials import FOLLOW, SOCKETS, check_exposure, load_credentials, load_teach_token
from ffstream.server.keyring import Keyring
from ffstream.server.rejections import RejectedConnections
from ffstream.server.zap import Zap
from ffstream.util.threads import OnFailure

log = logging.getLogger(__name__)


class Guard(NamedTuple):
    """Authenticates the clients of one socket. `name` is the socket's name and its ZAP domain.

    Clients of `keyring` may do everything there, those of `followers` may only request snapshots.
    """

    name: str
    pair: KeyPair
    keyring: Keyring
    followers: Keyring | None = None

    @property
    def keyrings(self) -> dict[str, Keyring]:
        """The keys that may connect, by the option that names their folder."""
        keyrings = {f"security.{self.name}_clients": self.keyring}
        return keyrings if self.followers is None else keyrings | {"security.follow_clients": self.followers}

    def admits(self, key: str) -> bool:
        """Whether that client may be connected."""
        return key in self.keyring.accepted or (self.followers is not None and key in self.followers.accepted)

    def may_only_follow(self, key: str) -> bool:
        """Whether that client may request snapshots and nothing else."""
        return key not in self.keyring.accepted

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Requires a key from each client, which the ZAP thread must accept. Call it before the socket is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.pair.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, self.name.encode())
        # Otherwise libzmq accepts every key while there is no ZAP thread.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


class Access:
    """The guards of the sockets, the ZAP thread, and for HTTP tokens. Raises ConfigError."""

    def __init__(
        self, config: Config, metrics: Metrics, on_failure: OnFailure, sockets: Collection[str] = SOCKETS
    ) -> None:
        listen, security = config.listen, config.security
        for exposed in check_exposure(listen, security, sockets):
            log.warning("listening without authentication %s", exposed)
        pair, clients, self.http_token = load_credentials(security, sockets)
        self.teach_token = load_teach_token(config.http, listen)
        self.guards: dict[str, Guard] = {}
        if pair is not None:
            rings = {name: Keyring(folder) for name, folder in clients.items()}
            self.guards = {name: Guard(name, pair, rings[name]) for name in sockets}
            if FOLLOW in rings:
                self.guards["control"] = self.guards["control"]._replace(followers=rings[FOLLOW])
        self.http_rejections = RejectedConnections("http", metrics)
        domains = {
            name.encode(): (tuple(guard.keyrings.values()), RejectedConnections(name, metrics))
            for name, guard in self.guards.items()
        }
        self.zap = Zap(domains, on_failure) if domains else None

    def reload(self) -> None:
        """Reads the folders with client keys again. Never raises OSError."""
        counts = []
        for guard in self.guards.values():
            for option, keyring in guard.keyrings.items():
                keyring.refresh(now=True)
                name = option.removeprefix("security.").removesuffix("_clients")
                counts.append(f"{name}_keys={len(keyring.accepted)}")
        log.info(
            "reloaded %s; options, server key and token are read at the start only", " ".join(counts) or "nothing"
        )
