"""One HTTP connection: how long it may be idle, and which one is closed when there are too many.

A connection is idle while it waits for the other side: for a request's head, for the next request, or to take an
answer. What it waits for decides how long:

    for a head, from the accept or its first byte on     handshake timeout: who connects has something to ask
    for the next request, nothing of it received yet     keep-alive: longer than any usual scrape interval
    for the other side to take an answer                 handshake timeout

When there are more connections than `most`, the one that has been idle longest is closed at once.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes itself when it was idle for too long, and another one when there are too many."""

    def __init__(
        self,
        *args: Any,
        most: int,
        handshake_timeout_s: float,
        keep_alive_s: float,
        refused: Callable[[str], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._refused = refused
        self._most = most
        self._handshake_timeout_s = handshake_timeout_s
        self._keep_alive_s = keep_alive_s
        self._is_answering = False
        self._is_between_requests = False
        self._idle_since: float | None = None  # by the event loop's clock
        self._deadline: asyncio.TimerHandle | None = None  # of an idle one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for a head. If this connection is one too many, one is closed."""
        super().connection_made(transport)
        self._idle(self._handshake_timeout_s)
        if len(self.connections) > self._most:
            idle = {each: each._idle_since for each in self._others() if each._idle_since is not None}
            given_up = min(idle, key=idle.__getitem__, default=self)
            self._refused(f"answer=none address={given_up.client[0] if given_up.client else 'unknown'}")
            given_up._close()

    def data_received(self, data: bytes) -> None:
        """A whole head is a request; less is the beginning of one, whose rest must follow soon."""
        super().data_received(data)
        self._expect_rest()

    def handle_events(self) -> None:
        """What was received may be a request."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._is_answering = True
            self._is_between_requests = False
            if not self.flow.write_paused:
                self._busy()

    def on_response_complete(self) -> None:
        """The next request, or a part of it, may have been received already."""
        self._is_answering = False
        self._is_between_requests = True
        self._expect_next()
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._expect_rest()

    def pause_writing(self) -> None:
        """The other side takes nothing more."""
        super().pause_writing()
        self._idle(self._handshake_timeout_s)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._is_answering:
            self._busy()
        elif self._is_between_requests:
            self._expect_next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        super().connection_lost(exc)
        self._busy()

    def _others(self) -> list["Connection"]:
        return [each for each in self.connections if isinstance(each, Connection) and each is not self]

    def _expect_next(self) -> None:
        """Waits for the next request; but first the other side must take the answer."""
        is_taken = not (self.flow.write_paused or self.transport.is_closing())
        self._idle(self._keep_alive_s if is_taken else self._handshake_timeout_s)

    def _expect_rest(self) -> None:
        """Once for each head: a byte now and then does not prolong it."""
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
        self.connections.discard(self)  # now, not when the loop comes to it: others are counted meanwhile
        self.transport.abort()  # nor when the other side has taken what was sent
