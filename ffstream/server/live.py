"""What the daemon is doing, as JSON."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ffstream.errors import Unavailable
from ffstream.server.answers import answer, refusal

Status = Callable[[], dict[str, Any]]


def live_routes(status: Status) -> list[Route]:
    """`/status`."""

    def status_json(request: Request) -> Response:
        try:
            return answer(status())
        except Unavailable as error:
            return refusal(503, error.code, error.message, error.hint)

    return [Route("/status", status_json)]
