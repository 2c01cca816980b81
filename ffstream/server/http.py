"""HTTP for people and machines that watch: metrics, health, readiness, and a page. A uvicorn server on a thread.

Strangers may connect and say nothing, so a connection that waits for the other side gives way to a new one, and only
requests that are being answered count as many. Health and readiness are told whatever else goes on.
"""

import asyncio
import hmac
import logging
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
from uvicorn.protocols.http.h11_impl import H11Protocol

from ffstream.errors import ConfigError, DeadlineExceeded, StageFailed, Unavailable
from ffstream.server.refusals import Refusals
from ffstream.threads import OnFailure, Worker

_START_TIMEOUT_S = 10.0
_CONNECTIONS = 64
_RESERVE = 16  # connections beyond that: for health, and for answers that there are too many
_IDLE_TIMEOUT_S = 10.0
_LINE_S = 1.0
_HEALTH = frozenset({"/healthz", "/readyz"})
_OPEN = frozenset({"/", "/healthz", "/readyz"})  # probes bear no token, and the page asks for one


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
        scheme, _, token = borne[0].partition(b" ") if len(borne) == 1 else (b"", b"", b"")
        return hmac.compare_digest(token.lstrip(b" "), self._expected) and scheme.lower() == b"bearer"


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

    # Not on a thread, as the others: there are few, and all may be taken.
    async def healthz(request: Request) -> Response:
        healthy = alive()
        return PlainTextResponse("ok\n" if healthy else "failed\n", 200 if healthy else 503)

    async def readyz(request: Request) -> Response:
        state = readiness()
        return PlainTextResponse(f"{state}\n", 200 if state == "ready" else 503)

    def status_json(request: Request) -> Response:
        try:
            return JSONResponse(status())
        except Unavailable as error:
            return JSONResponse({"code": error.code, "message": error.message, "hint": error.hint}, 503)

    def page(request: Request) -> Response:
        return HTMLResponse(files("ffstream.server").joinpath("page.html").read_text())

    routes = {"/": page, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz, "/status": status_json}
    guard = [] if token is None else [Middleware(BearerToken, token=token, refusals=refusals)]
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()], middleware=guard)


class Places:
    """Middleware: 503 while as many requests as there are places are being answered, but for health."""

    def __init__(self, app: ASGIApp, places: int) -> None:
        self._app = app
        self._free = places
        self._refusal = PlainTextResponse("503: too many at a time\n", 503, {"Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers."""
        if scope["type"] != "http" or scope["path"] in _HEALTH:
            await self._app(scope, receive, send)
        elif not self._free:
            await self._refusal(scope, receive, send)
        else:
            self._free -= 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._free += 1


class Connection(H11Protocol):
    """Idle while it waits for the other side: to send a request's head, or to take an answer.

    It is closed when it was idle for `idle_timeout_s`, or sooner when there are more than `most` and none is idle for
    longer.
    """

    def __init__(self, *args: Any, most: int, idle_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most
        self._idle_timeout_s = idle_timeout_s
        self._is_answering = False
        self._deadline: asyncio.TimerHandle | None = None  # of an idle one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """If it is one too many, one gives way."""
        super().connection_made(transport)
        self._idle()
        if len(self.connections) > self._most:
            idle = {each: each._deadline.when() for each in self._others() if each._deadline}
            min(idle, key=idle.__getitem__, default=self)._close()

    def handle_events(self) -> None:
        """What was received may be a request."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._is_answering = True
            if not self.flow.write_paused:
                self._busy()

    def on_response_complete(self) -> None:
        """The next request may have been received already."""
        self._is_answering = False
        self._idle()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The other side takes nothing more."""
        super().pause_writing()
        self._idle()

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._is_answering:
            self._busy()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        super().connection_lost(exc)
        self._busy()

    def _others(self) -> list["Connection"]:
        return [each for each in self.connections if isinstance(each, Connection) and each is not self]

    def _idle(self) -> None:
        self._busy()
        self._deadline = self.loop.call_later(self._idle_timeout_s, self._close)

    def _busy(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self.connections.discard(self)  # now, not when the loop comes to it: others are counted meanwhile
        self.transport.abort()  # nor when the other side has taken what was sent


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


class HttpServer:
    """Thread `ff-http`."""

    name = "ff-http"

    def __init__(
        self,
        app: Starlette,
        address: str,
        connections: int = _CONNECTIONS,
        idle_timeout_s: float = _IDLE_TIMEOUT_S,
        on_failure: OnFailure = lambda error: None,
    ) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._listener = socket.create_server((host.strip("[]"), int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {address}: {error}", hint="set listen.http to host:port") from error
        self.address = "{}:{}".format(*self._listener.getsockname()[:2])
        config = uvicorn.Config(
            Places(app, connections),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,  # whoever does not read its answer holds up no stop
            backlog=_RESERVE,  # accepted in one go: who has asked is read before so many have come that it gives way
            # h11 limits the bytes of a request's head. uvicorn only calls what it is given.
            http=partial(Connection, most=connections + _RESERVE, idle_timeout_s=idle_timeout_s),  # type: ignore[arg-type]
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

    def stop(self, timeout_s: float) -> bool:
        """Closes the listener; requests under way get the time to finish."""
        self._server.should_exit = True
        ended = self.thread.ends(timeout_s)
        self._listener.close()
        return ended
