"""A learn socket over a real journal, with a learner that learns when a test says so."""

from pathlib import Path
from typing import Any

import zmq

from ffstream.journal.journal import Journal
from ffstream.metrics import Metrics
from ffstream.server.learn import LearnLimits, LearnLoop
from ffstream.server.router import SocketLimits
from ffstream.wire.codec import ImageChecker
from tests.in_process import INPUTS, Peer

LIMITS = {
    "window_messages": 64,
    "commit_max_messages": 64,
    "commit_max_bytes": 1 << 20,
    "message_max_bytes": 1 << 16,
    "backlog_max_samples": 1000,
    "journal_max_bytes": 1 << 30,
    "clients_max": 100,
}


class Ingest:
    def __init__(self, folder: Path, **limits: int) -> None:
        self.applied_seq = 0
        self.trim_to = 0
        self.failures: list[Exception] = []
        self.metrics = Metrics()
        self.journal = Journal(folder / "journal.sqlite", inputs=INPUTS, labels=4)
        wanted: dict[str, Any] = LIMITS | limits
        self.loop = LearnLoop(
            self.journal,
            ImageChecker(INPUTS, 4, 10),
            LearnLimits(**wanted),
            SocketLimits(wanted["message_max_bytes"], 1000, 5.0),
            applied_seq=lambda: self.applied_seq,
            trim=lambda: self.journal.trim(self.trim_to),
            metrics=self.metrics,
            on_failure=self.failures.append,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.loop.bind(self._context, "tcp://127.0.0.1:*")
        self._peers: list[Peer] = []

    def start(self) -> "Ingest":
        self.loop.start()
        return self

    def peer(self) -> Peer:
        self._peers.append(Peer(self.loop.endpoint))
        return self._peers[-1]

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"ffstream_{name}", labels) or 0.0

    def rejected(self, reason: str) -> float:
        return self.metric("messages_rejected_total", reason=reason)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        assert self.loop.stop(10)
        self._context.term()
        self.journal.close()
        assert self.failures == []
