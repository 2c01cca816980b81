"""Counts and logs rejected connections and messages. Many rejections cannot fill the disk with log lines."""

import logging
import threading
import time
from collections.abc import Mapping
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

from ffstream.metrics import Metrics

log = logging.getLogger(__name__)

ConnectionReason = Literal[
    "unknown_key",  # the socket's folder does not contain the key
    "key_removed",  # a message over a connection whose key was removed from the folder
    "handshake",  # no key, a wrong server key, a replayed handshake, or not ZMTP at all
    "broken_off",  # the handshake was not finished: a timeout, or a disconnection, as by clients without a key
    "token",  # an HTTP request without the token, or a sample from the page without that of teaching
    "host",  # HTTP: the header Host names another server
    "origin",  # HTTP: a page of another site has sent the request
    "too_many",  # HTTP: a 503 because of the concurrency limit, or an idle connection that was closed for a new one
]

# What `LogRecord.exc_info` is.
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_LINE_S = 1.0


class _Pending(NamedTuple):
    """Rejections for one reason that are not in the log yet; level and detail of the latest one."""

    number: int
    level: int
    detail: str
    exc_info: ExcInfo | None


class RejectionLog:
    """Writes at most one line a second for each reason: the count since the last line, and the latest rejection.

    For one socket. Any thread may add. Reasons come from a closed list, so memory stays small.
    """

    def __init__(self, event: str, socket: str) -> None:
        self._event = event
        self._socket = socket
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._written_at: dict[str, float] = {}

    def add(
        self, reason: str, detail: str = "", level: int = logging.WARNING, exc_info: ExcInfo | None = None
    ) -> None:
        """Counts a rejection. `detail` and the traceback of `exc_info` are written unless another rejection follows
        before the next line."""
        with self._lock:
            before = self._pending.get(reason)
            self._pending[reason] = _Pending(before.number + 1 if before else 1, level, detail, exc_info)
        self.flush()

    def flush(self, *, everything: bool = False) -> None:
        """Writes the lines that are due, or with `everything` all pending ones."""
        if not self._pending:
            return
        now = time.monotonic()
        with self._lock:
            due = [reason for reason in self._pending if everything or self._is_due(reason, now)]
            lines = [(reason, self._pending.pop(reason)) for reason in due]
            self._written_at.update(dict.fromkeys(due, now))
        for reason, (number, level, detail, exc_info) in lines:
            values = self._event, self._socket, reason, number, detail
            log.log(level, "%s socket=%s reason=%s count=%d %s", *values, exc_info=exc_info)

    def _is_due(self, reason: str, now: float) -> bool:
        return now - self._written_at.get(reason, -_LINE_S) >= _LINE_S


class RejectedConnections:
    """Counts and logs the connections that one socket rejected. Any thread may add."""

    def __init__(self, socket: str, metrics: Metrics) -> None:
        self._socket = socket
        self._counter = metrics.connections_refused
        for reason in get_args(ConnectionReason):
            self._counter.labels(socket, reason)  # starts at 0, so that the first rejection is an increase
        self._log = RejectionLog("connection rejected", socket)

    def add(self, reason: ConnectionReason, detail: str = "") -> None:
        """Counts a rejection. `detail` appears in the log if it is the latest one when the next line is written."""
        self._counter.labels(self._socket, reason).inc()
        self._log.add(reason, detail)

    def flush(self, *, everything: bool = False) -> None:
        """Writes the lines that are due, or with `everything` all pending ones."""
        self._log.flush(everything=everything)


def client_of(scope: Mapping[str, Any]) -> str:
    """The address that an HTTP request came from, for a log line.

    Behind a proxy on this machine it is what the request's X-Forwarded-For says, which may be any text.
    """
    host = str((scope["client"] or ("",))[0])
    try:
        return str(ip_address(host)).partition("%")[0]  # the zone of an IPv6 address may be any text, too
    except ValueError:
        return "unknown"
