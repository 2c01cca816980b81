"""The CURVE keys of a client: its own pair, with which it authenticates, and the daemon's public key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import zmq

from ffstream.security.keys import KeyPair, load_pair, load_public


@dataclass(frozen=True)
class CurveKeys:
    """The client's own key pair, and the daemon's public key.

    >>> Producer("tcp://host:5757", keys=CurveKeys.load("anna.key_secret", "daemon.key"))
    """

    own: KeyPair
    server: bytes

    @classmethod
    def load(cls, key: Path | str, server_key: Path | str) -> Self:
        """Reads the client's secret file and the daemon's public file. Raises ConfigError."""
        return cls(load_pair(Path(key)), load_public(Path(server_key)))

    def use(self, socket: zmq.Socket[bytes]) -> None:
        """Sets the keys on a socket. Call it before the socket connects."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server)
