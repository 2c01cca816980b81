"""A learner whose stages are lost: it goes on by itself, from a checkpoint, and predicts meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ffstream.config import Config
from ffstream.errors import Busy, Unavailable
from ffstream.journal.journal import Entry, Journal
from ffstream.learning.learner import Learner
from ffstream.metrics import Metrics
from tests.support import wait_until
from tests.unit.learning.test_learner import DEADLINE_S, SIZE, SMALL
from tests.unit.pipeline.cluster.local import Engines, LocalEngine, ended_engines
from tests.unit.pipeline.run import Serial, Stream, assert_same

SAMPLES = 60 * SIZE
STREAM = Stream.random(SAMPLES)


class Bench:
    """A learner, and its cluster."""

    def __init__(self, folder: Path, engines: Engines) -> None:
        self.config = Config.model_validate(
            {
                "state": folder,
                "network": SMALL | {"replay": 2, "replay_jitter": 0},
                "pipeline": {"device": "cpu", "precision": "fp32"},
                "checkpoint": {"every_samples": 10 * SIZE, "every_s": 0, "keep": 100},
                "learning": {"publish_every": 2, "partial": "wait"},
            }
        )
        self.failures: list[Exception] = []
        self.metrics = Metrics()
        self.journal = Journal(folder / "journal.sqlite", inputs=16, labels=4)
        self.engine: LocalEngine = engines(self.config, self.metrics)
        self.learner = Learner(self.config, self.engine, self.journal, self.metrics, self.failures.append)
        self.learner.start()

    def feed(self, microbatches: int) -> None:
        first = self.journal.head.seq
        part = slice(first, first + microbatches * SIZE)
        labels, images = STREAM.labels[part].astype("<u2").tobytes(), np.ascontiguousarray(STREAM.images[part])
        n = self.journal.clients.next_n("test")
        self.journal.append([Entry("test", n, n, microbatches * SIZE, "uint8", labels, images.tobytes())])

    def learn(self, microbatches: int) -> None:
        self.feed(microbatches)
        self.learner.wait_idle(DEADLINE_S)

    def lose(self, stage: int = 0) -> None:
        """The actor of a stage is gone."""
        self.engine._on_lost(self.engine.local.placed[-1][stage], "its process was killed")

    def wait_placed(self, times: int) -> None:
        wait_until(lambda: len(self.engine.local.placed) == times, DEADLINE_S, f"placed {times} times")
        wait_until(lambda: not self.learner.restarts.interrupted, DEADLINE_S, "learning goes on")

    def expect_exact(self) -> None:
        """A checkpoint of now is bit-equal to the serial reference."""
        self.learner.wait_idle(DEADLINE_S)
        wait_until(lambda: not self.learner.restarts.interrupted, DEADLINE_S, "learning goes on")
        seq = self.learner.checkpoint(DEADLINE_S).seq
        assert seq == self.journal.head.seq
        found = self.learner.checkpoints.store.load(seq).tensors
        serial = Serial(self.config.network, Stream(STREAM.images[:seq], STREAM.labels[:seq]))
        assert_same(found, serial.states[-1])

    def end(self) -> None:
        learner = self.learner
        learner.end_waits()
        ended = [
            learner.end_learning(DEADLINE_S, failed=False),
            learner.end_evaluation(DEADLINE_S),
            learner.end_writing(DEADLINE_S),
        ]
        self.journal.close()
        assert all(ended), f"learning, evaluation, writing in time: {ended}"
        assert self.failures == []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ended_engines() as engines:
        bench = Bench(tmp_path, engines)
        yield bench
        bench.end()


def test_losses_are_made_up_for(bench: Bench) -> None:
    bench.learn(12)
    for stage in (0, 1, 1):
        bench.lose(stage)
        bench.learn(12)
    bench.expect_exact()
    assert len(bench.engine.local.placed) == 4
    assert bench.metrics.registry.get_sample_value("ffstream_learning_interrupted") == 0


def test_a_loss_while_it_learns(bench: Bench) -> None:
    bench.wait_placed(1)
    bench.feed(50)
    wait_until(lambda: bench.learner.applied_seq >= 20 * SIZE, DEADLINE_S, "some are learned")
    bench.lose()
    bench.expect_exact()


def test_the_snapshot_is_kept_until_another_one_has_learned_as_much(bench: Bench) -> None:
    bench.learn(25)
    before = bench.learner.snapshots.current
    assert before.seq == 25 * SIZE
    bench.learner.pause(True)
    bench.lose()
    bench.wait_placed(2)
    assert bench.learner.applied_seq < before.seq, "it begins at a checkpoint"
    assert bench.learner.snapshots.current is before
    bench.learner.pause(False)
    bench.learn(5)
    after = bench.learner.snapshots.current
    assert (after.seq, after.version > before.version) == (30 * SIZE, True)
    images = torch.from_numpy(STREAM.images[:3]).float()
    assert after.classifier.predict(images).labels_B.shape == (3,)
    bench.expect_exact()


def test_while_it_is_interrupted_a_rollback_and_a_checkpoint_are_refused(bench: Bench) -> None:
    bench.learn(15)
    bench.engine.local.refusals += ["no node has room"] * 3
    bench.lose()
    wait_until(lambda: bench.learner.restarts.interrupted, DEADLINE_S, "the loss is noticed")
    with pytest.raises(Busy, match="learning is interrupted"):
        bench.learner.rollback(10 * SIZE, skip=False)
    with pytest.raises(Unavailable, match="learning begins again"):
        bench.learner.checkpoint(DEADLINE_S)
    bench.wait_placed(2)
    bench.learner.rollback(10 * SIZE, skip=False)
    bench.expect_exact()


def test_a_rollback_while_stages_are_there(bench: Bench) -> None:
    bench.learn(25)
    done = bench.learner.rollback(12 * SIZE, skip=False)
    assert (done.to, done.first, done.last) == (12 * SIZE, 12 * SIZE + 1, 25 * SIZE)
    bench.lose()
    bench.learn(5)
    bench.expect_exact()


def test_two_rollbacks_one_after_the_other(bench: Bench) -> None:
    bench.learn(25)
    for to in (22, 12):
        wait_until(lambda: not bench.learner.restarts.interrupted, DEADLINE_S, "stages are placed")
        bench.learner.wait_idle(DEADLINE_S)
        bench.learner.rollback(to * SIZE, skip=False)
    bench.expect_exact()


def test_a_loss_of_a_run_that_has_been_replaced_changes_nothing(bench: Bench) -> None:
    bench.learn(12)
    old = bench.engine._stages
    bench.lose()
    bench.wait_placed(2)
    assert old is not None
    old.lost(None, "the keeper of before has ended")
    bench.learn(12)
    bench.expect_exact()
    assert len(bench.engine.local.placed) == 2


def test_it_ends_while_no_stage_can_be_placed(tmp_path: Path) -> None:
    with ended_engines() as engines:
        bench = Bench(tmp_path, engines)
        bench.learn(12)
        bench.engine.local.refusals += ["no node has room"] * 1000
        bench.lose()
        wait_until(lambda: len(bench.engine.local.refusals) < 998, DEADLINE_S, "it was tried again")
        bench.feed(3)
        bench.end()


def test_it_ends_while_stages_are_lost(tmp_path: Path) -> None:
    with ended_engines() as engines:
        bench = Bench(tmp_path, engines)
        bench.learn(12)
        bench.feed(20)
        bench.lose()
        bench.end()
