"""What the daemon wires: the learner's barriers, the snapshots and the evaluator, without a socket."""

import threading
from pathlib import Path

import numpy as np

from ffstream.config import Config
from ffstream.daemon import Daemon
from ffstream.journal.journal import Entry
from tests.support import wait_until

DEADLINE_S = 30.0
SIZE = 4


def test_an_evaluator_that_falls_behind_a_checkpoint_catches_up(tmp_path: Path) -> None:
    """The checkpoint's barrier is then complete only after later ones, and its snapshot is wanted all the same."""
    small = {"inputs": 16, "widths": (6, 5), "labels": 4, "batch_size": SIZE, "young_samples": 0, "rehearsal": 0}
    config = Config.model_validate(
        {
            "state": tmp_path / "state",
            "network": small,
            "learning": {"publish_every": 2, "partial": "wait"},
            "pipeline": {"device": "cpu", "precision": "fp32"},
            "prequential": {"queue_depth": 64},
            "checkpoint": {"every_samples": 6 * SIZE, "every_s": 0},
        }
    )
    daemon = Daemon(config)
    daemon._open_state()
    daemon._recover()
    behind, catch_up, reached = threading.Event(), threading.Event(), threading.Event()
    evaluate = daemon.prequential._evaluate

    def slow(batch: object) -> None:
        behind.set()
        assert catch_up.wait(DEADLINE_S)
        evaluate(batch)  # type: ignore[arg-type]

    daemon.prequential._evaluate = slow  # type: ignore[method-assign]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20 * SIZE, 16), np.uint8)
    labels = rng.integers(0, 4, 20 * SIZE).astype("<u2")
    daemon.journal.append([Entry("test", 1, 1, len(labels), "uint8", labels.tobytes(), images.tobytes())])
    assert behind.wait(DEADLINE_S)
    wait_until(lambda: daemon.snapshots.current.seq == 20 * SIZE, DEADLINE_S, "everything is learned and published")
    assert daemon.store.seqs() == [], "the checkpoints wait for the evaluator"
    catch_up.set()
    daemon.prequential.mark(lambda record: reached.set())
    try:
        assert reached.wait(5), "the evaluator waits for a snapshot that was never given to it"
        assert daemon.prequential.record.state()["samples"] == 20 * SIZE
        wait_until(lambda: daemon.store.seqs()[-1:] == [18 * SIZE], DEADLINE_S, "the checkpoints are written")
    finally:
        daemon.stop()
