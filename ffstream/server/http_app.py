"""What the daemon answers over HTTP: metrics, health, readiness, status, and a page for people.

    /healthz        alive: no thread has died or is stuck. 503: restart the daemon.
    /readyz         predictions are answered, whether samples are accepted or not.
    /readyz/learn   samples are accepted. 503: producers wait, or send elsewhere.

The body of the last two gives the reason. While learning is paused both are 200: samples are stored, and learned
after learning is resumed. While the daemon drains, /readyz/learn is 503, and /readyz is 200 until predictions stop.
"""

import hmac
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ffstream.errors import Unavailable
from ffstream.server.readiness import Readiness
from ffstream.server.rejections import RejectedConnections

_HEALTH = frozenset({"/healthz", "/readyz", "/readyz/learn"})
_PUBLIC = _HEALTH | {"/"}  # probes have no token, and the page asks for it


def make_app(
    registry: CollectorRegistry,
    *,
    alive: Callable[[], bool],
    predicts: Callable[[], Readiness],
    learns: Callable[[], Readiness],
    status: Callable[[], dict[str, Any]],
    token: bytes | None = None,
    rejections: RejectedConnections | None = None,
) -> Starlette:
    """`/healthz`, `/readyz`, `/readyz/learn`, `/metrics`, `/status` and the page `/`.

    With a `token`, requests for `/metrics` and `/status` must carry it.
    """

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    # Async, so that these are answered even when all worker threads are in use.
    async def healthz(request: Request) -> Response:
        healthy = alive()
        return PlainTextResponse("ok\n" if healthy else "failed\n", 200 if healthy else 503)

    async def readyz(request: Request) -> Response:
        return _readiness_response(predicts())

    async def readyz_learn(request: Request) -> Response:
        return _readiness_response(learns())

    def status_json(request: Request) -> Response:
        try:
            return JSONResponse(status())
        except Unavailable as error:
            return JSONResponse({"code": error.code, "message": error.message, "hint": error.hint}, 503)

    def page(request: Request) -> Response:
        return HTMLResponse(files("ffstream.server").joinpath("page.html").read_text(encoding="utf-8"))

    routes: dict[str, Callable[[Request], Any]] = {
        "/": page,
        "/metrics": metrics,
        "/healthz": healthz,
        "/readyz": readyz,
        "/readyz/learn": readyz_learn,
        "/status": status_json,
    }
    middleware = [] if token is None else [Middleware(BearerToken, token=token, rejections=rejections)]
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()], middleware=middleware)


def _readiness_response(readiness: Readiness) -> Response:
    return PlainTextResponse(f"{readiness.text}\n", 200 if readiness.ready else 503)


class BearerToken:
    """Middleware: answers 401 to requests without the token, except for public paths."""

    def __init__(self, app: ASGIApp, token: bytes, rejections: RejectedConnections | None) -> None:
        self._app = app
        self._expected = token
        self._rejections = rejections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] != "http" or scope["path"] in _PUBLIC or self._has_token(scope):
            await self._app(scope, receive, send)
            return
        if self._rejections is not None:
            self._rejections.add("token", f"address={_address(scope)}")
        unauthorized = PlainTextResponse(
            "401: send the header `Authorization: Bearer TOKEN`, with the token in the file security.http_token\n",
            401,
            {"WWW-Authenticate": 'Bearer realm="ffstream"'},
        )
        await unauthorized(scope, receive, send)

    def _has_token(self, scope: Scope) -> bool:
        found = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
        # In constant time: the duration must not reveal how much of a guess was right.
        return hmac.compare_digest(token.lstrip(b" "), self._expected) and scheme.lower() == b"bearer"


class ConcurrencyLimit:
    """Middleware: answers 503 while `limit` requests are being answered, except for health and readiness."""

    def __init__(self, app: ASGIApp, limit: int, on_rejected: Callable[[str], None]) -> None:
        self._app = app
        self._free = limit
        self._on_rejected = on_rejected
        self._response = PlainTextResponse("503: too many requests at a time\n", 503, {"Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 503."""
        if scope["type"] != "http" or scope["path"] in _HEALTH:
            await self._app(scope, receive, send)
        elif not self._free:
            self._on_rejected(f"answer=503 address={_address(scope)}")
            await self._response(scope, receive, send)
        else:
            self._free -= 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._free += 1


def _address(scope: Scope) -> str:
    client = scope["client"]
    return str(client[0]) if client else "unknown"
