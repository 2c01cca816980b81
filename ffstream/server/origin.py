"""Keeps foreign web pages out. A browser sends requests to loopback for any page that it shows.

A page of another site reaches this server in three ways, and each has its check:

    its own name resolves to this address (DNS rebinding)     Host must be allowed
    it sends a request from its own name                      Origin and Sec-Fetch-Site must be ours
    it sends a form or an image, which have no Origin         what changes state or computes is a POST with
                                                              Content-Type application/json and X-FFStream: 1,
                                                              which need a CORS permission that is never given

Allowed as Host are all IP addresses, because an address cannot be rebound, `localhost`, the name in `listen.http`,
and those in `http.hosts`. Health and readiness are answered for every Host: they tell nothing but words.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ffstream.server.answers import refusal_for
from ffstream.server.rejections import ConnectionReason, RejectedConnections, client_of

HEALTH: Final = frozenset({"/healthz", "/readyz", "/readyz/learn"})
OWN_HEADER: Final = "x-ffstream"  # must be "1" in requests that change state or compute
_DATA: Final = frozenset({"/status", "/metrics"})  # and everything below /api/
_NETLOC: Final = re.compile(r"(\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(:\d*)?", re.ASCII)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def host_of(netloc: str) -> str:
    """The name or address in `host:port`, in lower case, an IPv6 address without brackets. Empty if invalid."""
    found = _NETLOC.fullmatch(netloc)
    return (found["address"] or found["name"]).lower().removesuffix(".") if found else ""


class Hosts:
    """The names under which this server is addressed."""

    def __init__(self, listens_at: str = "", names: Iterable[str] = ()) -> None:
        """`listens_at`: host:port of `listen.http`. `names`: those in `http.hosts`."""
        self._given = frozenset(name.lower() for name in names)
        self._names = self._given | {"localhost", host_of(listens_at)} - {""}

    def allow(self, host: str) -> bool:
        """Whether a request with this header `Host` is for this server."""
        name = host_of(host)
        return name in self._names or _is_address(name)

    def allow_origin(self, origin: str, host: str) -> bool:
        """Whether the page that has sent a request is this server's own, also behind a proxy with another name."""
        try:
            parts = urlsplit(origin)
            own = urlsplit(f"{parts.scheme}://{host}")
            default = _DEFAULT_PORTS[parts.scheme]
            is_same = (parts.hostname, parts.port or default) == (own.hostname, own.port or default)
        except (ValueError, KeyError):  # "null", another scheme, or not a URL
            return False
        return bool(parts.hostname) and (is_same or parts.hostname in self._given)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class OwnPagesOnly:
    """Middleware: answers 421 and 403 to requests that a page of another site may have sent."""

    def __init__(self, app: ASGIApp, hosts: Hosts, rejections: RejectedConnections | None) -> None:
        self._app = app
        self._hosts = hosts
        self._rejections = rejections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        refused = None
        if scope["type"] == "http" and scope["path"] not in HEALTH:
            refused = self._refused(scope, Headers(scope=scope))
        await (refused or self._app)(scope, receive, send)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        host, origin, path = headers.get("host", ""), headers.get("origin"), scope["path"]
        if not self._hosts.allow(host):
            return self._refuse(
                scope,
                421,
                "host",
                f"this server does not know itself by the name {host_of(host)[:100]!r}",
                "add the name to http.hosts, or use the address of the machine",
            )
        if origin is not None and not self._hosts.allow_origin(origin, host):
            return self._refuse(
                scope,
                403,
                "origin",
                "a page of another site has sent this request",
                "a reverse proxy must pass the header Host on, or its name must be in http.hosts",
            )
        if (path in _DATA or path.startswith("/api/")) and _is_from_elsewhere(headers):
            return self._refuse(
                scope, 403, "origin", "a page of another site has sent this request", "open the page of the daemon"
            )
        if path.startswith("/api/") and scope["method"] == "POST" and not _is_deliberate(headers):
            return self._refuse(
                scope,
                403,
                "origin",
                "headers are missing that only a page of this server can send",
                "send Content-Type: application/json and X-FFStream: 1",
            )
        return None

    def _refuse(self, scope: Scope, status: int, reason: ConnectionReason, message: str, hint: str) -> Response:
        if self._rejections is not None:
            self._rejections.add(reason, f"address={client_of(scope)} path={scope['path'][:100]!r}")
        return refusal_for(scope, status, "wrong_host" if status == 421 else "forbidden", message, hint)


def _is_from_elsewhere(headers: Headers) -> bool:
    """Whether a browser says so. A person who follows a link from another site is let in: that site sees nothing."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("navigate", "document")


def _is_deliberate(headers: Headers) -> bool:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" and headers.get(OWN_HEADER) == "1"


class SecurityHeaders:
    """Middleware: adds to every answer what a browser may do with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
