"""Logs refused connections and rejected messages without letting a flood of them fill the disk."""

import logging
import threading
import time
from typing import Literal, get_args

from ffstream.metrics import Metrics

log = logging.getLogger(__name__)

Reason = Literal[
    "unknown_key",  # a key that this socket's folder does not hold
    "key_removed",  # a message over a connection whose key is no longer in the folder
    "handshake",  # no key, the wrong server key, a recorded handshake, or not ZMTP at all
    "broken_off",  # nothing more came: a timeout, or the other side went; clients without a key do that
    "token",  # HTTP without the token
    "too_many",  # HTTP: a 503 because enough requests are being answered, or an idle connection that gave way
]

_LINE_S = 1.0


class RejectionLog:
    """Writes at most one line a second for each reason: how many there were since the last line, and the latest one.

    For one socket; any thread may add. Reasons come from a closed list, so what is remembered stays small.
    """

    def __init__(self, event: str, socket: str) -> None:
        self._event = event
        self._socket = socket
        self._lock = threading.Lock()
        self._unwritten: dict[
            str, tuple[int, int, str]
        ] = {}  # by reason: how many, the latest one's level and detail
        self._written_at: dict[str, float] = {}

    def add(self, reason: str, detail: str = "", level: int = logging.WARNING) -> None:
        """Counts one. `detail` is written if no other one with this reason follows before the next line."""
        with self._lock:
            self._unwritten[reason] = (self._unwritten.get(reason, (0,))[0] + 1, level, detail)
        self.flush()

    def flush(self, *, everything: bool = False) -> None:
        """Writes the lines that are due; at the end, `everything` that was not written yet."""
        if not self._unwritten:
            return
        now = time.monotonic()
        with self._lock:
            due = [reason for reason in self._unwritten if everything or self._is_due(reason, now)]
            lines = [(reason, *self._unwritten.pop(reason)) for reason in due]
            self._written_at.update(dict.fromkeys(due, now))
        for reason, number, level, detail in lines:
            log.log(level, "%s socket=%s reason=%s count=%d %s", self._event, self._socket, reason, number, detail)

    def _is_due(self, reason: str, now: float) -> bool:
        return now - self._written_at.get(reason, -_LINE_S) >= _LINE_S


class Refusals:
    """Counts and logs the connections that one socket refused. Any thread may count."""

    def __init__(self, socket: str, metrics: Metrics) -> None:
        self._socket = socket
        self._counter = metrics.connections_refused
        for reason in get_args(Reason):
            self._counter.labels(socket, reason)  # 0 is worth more than nothing: the first one is then an increase
        self._log = RejectionLog("refused", socket)

    def count(self, reason: Reason, detail: str = "") -> None:
        """One more. `detail` stands in the log, if this one gets a line."""
        self._counter.labels(self._socket, reason).inc()
        self._log.add(reason, detail)

    def say(self, *, everything: bool = False) -> None:
        """Writes the lines that are due; at the end, `everything` that was not written yet."""
        self._log.flush(everything=everything)
