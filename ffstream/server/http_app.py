"""The application that the HTTP server runs: routes from small modules, behind the checks of every request.

    probes.py   health, readiness, metrics        live.py   status, its live feed, history
    static.py   the page                          api.py    what the page asks about samples and layers

A request passes: the concurrency limit, the check of its Host and Origin, the token.
"""

import hmac
from collections.abc import Callable, Iterable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ffstream.server.answers import refusal_for
from ffstream.server.live import LIVE
from ffstream.server.origin import HEALTH, Hosts, OwnPagesOnly
from ffstream.server.rejections import RejectedConnections, client_of

_UNCOUNTED = HEALTH | {LIVE}


def make_app(
    routes: Iterable[Route],
    *,
    hosts: Hosts | None = None,
    token: bytes | None = None,
    rejections: RejectedConnections | None = None,
) -> Starlette:
    """`hosts`: names of this server. With a `token`, requests must carry it, except those for probes and the page."""
    middleware = [Middleware(OwnPagesOnly, hosts=hosts or Hosts(), rejections=rejections)]
    if token is not None:
        middleware.append(Middleware(BearerToken, token=token, rejections=rejections))
    return Starlette(
        routes=list(routes), middleware=middleware, exception_handlers={HTTPException: _unknown_path_or_method}
    )


def _unknown_path_or_method(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "")
    code, hint = ("method_not_allowed", f"use {allowed}") if allowed else ("unknown_path", "check the path")
    return refusal_for(request.scope, error.status_code, code, error.detail.lower(), hint, error.headers)


def _is_public(path: str) -> bool:
    """Probes have no token, and the page asks for it."""
    return path in HEALTH or path == "/" or path.startswith("/page/")


class BearerToken:
    """Middleware: answers 401 to requests without the token, except for public paths."""

    def __init__(self, app: ASGIApp, token: bytes, rejections: RejectedConnections | None) -> None:
        self._app = app
        self._expected = token
        self._rejections = rejections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] != "http" or _is_public(scope["path"]) or self._has_token(scope):
            await self._app(scope, receive, send)
            return
        if self._rejections is not None:
            self._rejections.add("token", f"address={client_of(scope)}")
        unauthorized = refusal_for(
            scope,
            401,
            "unauthorized",
            "a token is required",
            "send the header `Authorization: Bearer TOKEN`, with the token in the file security.http_token",
            {"WWW-Authenticate": 'Bearer realm="ffstream"'},
        )
        await unauthorized(scope, receive, send)

    def _has_token(self, scope: Scope) -> bool:
        found = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
        # In constant time: the duration must not reveal how much of a guess was right.
        return hmac.compare_digest(token.lstrip(b" "), self._expected) and scheme.lower() == b"bearer"


class ConcurrencyLimit:
    """Middleware: answers 503 while `limit` requests are being answered, except for health and readiness.

    Readers of the live feed do not count: they stay, and have a limit of their own. Nor does a request while it waits
    for its body: a client may never send it.
    """

    def __init__(self, app: ASGIApp, limit: int, on_rejected: Callable[[str], None]) -> None:
        self._app = app
        self._free = limit
        self._on_rejected = on_rejected
        self._response = PlainTextResponse("503: too many requests at a time\n", 503, {"Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 503."""
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
        elif self._free <= 0:
            self._on_rejected(f"answer=503 address={client_of(scope)}")
            await self._response(scope, receive, send)
        else:
            self._free -= 1
            try:
                await self._app(scope, partial(self._uncounted, receive), send)
            finally:
                self._free += 1

    async def _uncounted(self, receive: Receive) -> Message:
        self._free += 1
        try:
            return await receive()
        finally:
            self._free -= 1
