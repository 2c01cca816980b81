"""The page for people: files of `server/page/`, and plotly's script from its own package.

It is open to everybody who may connect: all data that it shows comes from other paths. Browsers keep the files and
ask each time whether they are still the same (`ETag`), so after an upgrade no old module meets a new one.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX: Final = "index.html"


@dataclass(frozen=True)
class _File:
    """A file of the page, in memory."""

    body: bytes
    media_type: str
    etag: str


def static_routes() -> list[Route]:
    """`/`, and everything below `/page/`."""
    page = {
        file.name: _File(body := file.read_bytes(), _TYPES[Path(file.name).suffix], _etag(body))
        for file in files("ffstream.server").joinpath("page").iterdir()
    }
    routes = [Route("/", _endpoint(page[_INDEX]))]
    routes += [Route(f"/page/{name}", _endpoint(file)) for name, file in page.items() if name != _INDEX]
    return [*routes, Route("/page/plotly.js", plotly)]


def _etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _endpoint(file: _File) -> Callable[[Request], Awaitable[Response]]:
    # Async, so that the page opens even when all worker threads are in use.
    async def endpoint(request: Request) -> Response:
        return _unless_known(request, file.etag) or Response(
            file.body, headers=_headers(file.etag), media_type=file.media_type
        )

    return endpoint


async def plotly(request: Request) -> Response:
    """The script of the installed plotly package, a few megabytes: it is sent from the disk."""
    spec = find_spec("plotly")  # importing the package takes time and memory
    if spec is None or spec.origin is None:
        return Response("plotly is not installed: pip install plotly\n", 404, media_type="text/plain")
    etag = f'"plotly-{version("plotly")}"'
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return _unless_known(request, etag) or FileResponse(script, headers=_headers(etag), media_type=_TYPES[".js"])


def _unless_known(request: Request, etag: str) -> Response | None:
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    return Response(status_code=304, headers=_headers(etag)) if etag in known else None


def _headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "no-cache"}  # kept, but never used without asking
