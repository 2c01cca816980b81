"""An HTTP server with probes, status, live feed and page, on a free port of loopback, and a client of it."""

import socket
import threading
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ffstream.errors import FFStreamError, Unavailable
from ffstream.metrics import Metrics
from ffstream.server.http import HttpServer
from ffstream.server.http_app import make_app
from ffstream.server.live import LiveFeed, live_routes
from ffstream.server.origin import Hosts
from ffstream.server.probes import probe_routes
from ffstream.server.readiness import Readiness
from ffstream.server.rejections import RejectedConnections
from ffstream.server.requests import body_of, refused
from ffstream.server.static import static_routes

WAIT_S = 20.0
STATUS = {"state": "ready", "accepted": 5, "prequential_error": None}


async def _size_of_body(request: Request) -> Response:
    try:
        return PlainTextResponse(f"{len(await body_of(request))}")
    except FFStreamError as error:
        return refused(error)


class Site:
    def __init__(self, connections: int = 64, handshake_timeout_s: float = 10.0, readers: int = 4) -> None:
        self.metrics = Metrics()
        self.alive = True
        self.state = "ready"
        self.document: dict[str, Any] = STATUS
        self.predicts, self.learns = Readiness(True, "ready"), Readiness(True, "ready")
        self.asked, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()
        routes = probe_routes(
            self.metrics.registry,
            alive=lambda: self.alive,
            predicts=lambda: self.predicts,
            learns=lambda: self.learns,
        )
        rejections = RejectedConnections("http", self.metrics)
        feed = self.feed = LiveFeed(self.status, readers, self.metrics, rejections)
        routes.append(Route("/body", _size_of_body, methods=["POST"]))
        app = make_app(
            [*routes, *live_routes(self.status, feed, lambda span: {"span": span}), *static_routes()],
            hosts=Hosts(names=["x"]),
            rejections=rejections,
        )
        self.server = HttpServer(
            app,
            "127.0.0.1:0",
            connections,
            handshake_timeout_s,
            rejections=rejections,
            streams=readers,
            on_stop=feed.close,
        )
        self.server.start()
        self.client = httpx.Client(base_url=f"http://{self.server.address}", trust_env=False, timeout=10)

    def status(self) -> dict[str, Any]:
        self.asked.release()
        assert self.go_on.wait(WAIT_S)
        if self.state == "unreadable":
            raise Unavailable("the disk is gone", hint="put it back")
        return self.document

    def connect(self) -> socket.socket:
        host, _, port = self.server.address.rpartition(":")
        return socket.create_connection((host, int(port)), WAIT_S)

    def close(self) -> None:
        self.go_on.set()
        self.client.close()
        assert self.server.stop(10)

    def too_many(self) -> float:
        refused = {"socket": "http", "reason": "too_many"}
        return self.metrics.registry.get_sample_value("ffstream_connections_refused_total", refused) or 0.0

    def get(self, path: str) -> tuple[int, str]:
        response = self.client.get(path)
        return response.status_code, response.text
