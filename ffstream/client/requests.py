"""A connection for requests that have one answer each, with an id."""

import time
from collections.abc import Callable

from ffstream.client.connection import POLL_S, Connection
from ffstream.client.keys import CurveKeys
from ffstream.errors import RequestRefused, Unreachable
from ffstream.wire.messages import ErrorReply, Hello, Message, Welcome


class RequestConnection(Connection):
    """Sends a request and waits for its answer. Connects with the first request.

    If there never was a connection, a request fails when there is none within `connect_timeout_s`. Once there was
    one, a request waits until its own timeout.
    """

    def __init__(
        self,
        endpoint: str,
        socket_name: str,
        answer: type[Message],
        *,
        connect_timeout_s: float,
        keys: CurveKeys | None,
    ) -> None:
        super().__init__(endpoint, socket_name, (answer,), keys=keys)
        self._connect_timeout_s = connect_timeout_s
        self._welcome: Welcome | None = None  # over the connection that was used last

    def hello(self, timeout_s: float) -> Welcome:
        """The welcome over the current connection, or over a new one. Raises as `greet`."""
        self._welcome = self._current_welcome(time.monotonic() + timeout_s)
        return self._welcome

    def ask(
        self,
        id: int,
        build: Callable[[Welcome], tuple[Message, tuple[bytes, ...]]],
        timeout_s: float,
        *,
        repeatable: bool,
        give_up: Callable[[], bool] = lambda: False,
    ) -> tuple[Message, list[bytes]]:
        """Sends the request that `build` makes for this daemon, and returns the answer with that id.

        If the connection breaks, a repeatable request is sent again over the next one, and any other one raises
        Unreachable, because its answer is lost. Also raises as `greet`, and what `build` raises. When `give_up` is
        true the deadline is now.
        """
        began = time.monotonic()
        deadline = began + timeout_s
        is_sent = False
        while True:
            welcome = self._current_welcome(deadline)
            if is_sent and welcome is not self._welcome and not repeatable:
                raise self._answer_lost()
            if welcome is not self._welcome or not is_sent:
                self._welcome = welcome
                request, payload = build(welcome)
                is_sent = self.send_if_up(request, *payload)
            now = time.monotonic()
            if now >= deadline or give_up():
                raise self.deadline_error(now - began)
            received = self.receive(min(deadline - now, POLL_S))
            if received is None or getattr(received[0], "id", None) not in (id, None):
                continue  # a late answer to an earlier request has another id
            answer, answer_payload = received
            if isinstance(answer, ErrorReply):
                raise RequestRefused(answer.code, answer.message, hint=answer.hint)
            if not isinstance(answer, Welcome):
                return answer, answer_payload

    def _current_welcome(self, deadline: float) -> Welcome:
        """The last welcome, or that of a new connection."""
        if not self.came_up() and self._welcome is not None:
            return self._welcome
        self.monitor.came_up = self.monitor.is_up  # it is not greeted yet
        return self.greet(Hello(), deadline - time.monotonic(), connect_timeout_s=self._connect_timeout_s)

    def _answer_lost(self) -> Unreachable:
        return Unreachable(
            f"the connection to {self.endpoint} broke before the answer came; the command may have been carried out",
            hint="ffstream status",
        )
