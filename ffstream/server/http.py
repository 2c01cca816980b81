"""HTTP for people and machines that watch: metrics, health, readiness, and a page. A uvicorn server on a thread.

    /healthz        alive: no thread has died or is stuck. 503: restart it.
    /readyz         predictions are answered, whatever becomes of samples.
    /readyz/learn   samples are accepted. 503: producers wait, or send elsewhere.

The body of the last two says why. While learning is paused both are 200: samples are stored and learned after a
resume. While the daemon drains, /readyz/learn is 503, and /readyz is 200 until predictions stop. A standby does not
listen: on one machine it could not have the port of the daemon it stands by for, so its service manager watches it.

Strangers may connect and say nothing, so a connection that waits for the other side gives way to a new one, and only
requests that are being answered count as many. Health and readiness are told whatever else goes on.
"""

import hmac
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
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

from ffstream.errors import ConfigError, DeadlineExceeded, StageFailed, Unavailable
from ffstream.server.http_connection import Connection
from ffstream.server.readiness import Readiness
from ffstream.server.refusals import Refusals
from ffstream.util.os_errors import listen_error
from ffstream.util.threads import OnFailure, Worker

_START_TIMEOUT_S = 10.0
_CONNECTIONS = 64
_RESERVE = 16  # connections beyond that: for health, and for answers that there are too many
_HANDSHAKE_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 330.0
_LINE_S = 1.0
_HEALTH = frozenset({"/healthz", "/readyz", "/readyz/learn"})
_OPEN = _HEALTH | {"/"}  # probes bear no token, and the page asks for one


class BearerToken:
    """Middleware: 401 for whatever does not bear the token, but for what tells nothing."""

    def __init__(self, app: ASGIApp, token: bytes, refusals: Refusals | None) -> None:
        self._app = app
        self._expected = token
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers."""
        if scope["type"] != "http" or scope["path"] in _OPEN or self._is_borne(scope):
            await self._app(scope, receive, send)
            return
        if self._refusals is not None:
            self._refusals.count("token", f"address={_address(scope)}")
        refusal = PlainTextResponse(
            "401: send the header `Authorization: Bearer TOKEN`, with the token in security.http_token's file\n",
            401,
            {"WWW-Authenticate": 'Bearer realm="ffstream"'},
        )
        await refusal(scope, receive, send)

    def _is_borne(self, scope: Scope) -> bool:
        borne = [value for name, value in scope["headers"] if name == b"authorization"]
        # In constant time: how long it takes must not tell how much of a guess was right.
        scheme, _, token = borne[0].partition(b" ") if len(borne) == 1 else (b"", b"", b"")
        return hmac.compare_digest(token.lstrip(b" "), self._expected) and scheme.lower() == b"bearer"


def make_app(
    registry: CollectorRegistry,
    *,
    alive: Callable[[], bool],
    predicts: Callable[[], Readiness],
    learns: Callable[[], Readiness],
    status: Callable[[], dict[str, Any]],
    token: bytes | None = None,
    refusals: Refusals | None = None,
) -> Starlette:
    """`/healthz`, `/readyz`, `/readyz/learn`, `/metrics`, `/status`, the page `/`.

    With a `token`, `/metrics` and `/status` are only for those who bear it.
    """

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    # Not on a thread, as the others: there are few, and all may be taken.
    async def healthz(request: Request) -> Response:
        healthy = alive()
        return PlainTextResponse("ok\n" if healthy else "failed\n", 200 if healthy else 503)

    async def readyz(request: Request) -> Response:
        return _say(predicts())

    async def readyz_learn(request: Request) -> Response:
        return _say(learns())

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
    guard = [] if token is None else [Middleware(BearerToken, token=token, refusals=refusals)]
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()], middleware=guard)


def _address(scope: Scope) -> str:
    client = scope["client"]
    return str(client[0]) if client else "unknown"


def _say(readiness: Readiness) -> Response:
    return PlainTextResponse(f"{readiness.text}\n", 200 if readiness.ready else 503)


class Places:
    """Middleware: 503 while as many requests as there are places are being answered, but for health."""

    def __init__(self, app: ASGIApp, places: int, refused: Callable[[str], None]) -> None:
        self._app = app
        self._free = places
        self._refused = refused
        self._refusal = PlainTextResponse("503: too many at a time\n", 503, {"Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers."""
        if scope["type"] != "http" or scope["path"] in _HEALTH:
            await self._app(scope, receive, send)
        elif not self._free:
            self._refused(f"answer=503 address={_address(scope)}")
            await self._refusal(scope, receive, send)
        else:
            self._free -= 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._free += 1


