"""HTTP for people and machines that watch: metrics, health, readiness, and a page. A uvicorn server on a thread."""

import hmac
import logging
import socket
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ffstream.errors import ConfigError, DeadlineExceeded, StageFailed
from ffstream.server.refusals import Refusals
from ffstream.threads import join

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 10.0
_CONNECTIONS = 64
_OPEN = frozenset({"/", "/healthz", "/readyz"})  # probes bear no token, and the page asks for one


class BearerToken:
    """Middleware: 401 for whatever does not bear the token, but for what tells nothing."""

    def __init__(self, app: ASGIApp, token: bytes, refusals: Refusals | None) -> None:
        self._app = app
        self._expected = b"Bearer " + token
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers."""
        if scope["type"] != "http" or scope["path"] in _OPEN or self._is_borne(scope):
            await self._app(scope, receive, send)
            return
        if self._refusals is not None:
            self._refusals.count("token", f"address={(scope['client'] or ('unknown',))[0]}")
        refusal = PlainTextResponse(
            "401: send the header `Authorization: Bearer TOKEN`, with the token in security.http_token's file\n",
            401,
            {"WWW-Authenticate": 'Bearer realm="ffstream"'},
        )
        await refusal(scope, receive, send)

    def _is_borne(self, scope: Scope) -> bool:
        borne = [value for name, value in scope["headers"] if name == b"authorization"]
        # In constant time: how long it takes must not tell how much of a guess was right.
        return len(borne) == 1 and hmac.compare_digest(borne[0], self._expected)


def make_app(
    registry: CollectorRegistry,
    *,
    alive: Callable[[], bool],
    readiness: Callable[[], str],
    status: Callable[[], dict[str, Any]],
    token: bytes | None = None,
    refusals: Refusals | None = None,
) -> Starlette:
    """`/metrics`, `/healthz` (no thread has died), `/readyz` (samples are taken), `/status`, the page `/`.

    With a `token`, `/metrics` and `/status` are only for those who bear it.
    """

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def healthz(request: Request) -> Response:
        healthy = alive()
        return PlainTextResponse("ok\n" if healthy else "failed\n", 200 if healthy else 503)

    def readyz(request: Request) -> Response:
        state = readiness()
        return PlainTextResponse(f"{state}\n", 200 if state == "ready" else 503)

    def status_json(request: Request) -> Response:
        return JSONResponse(status())

    def page(request: Request) -> Response:
        return HTMLResponse(files("ffstream.server").joinpath("page.html").read_text())

    routes = {"/": page, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz, "/status": status_json}
    guard = [] if token is None else [Middleware(BearerToken, token=token, refusals=refusals)]
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()], middleware=guard)


class HttpServer:
    """Thread `ff-http`."""

    name = "ff-http"

    def __init__(
        self,
        app: Starlette,
        address: str,
        connections: int = _CONNECTIONS,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._on_failure = on_failure
        host, _, port = address.rpartition(":")
        try:
            self._listener = socket.create_server((host.strip("[]"), int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {address}: {error}", hint="set listen.http to host:port") from error
        self.address = "{}:{}".format(*self._listener.getsockname()[:2])
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=5,
            limit_concurrency=connections,
            http="h11",  # which limits the bytes of a request's head
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="ff-http", daemon=True)

    def start(self) -> None:
        """Returns once requests are answered."""
        self._thread.start()
        pause = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / 0.01)):
            if self._server.started:
                return
            pause.wait(0.01)
        raise DeadlineExceeded("the HTTP server did not start", hint="see the log")

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
            if not self._server.should_exit:
                raise StageFailed("ff-http ended by itself", hint="see the log")
        except Exception as error:
            log.exception("thread failed name=%s", self.name)
            self._on_failure(error)

    def stop(self, timeout_s: float) -> bool:
        """Closes the listener; requests under way get the time to finish."""
        self._server.should_exit = True
        ended = join(self._thread, timeout_s)
        self._listener.close()
        return ended
