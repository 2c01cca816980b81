"""Wires what a daemon answers over HTTP: probes, metrics, the live feed, the page and what it asks."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

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
    app = make_app(routes, hosts=access.hosts, token=access.http_token, rejections=access.http_rejections)
    return HttpServer(
        app,
        config.listen.http,
        limits.http_connections,
        limits.handshake_timeout_s,
        limits.http_keep_alive_s,
        on_failure,
        access.http_rejections,
        streams=limits.http_live_readers,
        on_stop=feed.close,
    )
