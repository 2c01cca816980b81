"""Tells a daemon what to do, and asks what it is doing."""

from typing import Any, Self

from ffstream.client.connection import Connection
from ffstream.client.keys import CurveKeys
from ffstream.wire.messages import DEFAULT_CONTROL, Reply, Request


class Control:
    """A connection to the control socket. For one thread."""

    def __init__(self, endpoint: str = DEFAULT_CONTROL, *, keys: CurveKeys | None = None) -> None:
        self._connection = Connection(endpoint, (Reply,), immediate=True, keys=keys)
        self._id = 0

    def request(
        self, command: str, arguments: dict[str, Any] | None = None, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        """The command's result. Raises RequestRefused or DeadlineExceeded."""
        self._id += 1
        request = Request(id=self._id, command=command, arguments=arguments or {})
        answer, _ = self._connection.ask(self._id, request, (), timeout_s)
        assert isinstance(answer, Reply)
        return answer.result

    def status(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """What the daemon is doing."""
        return self.request("status", timeout_s=timeout_s)

    def wait_idle(self, timeout_s: float) -> dict[str, Any]:
        """Returns once predictions have learned every sample acked so far."""
        return self.request("wait_idle", {"timeout_s": timeout_s}, timeout_s + 5.0)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
