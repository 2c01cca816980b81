"""One HTTP connection: how long it may be idle, and which connection is closed when there are too many.

A connection is idle while it waits for the other side. How long it may be idle depends on what it waits for:

    the head of a request, from the accept or its first byte on     handshake timeout
    the body of a request                                           until who reads it gives up (requests.py)
    the next request, before its first byte                         keep-alive: longer than usual scrape intervals
    the other side reading the answer                               handshake timeout

When there are more connections than `most`, the one that has been idle longest is closed at once.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes itself when it has been idle for too long, and another connection when there are too many."""

    def __init__(
        self,
        *args: Any,
        most: int,
        handshake_timeout_s: float,
        keep_alive_s: float,
        on_rejected: Callable[[str], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._on_rejected = on_rejected
        self._most = most
        self._handshake_timeout_s = handshake_timeout_s
        self._keep_alive_s = keep_alive_s
        self._is_answering = False
        self._is_between_requests = False
        self._idle_since: float | None = None  # in the event loop's time
        self._deadline: asyncio.TimerHandle | None = None  # while idle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for a request. If this connection is one too many, closes the one that has been idle longest."""
        super().connection_made(transport)
        self._idle(self._handshake_timeout_s)
        if len(self.connections) > self._most:
            idle = {each: each._idle_since for each in self._others() if each._idle_since is not None}
            longest = min(idle, key=idle.__getitem__, default=self)
            self._on_rejected(f"answer=none address={longest.client[0] if longest.client else 'unknown'}")
            longest._close()

    def data_received(self, data: bytes) -> None:
        """Handles requests that are complete. The rest of an incomplete one must follow soon."""
        super().data_received(data)
        self._expect_rest()

    def handle_events(self) -> None:
        """The connection is busy if a request is complete."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._is_answering = True
            self._is_between_requests = False
        if self._is_answering and not self.flow.write_paused:
            self._answer()

    def on_response_complete(self) -> None:
        """Waits for the next request, a part of which may have been received already."""
        self._is_answering = False
        self._is_between_requests = True
        self._expect_next()
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._expect_rest()

    def pause_writing(self) -> None:
        """The other side does not read."""
        super().pause_writing()
        self._idle(self._handshake_timeout_s)

    def resume_writing(self) -> None:
        """The other side reads again."""
        super().resume_writing()
        if self._is_answering:
            self._answer()
        elif self._is_between_requests:
            self._expect_next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the deadline."""
        super().connection_lost(exc)
        self._busy()

    def _others(self) -> list["Connection"]:
        return [each for each in self.connections if isinstance(each, Connection) and each is not self]

    def _answer(self) -> None:
        """The connection is busy, or idle without a deadline while the body of its request is missing."""
        self._busy()
        if self.cycle.more_body:
            self._idle_since = self.loop.time()

    def _expect_next(self) -> None:
        """Waits for the next request, but first for the other side to read the answer."""
        is_read = not (self.flow.write_paused or self.transport.is_closing())
        self._idle(self._keep_alive_s if is_read else self._handshake_timeout_s)

    def _expect_rest(self) -> None:
        """Starts the deadline for the head of a request. Further bytes do not extend it."""
        if self._is_between_requests:
            self._is_between_requests = False
            self._idle(self._handshake_timeout_s)

    def _idle(self, timeout_s: float) -> None:
        self._busy()
        self._idle_since = self.loop.time()
        self._deadline = self.loop.call_later(timeout_s, self._close)

    def _busy(self) -> None:
        self._idle_since = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self.connections.discard(self)  # now, because other connections may be counted before the loop closes it
        self.transport.abort()  # without waiting until the other side has read everything
