"""Who gets in: what [security] says, checked before anything listens.

With keys, each socket admits the public keys in its own folder, and nobody else. Without keys everybody who can reach
a socket gets in, so a socket that others can reach is refused unless somebody said that this is meant.
"""

import logging
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import zmq

from ffstream.config import Listen, Security
from ffstream.errors import ConfigError
from ffstream.keys import KeyPair, check_folder, load_pair, load_token
from ffstream.metrics import Metrics
from ffstream.server.keyring import Keyring
from ffstream.server.refusals import Refusals
from ffstream.server.zap import Zap
from ffstream.threads import OnFailure

log = logging.getLogger(__name__)

SOCKETS = ("learn", "predict", "control")


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
        check_doors(listen, security)
        self.guards = _guards(security)
        self.http_token = load_token(Path(security.http_token)) if security.http_token else None
        self.http_refusals = Refusals("http", metrics)
        domains = {name.encode(): (guard.keyring, Refusals(name, metrics)) for name, guard in self.guards.items()}
        self.zap = Zap(domains, on_failure) if domains else None


def check_doors(listen: Listen, security: Security) -> None:
    """Raises ConfigError where somebody could get in whom nobody let in, unless `security.insecure` allows it."""
    doors = {name: (getattr(listen, name), bool(security.server_key)) for name in SOCKETS}
    doors["http"] = (f"tcp://{listen.http}", bool(security.http_token))
    for name, (endpoint, guarded) in doors.items():
        if guarded or is_local(endpoint):
            continue
        where = endpoint.removeprefix("tcp://") if name == "http" else endpoint
        if not security.insecure:
            way = "a token: security.http_token" if name == "http" else "keys: ffstream keygen, security.server_key"
            raise ConfigError(
                f"listen.{name} = {where} can be reached from elsewhere, by anybody",
                hint=f"set {way}; or security.insecure=true where everybody on that network may do everything",
            )
        log.warning("anybody who reaches it gets in socket=%s endpoint=%s", name, where)


def is_local(endpoint: str) -> bool:
    """Whether only programs of this machine can connect to it."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("inproc", "ipc"):
        return True
    host = rest.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a wildcard, or a name that may mean anything
        return False


def _guards(security: Security) -> dict[str, Guard]:
    options = {name: f"security.{name}_clients" for name in SOCKETS}
    folders = {name: getattr(security, f"{name}_clients") for name in SOCKETS}
    if not security.server_key:
        for name, folder in folders.items():
            if folder:
                raise ConfigError(
                    f"{options[name]} is set, and security.server_key is not: the folder would keep nobody out",
                    hint="ffstream keygen makes a key for the daemon",
                )
        return {}
    pair = load_pair(Path(security.server_key))
    guards = {}
    for name, folder in folders.items():
        path = Path(folder)
        if not folder or not path.is_dir():
            missing = f"{options[name]} = {folder} is no folder" if folder else f"{options[name]} is missing"
            raise ConfigError(missing, hint="a folder with the public keys of those who may; empty: nobody may")
        check_folder(path)
        guards[name] = Guard(name, pair, Keyring(path))
    return guards
