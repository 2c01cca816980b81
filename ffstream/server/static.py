"""The page for people. It is open to everybody who may connect: all data that it shows comes from other paths."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route


def static_routes() -> list[Route]:
    """`/`, and everything below `/page/`."""

    def page(request: Request) -> Response:
        return HTMLResponse(files("ffstream.server").joinpath("page.html").read_text(encoding="utf-8"))

    return [Route("/", page)]
