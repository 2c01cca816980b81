"""Addresses to listen on, as a person writes them: `tcp://HOST:PORT`, `ipc://PATH`, and `HOST:PORT` for HTTP.

HOST is a name, an interface, an IPv4 address, an IPv6 address in brackets, or `*` for all interfaces (for HTTP it may
also be empty). PORT is a number; `*` (for HTTP 0) means any free one. Only the syntax is checked here.
"""

import os
import re
from ipaddress import ip_address
from typing import NamedTuple

PORT_MAX = 65_535
_PATH_MAX_BYTES = 107  # of a Unix socket, in Linux
_ANY = frozenset({"", "*", "::"})  # hosts that mean every address
_FORBIDDEN = re.compile(r"[\s/?#@,;\[\]]")


class Address(NamedTuple):
    """Where a socket listens: at host and port (None: any free one), or at `path`."""

    host: str = ""
    port: int | None = None
    path: str = ""

    def collides(self, other: "Address") -> bool:
        """Whether two sockets cannot use these addresses at the same time."""
        if self.path or other.path:
            return self.path == other.path and self.path != "*"
        if self.port is None or self.port != other.port:
            return False
        ours, theirs = _canonical(self.host), _canonical(other.host)
        return (
            ours == theirs
            or bool({ours, theirs} & _ANY)
            or ("0.0.0.0" in {ours, theirs} and ":" not in ours + theirs)
        )


def parse(endpoint: str) -> Address:
    """Parses a ZeroMQ endpoint. Raises ValueError, which says what is expected."""
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in ("tcp", "ipc"):
        raise ValueError("expected tcp://HOST:PORT or ipc://PATH")
    if scheme == "tcp":
        return _parse_tcp(rest, "tcp://HOST:PORT", wildcard=True)
    if not rest or "\0" in rest:
        raise ValueError("expected ipc://PATH, with the path of a socket")
    if (size := len(os.fsencode(rest))) > _PATH_MAX_BYTES:
        raise ValueError(f"the path of a socket has at most {_PATH_MAX_BYTES} bytes, this one has {size}")
    return Address(path=rest)


def listens_on_ipv6(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint needs IPv6 turned on: an IPv6 address, or `*`, which stands for IPv4 and IPv6."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0]
    return endpoint.startswith("tcp://") and (host == "*" or ":" in host)


def parse_http(address: str) -> Address:
    """Parses `host:port` for HTTP. Raises ValueError, which says what is expected."""
    if "://" in address:
        raise ValueError("expected HOST:PORT alone, without a scheme")
    return _parse_tcp(address, "HOST:PORT", wildcard=False)


def _parse_tcp(text: str, form: str, *, wildcard: bool) -> Address:
    host, separator, port = text.rpartition(":")
    if not separator or port.endswith("]"):
        raise ValueError(f"expected {form}, but there is no port")
    return Address(_host(host, form, wildcard), _port(port, form, wildcard))


def _port(port: str, form: str, wildcard: bool) -> int | None:
    if wildcard and port == "*":
        return None
    if not (port.isascii() and port.isdecimal()):
        raise ValueError(f"expected {form}, but {port!r} is not a port")
    if int(port[:8]) > PORT_MAX:
        raise ValueError(f"a port is a number from 1 to {PORT_MAX}, or {'*' if wildcard else '0'} for any free one")
    return int(port) or None


def _host(host: str, form: str, wildcard: bool) -> str:
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        try:
            if ip_address(inner).version == 6:
                return inner
        except ValueError:
            pass
        raise ValueError(f"[{inner}] is not an IPv6 address")
    if ":" in host:
        raise ValueError(f"expected {form}, with an IPv6 address in brackets: [::1]")
    if (not host and wildcard) or (host == "*" and not wildcard) or _FORBIDDEN.search(host):
        raise ValueError(f"expected {form}, but {host!r} is not a host")
    if re.fullmatch(r"[\d.]+", host):
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(f"{host} is not an IPv4 address") from None
    return host


def _canonical(host: str) -> str:
    if host in ("localhost", ""):
        return "127.0.0.1" if host else ""
    try:
        return str(ip_address(host))
    except ValueError:  # a name, an interface or a wildcard
        return host


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect to that host. A name may resolve to any address."""
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
