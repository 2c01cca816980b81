"""A client for the control socket: sends commands to a daemon, and asks for its status."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np

from ffstream.client.arguments import seconds
from ffstream.client.keys import CurveKeys
from ffstream.client.requests import RequestConnection
from ffstream.errors import BadSize, ConfigError
from ffstream.wire import codec
from ffstream.wire.codec import snapshot_info
from ffstream.wire.messages import DEFAULT_CONTROL, Reply, Request, SnapshotInfo, Welcome

# The result is the same when they are carried out twice.
_REPEATABLE = frozenset({"status", "config", "wait_idle"})


class Control:
    """A connection to the control socket, for the thread that uses it first (see thread_affinity.py).

    It connects with the first request. If there never was a connection, a request fails when the daemon is
    unreachable for `connect_timeout_s`: use a larger value to wait for a daemon that starts. Once there was a
    connection, a request waits until its own timeout. If the connection breaks before the answer, `status`, `config`
    and `wait_idle` are sent again; other commands raise Unreachable, because they may have been carried out.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_CONTROL,
        *,
        connect_timeout_s: float = 1.0,
        keys: CurveKeys | None = None,
    ) -> None:
        connect_timeout_s = seconds(connect_timeout_s, "connect_timeout_s")
        self._connection = RequestConnection(
            endpoint, "control", Reply, connect_timeout_s=connect_timeout_s, keys=keys
        )
        self._id = 0

    def request(
        self, command: str, arguments: dict[str, Any] | None = None, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        """Sends a command and returns its result.

        Raises RequestRefused, DeadlineExceeded (Unreachable without a connection), TooLarge, and ConfigError for
        arguments that cannot be sent.
        """
        self._connection.affinity.check()
        self._id += 1
        request = _request(self._id, command, arguments or {})
        answer, _ = self._connection.ask(
            self._id,
            lambda welcome: (request, ()),
            seconds(timeout_s, "timeout_s"),
            repeatable=command in _REPEATABLE,
        )
        assert isinstance(answer, Reply)
        return answer.result

    def status(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """What the daemon is doing. wire/SPEC.md lists the keys."""
        return self.request("status", timeout_s=timeout_s)

    def wait_idle(self, timeout_s: float) -> dict[str, Any]:
        """Waits until predictions have learned every sample that is acked now. Returns the status."""
        timeout_s = seconds(timeout_s, "timeout_s")
        return self.request("wait_idle", {"timeout_s": timeout_s}, timeout_s + 5.0)

    def hello(self, timeout_s: float = 10.0) -> Welcome:
        """The daemon's `welcome` over the current connection: its `boot`, and the images and labels of its network.

        Raises RequestRefused, and DeadlineExceeded (Unreachable without a connection).
        """
        self._connection.affinity.check()
        return self._connection.hello(seconds(timeout_s, "timeout_s"))

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up, as far as is known."""
        return self._connection.monitor.is_up

    def snapshot(
        self,
        *,
        after: tuple[str, int] | None,
        wait_s: float,
        recipe: bool = False,
        timeout_s: float = 60.0,
        give_up: Callable[[], bool] = lambda: False,
    ) -> tuple[SnapshotInfo, list[bytes]]:
        """The weights that predict, once they are newer than those with that `boot` and version; None: any.

        Without newer ones within `wait_s`, the payload is empty. wire/SPEC.md describes the answer. A payload larger
        than it announces raises BadSize. Raises as `request`; `give_up` ends a wait with DeadlineExceeded.
        """
        self._connection.affinity.check()
        self._id += 1
        arguments: dict[str, Any] = {"timeout_s": wait_s, "recipe": recipe}
        if after is not None:
            arguments |= {"boot": after[0], "after": after[1]}
        request = _request(self._id, "snapshot", arguments)
        answer, payload = self._connection.ask(
            self._id, lambda welcome: (request, ()), timeout_s, repeatable=True, give_up=give_up
        )
        assert isinstance(answer, Reply)
        info = snapshot_info(answer.result)
        if sum(map(len, payload)) != info.bytes:
            raise BadSize(
                f"a snapshot of {sum(map(len, payload))} bytes, announced as {info.bytes}",
                hint="are the daemon and this program of the same version?",
            )
        return info, payload

    def close(self) -> None:
        """Closes the connection."""
        self._connection.affinity.check()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _request(id: int, command: Any, arguments: Any) -> Request:
    """The request, with numpy's numbers converted to plain ones. Raises ConfigError if it cannot be sent."""
    try:
        request = Request(id=id, command=command, arguments=_plain(arguments))
        codec.encode(request)
    except (ValueError, TypeError, OverflowError) as error:  # pydantic's and msgpack's
        raise ConfigError(
            f"command={command!r:.80}, arguments={arguments!r:.200} cannot be sent",
            hint='a name of at most 64 characters and a dict of numbers and strings: request("rollback", {"to": 5})',
        ) from error
    return request


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value
