"""Who can get in, as the options say it: checked before anything listens, and without importing what listens.

With keys, each socket admits the public keys in its own folder, and nobody else. Without keys everybody who can reach
a socket gets in, so a socket that others can reach is refused unless the options say that this is meant.
"""

from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from ffstream.config import Listen, Security
from ffstream.errors import ConfigError
from ffstream.security.keys import KeyPair, check_folder, load_pair, load_token
from ffstream.util.option_errors import about

SOCKETS = ("learn", "predict", "control")


class Secrets(NamedTuple):
    """What the files that [security] names hold, and for each socket the folder of its clients' keys."""

    pair: KeyPair | None
    clients: dict[str, Path]  # empty without a pair
    http_token: bytes | None


def check_exposure(listen: Listen, security: Security) -> list[str]:
    """The names of the sockets that anybody can reach, each with its address.

    Raises ConfigError if there is one, unless `security.insecure` allows it.
    """
    doors = {name: (getattr(listen, name), bool(security.server_key)) for name in SOCKETS}
    doors["http"] = (f"tcp://{listen.http}", bool(security.http_token))
    exposed = []
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
        exposed.append(f"socket={name} endpoint={where}")
    return exposed


def is_local(endpoint: str) -> bool:
    """Whether only programs of this machine can connect to it."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("inproc", "ipc"):
        return True
    host = rest.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:  # a wildcard, or a name that may mean anything
        return False


def load_secrets(security: Security) -> Secrets:
    """Reads the files that the options name. Raises ConfigError that names option and file."""
    token = None
    if security.http_token:
        with about("security.http_token"):
            token = load_token(Path(security.http_token))
    folders = {name: getattr(security, f"{name}_clients") for name in SOCKETS}
    if not security.server_key:
        for name, folder in folders.items():
            if folder:
                raise ConfigError(
                    f"security.{name}_clients is set without security.server_key: the folder would keep nobody out",
                    hint="ffstream keygen makes a key for the daemon",
                )
        return Secrets(None, {}, token)
    with about("security.server_key"):
        pair = load_pair(Path(security.server_key))
    return Secrets(pair, {name: _clients(name, folder) for name, folder in folders.items()}, token)


def _clients(name: str, folder: str) -> Path:
    option = f"security.{name}_clients"
    if not folder or not Path(folder).is_dir():
        missing = f"{option} = {folder} is no folder" if folder else f"{option} is missing"
        raise ConfigError(missing, hint="a folder with the public keys of those who may; empty: nobody may")
    with about(option):
        check_folder(Path(folder))
    return Path(folder)
