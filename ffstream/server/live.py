"""What the daemon is doing, as JSON: once (`/status`), as server-sent events (`/api/live`), and what it has done
(`/api/history`).

While at least one client reads the events, the status is computed once a second, on a worker thread, and encoded once
for all of them. A slow reader misses events and does not delay others. Nothing is computed without a reader.

    : ffstream                  at once
    event: status               at once, and then every second; data is the document that /status gives
    event: unavailable          instead, if there is no status; data has code, message and hint
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ffstream.errors import Unavailable
from ffstream.history.history import SPANS
from ffstream.metrics import Metrics
from ffstream.server.answers import answer, encode, encode_rounded, encoded, refusal
from ffstream.server.rejections import RejectedConnections, client_of
from ffstream.server.requests import refused
from ffstream.serving.cached import Cached

log = logging.getLogger(__name__)

LIVE: Final = "/api/live"
_INTERVAL_S = 1.0
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]

Status = Callable[[], dict[str, Any]]
History = Callable[[str], dict[str, Any]]  # its argument is one of SPANS


class LiveFeed:
    """The application behind `/api/live`. Everything but `status` runs on the event loop of `ff-http`."""

    def __init__(
        self,
        status: Status,
        readers_max: int,
        metrics: Metrics,
        rejections: RejectedConnections | None = None,
    ) -> None:
        self._status = status
        self._readers_max = readers_max
        self._rejections = rejections
        self._readers = 0
        self._closed = False
        self._latest: tuple[float, bytes] | None = None  # when, by the loop's clock
        self._next: asyncio.Future[bytes | None] | None = None  # the next event; None: no more follow
        self._publisher: asyncio.Task[None] | None = None
        metrics.live_readers.set_function(lambda: self._readers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends events until the client is gone or the server stops."""
        if self._closed or self._readers >= self._readers_max:
            await self._too_many(scope)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        gone = asyncio.ensure_future(_disconnected(receive))
        self._readers += 1
        try:
            await _send_part(send, b": ffstream\n\n")
            event = await self._first(gone)
            while event is not None:
                await _send_part(send, event)
                event = await self._following(gone)
            await send({"type": "http.response.body"})
        finally:
            self._readers -= 1
            gone.cancel()

    def _too_many(self, scope: Scope) -> Response:
        if self._rejections is not None:
            self._rejections.add("too_many", f"answer=503 address={client_of(scope)} path={LIVE}")
        return refusal(
            503,
            "too_many_readers",
            f"{self._readers} clients read the live feed, which is the maximum",
            "close pages that are not needed, or raise limits.http_live_readers",
            {"Connection": "close"},
        )

    async def _first(self, gone: asyncio.Future[None]) -> bytes | None:
        """The last event if it is recent, otherwise a new one."""
        loop = asyncio.get_running_loop()
        if self._publisher is None:
            self._publisher = asyncio.create_task(self._publish())
        elif self._latest is not None and loop.time() - self._latest[0] < _INTERVAL_S:
            return self._latest[1]
        return await self._following(gone)

    async def _following(self, gone: asyncio.Future[None]) -> bytes | None:
        """The next event; None if the client is gone or no more follow."""
        if self._closed or gone.done():
            return None
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        following = self._next
        await asyncio.wait((following, gone), return_when=asyncio.FIRST_COMPLETED)
        return following.result() if following.done() else None

    async def _publish(self) -> None:
        """Makes an event each second while there are readers."""
        loop = asyncio.get_running_loop()
        try:
            due = loop.time()
            while self._readers and not self._closed:
                self._hand_out(await run_in_threadpool(self._make_event))
                due = max(due + _INTERVAL_S, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            self._publisher = None

    def _hand_out(self, event: bytes) -> None:
        self._latest = asyncio.get_running_loop().time(), event
        waited_for, self._next = self._next, None
        if waited_for is not None and not waited_for.done():
            waited_for.set_result(event)

    def _make_event(self) -> bytes:
        try:
            return _event("status", self._status())
        except Unavailable as error:
            return _event("unavailable", _described(error))
        except Exception:
            log.exception("no status for the live feed")
            return _event("unavailable", _described(Unavailable("the status failed", hint="see the log")))

    def close(self) -> None:
        """Ends all streams, on the event loop, so that they do not delay the stop of the server."""
        self._closed = True
        if self._publisher is not None:
            self._publisher.cancel()
        if self._next is not None and not self._next.done():
            self._next.set_result(None)


async def _disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _event(name: str, document: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), encode(document))


def _described(error: Unavailable) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _encoded_history(history: History, span: str) -> bytes:
    return encode_rounded(history(span))


def live_routes(status: Status, feed: LiveFeed, history: History) -> list[Route]:
    """`/status`, `/api/live` and `/api/history`."""
    recent = {span: Cached(partial(_encoded_history, history, span), _INTERVAL_S) for span in SPANS}

    def status_json(request: Request) -> Response:
        try:
            return answer(status())
        except Unavailable as error:
            return refused(error)

    def history_json(request: Request) -> Response:
        span = request.query_params.get("span", SPANS[0])
        if span not in SPANS:
            return refusal(400, "bad_span", f"span={span[:20]!r} is none of the spans", f"use {', '.join(SPANS)}")
        return encoded(recent[span].get())

    return [
        Route("/status", status_json),
        Route(LIVE, feed, methods=["GET"]),
        Route("/api/history", history_json),
    ]
