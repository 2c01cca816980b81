"""Counts who was not let in, and says so in the log without letting a flood fill the disk."""

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
]

_LINE_S = 1.0


class Refusals:
    """For one socket. Any thread may count."""

    def __init__(self, socket: str, metrics: Metrics) -> None:
        self._socket = socket
        self._counter = metrics.connections_refused
        for reason in get_args(Reason):
            self._counter.labels(socket, reason)  # 0 is worth more than nothing: the first one is then an increase
        self._lock = threading.Lock()
        self._unsaid: dict[Reason, tuple[int, str]] = {}
        self._said_at: dict[Reason, float] = {}

    def count(self, reason: Reason, detail: str = "") -> None:
        """One more. `detail` stands in the log, if this one gets a line."""
        self._counter.labels(self._socket, reason).inc()
        with self._lock:
            self._unsaid[reason] = (self._unsaid.get(reason, (0, ""))[0] + 1, detail)
        self.say()

    def say(self) -> None:
        """Writes what is due: at most a line a second for each reason, with how many there were and the last one."""
        if not self._unsaid:
            return
        now = time.monotonic()
        with self._lock:
            due = [reason for reason in self._unsaid if now - self._said_at.get(reason, -_LINE_S) >= _LINE_S]
            lines = [(reason, *self._unsaid.pop(reason)) for reason in due]
            self._said_at.update(dict.fromkeys(due, now))
        for reason, number, detail in lines:
            log.warning("refused socket=%s reason=%s count=%d %s", self._socket, reason, number, detail)