class Sparse(logging.Filter):
    """At most a line a second for each level, with how many were left out: strangers can bring them about."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[int, float] = {}
        self._left_out: dict[int, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        now, level = time.monotonic(), record.levelno
        if now - self._said_at.get(level, -_LINE_S) < _LINE_S:
            self._left_out[level] = self._left_out.get(level, 0) + 1
            return False
        self._said_at[level] = now
        if left_out := self._left_out.pop(level, 0):
            record.msg, record.args = f"{record.getMessage()} left_out={left_out}", ()
        return True


# One each: the process has these loggers once, however many servers there are.
_SPARSE = {name: Sparse() for name in ("uvicorn.error", "asyncio")}


def _listener(host: str, port: int) -> socket.socket:
    """`::` listens on IPv4 as well. Of a name's addresses IPv4 is taken, if there is one. Raises OSError."""
    families = {each[0] for each in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)}
    family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    return socket.create_server(
        (host, port), family=family, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
    )


class HttpServer:
    """Thread `ff-http`."""

    name = "ff-http"

    def __init__(
        self,
        app: Starlette,
        address: str,
        connections: int = _CONNECTIONS,
        handshake_timeout_s: float = _HANDSHAKE_TIMEOUT_S,
        keep_alive_s: float = _KEEP_ALIVE_S,
        on_failure: OnFailure = lambda error: None,
        refusals: Refusals | None = None,
    ) -> None:
        self._refusals = refusals
        host, _, port = address.rpartition(":")
        try:
            self._listener = _listener(host.strip("[]"), int(port))
        except OSError as error:
            raise listen_error("listen.http", address, error) from error
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {address} (listen.http): {error}",
                hint="set listen.http to host:port, with a port from 0 to 65535",
            ) from error
        host, bound = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        config = uvicorn.Config(
            Places(app, connections, self._refused),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=math.ceil(keep_alive_s),
            timeout_graceful_shutdown=1,  # whoever does not read its answer holds up no stop
            backlog=_RESERVE,  # accepted in one go: who has asked is read before so many have come that it gives way
            # h11 limits the bytes of a request's head. uvicorn only calls what it is given.
            http=partial(  # type: ignore[arg-type]
                Connection,
                most=connections + _RESERVE,
                handshake_timeout_s=handshake_timeout_s,
                keep_alive_s=keep_alive_s,
                refused=self._refused,
            ),
            ws="none",
            callback_notify=self._notice,
            timeout_notify=1,
        )
        for name, sparse in _SPARSE.items():
            logging.getLogger(name).addFilter(sparse)
        self._server = uvicorn.Server(config)
        self.thread = Worker(self.name, self._serve, on_failure)

    def start(self) -> None:
        """Returns once requests are answered."""
        self.thread.start()
        pause = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / 0.01)):
            if self._server.started:
                self._listener.listen()  # more may wait than are accepted in one go
                return
            pause.wait(0.01)
        raise DeadlineExceeded("the HTTP server did not start", hint="see the log")

    def _serve(self) -> None:
        self._server.run(sockets=[self._listener])
        if not self._server.should_exit:
            raise StageFailed(f"{self.name} ended by itself", hint="see the log")

    async def _notice(self) -> None:
        self.thread.progressed()  # whatever waits: the loop goes round
        if self._refusals is not None:
            self._refusals.say()

    def _refused(self, detail: str) -> None:
        if self._refusals is not None:
            self._refusals.count("too_many", detail)

    def stop(self, timeout_s: float) -> bool:
        """Closes the listener; requests under way get the time to finish."""
        self._server.should_exit = True
        ended = self.thread.join(timeout_s)
        self._listener.close()
        if self._refusals is not None:
            self._refusals.say(everything=True)
        return ended
