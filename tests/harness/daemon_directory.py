"""Where daemons keep their state, and the ports on which they listen. Nothing here starts one: see `daemon.py`."""

import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FREE_PORTS = (
    "listen.learn=tcp://127.0.0.1:*",
    "listen.predict=tcp://127.0.0.1:*",
    "listen.control=tcp://127.0.0.1:*",
    "listen.http=127.0.0.1:0",
)

_given: set[int] = set()  # a daemon listens on several ports, so none may be returned twice


def free_port() -> int:
    """A port that stays the same when a daemon is restarted.

    It lies below the range from which the system takes the ports of outgoing connections. So no other program takes
    it between two daemons, and a client that reconnects to it cannot connect to itself.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def serve_arguments(state: Path, settings: Sequence[str] = ()) -> list[str]:
    """The arguments of `ffstream` that serve `state` on free ports of loopback, unless `settings` say otherwise."""
    return ["serve", "--state", str(state), *(part for each in (*FREE_PORTS, *settings) for part in ("--set", each))]


class DaemonDirectory:
    """A state folder, a log file beside it, and the settings of every daemon that runs on it, one after another."""

    def __init__(self, state: Path, settings: Sequence[str] = ()) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        self._settings = settings

    def log_text(self) -> str:
        """The log; empty before the first daemon starts."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def arguments(self) -> list[str]:
        """The arguments of `ffstream` that start a daemon here."""
        return serve_arguments(self.state, self._settings)

    def endpoints(self) -> dict[str, Any]:
        """What `endpoints.json` says: where the latest daemon listens, and its `pid`. Empty when there is no file."""
        try:
            found: dict[str, Any] = json.loads((self.state / "endpoints.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return found
