"""Wires what a daemon answers over HTTP: probes, metrics, the live feed, the page and what it asks."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Literal

from starlette.routing import Route

from ffstream.config import Config
from ffstream.daemon.reports import Reports
from ffstream.errors import Paused
from ffstream.learning.learner import Learner
from ffstream.metrics import Metrics
from ffstream.server.access import Access
from ffstream.server.api import Teaching, api_routes
from ffstream.server.background import Background
from ffstream.server.http import HttpServer
from ffstream.server.http_app import make_app
from ffstream.server.lessons import Lessons
from ffstream.server.live import LiveFeed, live_routes
from ffstream.server.origin import Hosts
from ffstream.server.probes import probe_routes
from ffstream.server.static import static_routes
from ffstream.serving.inspection import Inspector
from ffstream.util.threads import OnFailure


def make_http(
    config: Config,
    access: Access,
    metrics: Metrics,
    reports: Reports,
    learner: Learner,
    *,
    history: Callable[[str], dict[str, Any]],
    lessons: Lessons,
    background: Background,
    on_failure: OnFailure,
) -> HttpServer:
    """The server at `listen.http`, which listens from now on. Raises ConfigError, StartBlocked."""
    limits = config.limits
    feed = LiveFeed(reports.status, limits.http_live_readers, metrics, access.http_rejections)
    inspector = Inspector(
        config.network,
        learner.snapshots,
        evaluation=lambda: learner.run.prequential,
        threshold=lambda index: learner.run.pipeline.describe_layers()[index]["threshold"],
    )

    def teach(image: bytes, label: int) -> "Future[int]":
        """Gives a sample to the thread of the journal. Raises FFStreamError."""
        if learner.paused:
            raise Paused("learning is paused, so the sample would not be learned", hint="ffstream resume, then again")
        return lessons.submit(image, label)

    routes = [
        *probe_routes(
            metrics.registry,
            alive=reports.alive,
            predicts=reports.predict_readiness,
            learns=reports.learn_readiness,
        ),
        *live_routes(reports.status, feed, history),
        *static_routes(),
        *api_routes(
            inspector, background, Teaching(teach, config.http.teach, access.teach_token, access.http_rejections)
        ),
    ]
    return http_server(config, access, routes, on_failure, streams=limits.http_live_readers, on_stop=feed.close)


def http_server(
    config: Config,
    access: Access,
    routes: Iterable[Route],
    on_failure: OnFailure,
    *,
    option: Literal["http", "standby_http"] = "http",
    streams: int = 0,
    on_stop: Callable[[], None] = lambda: None,
) -> HttpServer:
    """A server with these routes, behind the token and the checks of each request, at the address of the option in
    [listen]. `streams`, `on_stop`: see `HttpServer`. Raises ConfigError, StartBlocked."""
    address, limits = getattr(config.listen, option), config.limits
    hosts = Hosts(address, config.http.hosts)
    return HttpServer(
        make_app(routes, hosts=hosts, token=access.http_token, rejections=access.http_rejections),
        address,
        limits.http_connections,
        limits.handshake_timeout_s,
        limits.http_keep_alive_s,
        on_failure,
        access.http_rejections,
        streams=streams,
        on_stop=on_stop,
        option=f"listen.{option}",
    )
