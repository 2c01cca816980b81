"""HTTP for people and machines that watch: metrics, health, readiness, and a page. A uvicorn server on a thread."""

import socket
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ffstream.errors import ConfigError, DeadlineExceeded

_START_TIMEOUT_S = 10.0


def make_app(
    registry: CollectorRegistry,
    *,
    alive: Callable[[], bool],
    readiness: Callable[[], str],
    status: Callable[[], dict[str, Any]],
) -> Starlette:
    """`/metrics`, `/healthz` (no thread has died), `/readyz` (samples are taken), `/status`, the page `/`."""

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
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()])


class HttpServer:
    """Thread `ff-http`."""

    name = "ff-http"

    def __init__(self, app: Starlette, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._listener = socket.create_server((host.strip("[]"), int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {address}: {error}", hint="set listen.http to host:port") from error
        self.address = "{}:{}".format(*self._listener.getsockname()[:2])
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="ff-http", daemon=True
        )

    def start(self) -> None:
        """Returns once requests are answered."""
        self._thread.start()
        pause = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / 0.01)):
            if self._server.started:
                return
            pause.wait(0.01)
        raise DeadlineExceeded("the HTTP server did not start", hint="see the log")

    def stop(self, timeout_s: float) -> bool:
        """Closes the listener; requests under way get the time to finish."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._listener.close()
        return not self._thread.is_alive()
