"""Finds out what listens at an endpoint, with a plain socket: libzmq reconnects silently and gives no reason.

A ZeroMQ server sends its greeting first, and the greeting contains its security mechanism (rfc.zeromq.org/spec/23).
An HTTP server waits for a request.
"""

import errno
import os
import socket
from typing import NamedTuple

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION = b"\x03"
_MECHANISM = slice(12, 32)  # of the greeting
_HTTP_REQUEST = b"GET /healthz HTTP/1.0\r\n\r\n"

_LISTEN_HINT = (
    "start the daemon with `ffstream serve`, or use the endpoint that it prints at its start (section [listen])"
)


class ProbeResult(NamedTuple):
    """What a probe has found. `mechanism` is that of a ZeroMQ server (`NULL`, `CURVE`), None for anything else."""

    text: str
    hint: str
    connects: bool = False
    mechanism: str | None = None
    is_http: bool = False
    is_ipv6: bool = False


def host_of(endpoint: str) -> str:
    """The host in tcp://HOST:PORT; an IPv6 address without brackets."""
    return endpoint.rpartition(";")[2].removeprefix("tcp://").rpartition(":")[0].strip("[]")


def probe(endpoint: str, timeout_s: float) -> ProbeResult | None:
    """Connects and reads. `timeout_s` limits each step except name resolution. None for other transports."""
    if endpoint.startswith("ipc://"):
        return _probe_ipc(endpoint, timeout_s)
    if endpoint.startswith("tcp://"):
        return _probe_tcp(endpoint, timeout_s)
    return None


def _probe_ipc(endpoint: str, timeout_s: float) -> ProbeResult:
    path = endpoint.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(timeout_s)
        try:
            raw.connect("\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            return _failed(endpoint, error)
        return _identify(raw, endpoint)


def _probe_tcp(endpoint: str, timeout_s: float) -> ProbeResult:
    host, port = host_of(endpoint), endpoint.rpartition(":")[2]
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: a label of the name is empty or too long
        why = error.strerror if isinstance(error, OSError) else error
        return ProbeResult(f"the name {host!r} cannot be resolved ({why})", "check the spelling, and DNS")
    failed: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as raw:
                raw.settimeout(timeout_s)
                raw.connect(address)
                return _identify(raw, endpoint)._replace(is_ipv6=family == socket.AF_INET6)
        except OSError as error:
            failed = failed or error
    return _failed(endpoint, failed or OSError(errno.EADDRNOTAVAIL, "no address"))


def _failed(endpoint: str, error: OSError) -> ProbeResult:
    why = "no answer to the connection request" if isinstance(error, TimeoutError) else _reason(error)
    if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
        return ProbeResult(f"nobody listens at {endpoint} ({why})", _LISTEN_HINT)
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "connecting needs write permission on the socket file and search permission on its folders"
        return ProbeResult(f"cannot connect to {endpoint} ({why})", hint)
    return ProbeResult(
        f"cannot connect to {endpoint} ({why})", "is the host up, and do firewalls let the port through?"
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _identify(raw: socket.socket, endpoint: str) -> ProbeResult:
    """Identifies the server by what it sends first, or by its answer to a request."""
    try:
        greeting = _read(raw, 1)
        if greeting.startswith(b"\xff"):
            raw.sendall(_SIGNATURE + _VERSION)
            return _zeromq(endpoint, greeting + _read(raw, _MECHANISM.stop - len(greeting)))
        if greeting:
            return _unknown(endpoint)
        raw.sendall(_HTTP_REQUEST)
        answer = _read(raw, 5)
    except OSError:
        answer = b""
    if answer.startswith(b"HTTP/"):
        return ProbeResult(
            f"an HTTP server listens at {endpoint}",
            "is this the port of listen.http? clients connect to listen.learn, listen.predict or listen.control",
            connects=True,
            is_http=True,
        )
    if answer:
        return _unknown(endpoint)
    return ProbeResult(
        f"{endpoint} accepts connections, but does not greet as a ZeroMQ server",
        "is the daemon stopped (SIGSTOP), or behind a proxy that waits for it? or is it the port of another server?",
        connects=True,
    )


def _unknown(endpoint: str) -> ProbeResult:
    return ProbeResult(
        f"the server at {endpoint} does not speak ZeroMQ",
        "is it the right host and port? see [listen]",
        connects=True,
    )


def _zeromq(endpoint: str, greeting: bytes) -> ProbeResult:
    mechanism = greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
    return ProbeResult(
        f"a ZeroMQ server listens at {endpoint} (security {mechanism or 'unknown'}), but the handshake fails",
        "is it an ffstream daemon?",
        connects=True,
        mechanism=mechanism,
    )


def _read(raw: socket.socket, size: int) -> bytes:
    """Reads at least `size` bytes, or fewer if the timeout passes or the other side closes the connection."""
    data = b""
    try:
        while len(data) < size and (more := raw.recv(4096)):
            data += more
    except OSError:
        pass
    return data
