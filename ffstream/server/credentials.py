"""Access control as configured in [security]: checked before any socket is opened, without importing ZeroMQ.

With keys, each socket accepts the public keys in its own folder and no others; the control socket also those of
prediction replicas, which may only request snapshots there. Without keys everybody who can reach a
socket has access, so a socket that other machines can reach is an error unless `security.insecure` allows it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ffstream.config import Http, Listen, Security
from ffstream.errors import ConfigError
from ffstream.security.keys import KeyPair, check_folder, load_pair, load_token
from ffstream.util import endpoints
from ffstream.util.option_errors import about

SOCKETS = ("learn", "predict", "control")
FOLLOW = "follow"  # in place of a socket: clients that may only request snapshots, on the control socket


class Credentials(NamedTuple):
    """The content of the files in [security], and for each socket, and for FOLLOW, the folder with its clients'
    keys."""

    pair: KeyPair | None
    clients: dict[str, Path]  # empty without a pair
    http_token: bytes | None


def check_exposure(listen: Listen, security: Security, sockets: Collection[str] = SOCKETS) -> list[str]:
    """Returns those of the `sockets`, and of HTTP, that everybody can reach, as they appear in a log line.

    Raises ConfigError if there is one, unless `security.insecure` allows it.
    """
    served = {name: (getattr(listen, name), bool(security.server_key)) for name in sockets}
    for name in ("http", "standby_http"):
        if address := getattr(listen, name):
            served[name] = (f"tcp://{address}", bool(security.http_token))
    exposed = []
    for name, (endpoint, is_protected) in served.items():
        if is_protected or is_local(endpoint):
            continue
        is_http = name not in SOCKETS
        where = endpoint.removeprefix("tcp://") if is_http else endpoint
        if not security.insecure:
            way = "a token: security.http_token" if is_http else "keys: ffstream keygen, security.server_key"
            raise ConfigError(
                f"listen.{name} = {where} is reachable from other machines without authentication",
                hint=f"set {way}; or security.insecure=true if everybody on that network may do everything",
            )
        exposed.append(f"socket={name} endpoint={where}")
    return exposed


def is_local(endpoint: str) -> bool:
    """Whether only programs on this machine can connect to the endpoint."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("inproc", "ipc"):
        return True
    return endpoints.is_loopback(rest.rpartition(":")[0].removeprefix("[").removesuffix("]"))


def load_credentials(security: Security, sockets: Collection[str] = SOCKETS) -> Credentials:
    """Reads the files that the options name, for these sockets. Raises ConfigError: option and file."""
    token = None
    if security.http_token:
        with about("security.http_token"):
            token = load_token(Path(security.http_token))
    folders = {name: getattr(security, f"{name}_clients") for name in sockets}
    if "control" in sockets and security.follow_clients:
        folders[FOLLOW] = security.follow_clients
    if not security.server_key:
        for name, folder in folders.items():
            if folder:
                raise ConfigError(
                    f"security.{name}_clients has no effect without security.server_key",
                    hint="ffstream keygen writes a key for the daemon",
                )
        return Credentials(None, {}, token)
    with about("security.server_key"):
        pair = load_pair(Path(security.server_key))
    return Credentials(pair, {name: _clients(name, folder) for name, folder in folders.items()}, token)


def load_teach_token(http: Http, listen: Listen) -> bytes | None:
    """The token that samples from the page need. None: loopback is enough. Raises ConfigError."""
    if not http.teach:
        return None
    if http.teach_token:
        with about("http.teach_token"):
            return load_token(Path(http.teach_token))
    if not is_local(f"tcp://{listen.http}"):
        raise ConfigError(
            f"http.teach = true needs a token, because listen.http = {listen.http} is reachable from other machines",
            hint="set http.teach_token to a file: openssl rand -hex 32 > FILE",
        )
    return None


def _clients(name: str, folder: str) -> Path:
    option = f"security.{name}_clients"
    if not folder or not Path(folder).is_dir():
        missing = f"{option} = {folder} is not a folder" if folder else f"{option} is missing"
        raise ConfigError(
            missing, hint="set it to a folder with the clients' public keys; an empty one denies access"
        )
    with about(option):
        check_folder(Path(folder))
    return Path(folder)
