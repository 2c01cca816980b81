"""A learn socket with a real journal. The test decides what is learned."""

from pathlib import Path
from typing import Any

import pytest
import zmq

from ffstream.config import Config, Limits
from ffstream.errors import Unavailable
from ffstream.journal.journal import Journal
from ffstream.learning.checkpoints import Checkpoints
from ffstream.metrics import Metrics
from ffstream.server import admission, housekeeping
from ffstream.server.admission import Admission
from ffstream.server.housekeeping import Housekeeping
from ffstream.server.learn import LearnLoop
from ffstream.server.resources import Resources
from ffstream.wire.images import ImageChecker
from tests.in_process import INPUTS, Peer

MESSAGE_MAX_BYTES = 1 << 16
LIMITS: dict[str, Any] = {
    "message_max_bytes": MESSAGE_MAX_BYTES,
    "commit_max_messages": 64,
    "commit_max_bytes": 1 << 20,
    "disk_min_free_bytes": 0,
    "window_messages": 64,
    "backlog_max_samples": 1000,
    "journal_max_bytes": 1 << 30,
    "clients_max": 100,
    "client_names_max": 100,
    "client_forget_after_s": 3600.0,
    "client_unresolved_max_messages": 1000,
    "client_samples_per_s": 0.0,
}


def look_at_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures and reports at every turn, not once a second."""
    monkeypatch.setattr(housekeeping, "_MEASURE_EVERY_S", 0.0)
    monkeypatch.setattr(admission, "_REPORT_EVERY_S", 0.0)


class Ingest:
    def __init__(self, folder: Path, **limits: float) -> None:
        self.applied_seq = 0
        self.failures: list[Exception] = []
        self.metrics = Metrics()
        self.journal = Journal(folder / "journal.sqlite", inputs=INPUTS, labels=4)
        wanted = Limits.model_validate(LIMITS | limits)
        self.checkpoints = Checkpoints(Config(state=folder), self.metrics, self.failures.append)
        self.housekeeping = Housekeeping(
            self.journal, self.checkpoints, wanted, Resources(folder, wanted), self.metrics
        )
        self.admission = Admission(
            self.journal, wanted, self.housekeeping, applied_seq=lambda: self.applied_seq, metrics=self.metrics
        )
        self.loop = LearnLoop(
            self.journal,
            ImageChecker([INPUTS], 4, 10),
            self.admission,
            self.housekeeping,
            wanted,
            boot="boot",
            metrics=self.metrics,
            on_failure=self.failures.append,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.loop.bind(self._context, "tcp://127.0.0.1:*")
        self._peers: list[Peer] = []

    def trim_to(self, seq: int) -> None:
        """As if the newest checkpoints had learned that much."""
        self.checkpoints.retention._limit = seq

    def look(self) -> None:
        """What the loop does between groups."""
        self.housekeeping.turn()
        self.admission.report()

    def fail(self, error: Unavailable, size: int = 0) -> None:
        """What the loop does when a commit has failed."""
        self.housekeeping.failed(error, size)
        self.admission.end_group()
        self.admission.report(at_once=True)

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
