"""What programs ask for over HTTP: health, readiness, metrics.

    /healthz        alive: no thread has died or is stuck. 503: restart the daemon.
    /readyz         predictions are answered, whether samples are accepted or not.
    /readyz/learn   samples are accepted. 503: producers wait, or send elsewhere.

The body of the last two gives the reason. While learning is paused both are 200: samples are stored, and learned
after learning is resumed. While the daemon drains, /readyz/learn is 503, and /readyz is 200 until predictions stop.
"""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ffstream.server.exposition import Exposition
from ffstream.server.readiness import Readiness


def probe_routes(
    registry: CollectorRegistry,
    *,
    alive: Callable[[], bool],
    predicts: Callable[[], Readiness],
    learns: Callable[[], Readiness],
) -> list[Route]:
    """`/healthz`, `/readyz`, `/readyz/learn`, `/metrics`."""
    exposition = Exposition(registry)

    # Async, so that these are answered even when all worker threads are in use.
    async def healthz(request: Request) -> Response:
        healthy = alive()
        return PlainTextResponse("ok\n" if healthy else "failed\n", 200 if healthy else 503)

    async def readyz(request: Request) -> Response:
        return _readiness_response(predicts())

    async def readyz_learn(request: Request) -> Response:
        return _readiness_response(learns())

    # On the event loop as well: it takes a millisecond, and a worker thread would take several more while all cores
    # learn. So no gauge may wait for anything when it is read.
    async def metrics(request: Request) -> Response:
        return Response(exposition.text(), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/readyz/learn", readyz_learn),
        Route("/metrics", metrics),
    ]


def _readiness_response(readiness: Readiness) -> Response:
    return PlainTextResponse(f"{readiness.text}\n", 200 if readiness.ready else 503)
