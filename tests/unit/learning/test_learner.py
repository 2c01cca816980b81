"""The learning side on a real journal, without a socket: barriers, snapshots, evaluator, checkpoints, rollback."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffstream.config import Config
from ffstream.errors import Busy, DeadlineExceeded, DiskFull, JournalDamaged, Paused, SequenceUnknown, Unavailable
from ffstream.journal import events
from ffstream.journal.journal import Entry, Journal
from ffstream.learning.learner import Learner
from ffstream.metrics import Metrics
from ffstream.pipeline.engine import make_engine
from ffstream.util.threads import find_stuck
from tests.support import Watch, hold_at, wait_until

DEADLINE_S = 30.0
NEVER_S = 3600.0  # of a wait that must end for another reason
SIZE = 4
SMALL = {
    "image_shape": [16],
    "widths": [6, 5],
    "labels": 4,
    "batch_size": SIZE,
    "warmup_batch_size": SIZE,
    "warmup_samples": 0,
    "replay_buffer": 50,
}


class Bench:
    """A learner and its journal."""

    def __init__(self, folder: Path, **sections: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        self.config = Config.model_validate(
            {
                "state": folder,
                "network": SMALL | {"replay": 2, "replay_jitter": 0},
                "pipeline": {"device": "cpu", "precision": "fp32"},
                "checkpoint": {"every_samples": 6 * SIZE, "every_s": 0, "keep": 100},
                **sections,
                "learning": {"publish_every": 2, "partial": "wait"} | sections.get("learning", {}),
            }
        )
        self.failures: list[Exception] = []
        self.journal = Journal(folder / "journal.sqlite", inputs=16, labels=4)
        metrics = Metrics()
        self.learner = Learner(
            self.config, make_engine(self.config, metrics), self.journal, metrics, self.failures.append
        )

    def __enter__(self) -> "Bench":
        self.learner.start()
        return self

    def __exit__(self, *exception: object) -> None:
        learner = self.learner
        ended = [
            learner.end_learning(DEADLINE_S, failed=False),
            learner.end_evaluation(DEADLINE_S),
            learner.end_writing(DEADLINE_S),
        ]
        self.journal.close()
        if exception[0] is None:
            assert self.failures == []
            assert all(ended), f"learning, evaluation, writing in time: {ended}"

    def feed(self, microbatches: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        count = microbatches * SIZE
        images = rng.integers(0, 256, (count, 16), np.uint8).tobytes()
        labels = rng.integers(0, 4, count).astype("<u2").tobytes()
        n = self.journal.clients.next_n("test")
        self.journal.append([Entry("test", n, n, count, "uint8", labels, images)])

    def learn(self, microbatches: int, seed: int = 0) -> None:
        self.feed(microbatches, seed)
        self.learner.wait_idle(DEADLINE_S)

    def trim(self, *, journal_is_full: bool = False) -> bool:
        with self.learner.checkpoints.retention.removable(journal_is_full=journal_is_full) as seq:
            return self.journal.trim(seq)

    def wait_written(self, seq: int) -> None:
        """For what needs that checkpoint: until it is written, the next one may take its place."""
        wait_until(lambda: seq in self.learner.checkpoints.store.seqs(), DEADLINE_S, f"checkpoint {seq} is written")

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor after all that is acked."""
        self.learner.wait_idle(DEADLINE_S)
        seq = self.learner.checkpoint(DEADLINE_S).seq
        return dict(self.learner.checkpoints.store.load(seq).tensors)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Death(BaseException):
    """What SIGKILL is to a process."""


def die_in_rollback(bench: Bench, watched: Watch, failpoint: str, *, to: int, skip: bool) -> None:
    """Leaves what a process leaves that is killed there."""

    def die(reached: str) -> None:
        if reached == failpoint:
            raise Death

    watched(die)
    bench.learner._begin_again = lambda: 0  # type: ignore[method-assign]  # a dead process does nothing
    with pytest.raises(Death):
        bench.learner.rollback(to, skip=skip)
    watched(None)
    assert bench.learner.end_writing(DEADLINE_S)
    bench.journal.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path / "bench") as made:
        yield made


def test_an_evaluator_that_falls_behind_a_checkpoint_catches_up(tmp_path: Path) -> None:
    """The checkpoint's barrier is then complete only after later ones, and its snapshot is wanted all the same."""
    bench = Bench(tmp_path / "bench", prequential={"queue_depth": 64})
    learner = bench.learner
    behind, catch_up, reached = threading.Event(), threading.Event(), threading.Event()
    evaluate = learner.run.prequential._evaluate

    def slow(batch: object) -> None:
        behind.set()
        assert catch_up.wait(DEADLINE_S)
        evaluate(batch)  # type: ignore[arg-type]

    learner.run.prequential._evaluate = slow  # type: ignore[method-assign]
    with bench:
        bench.feed(20)
        assert behind.wait(DEADLINE_S)
        published = learner.snapshots
        wait_until(lambda: published.current.seq == 20 * SIZE, DEADLINE_S, "everything is learned and published")
        assert learner.checkpoints.store.seqs() == [], "the checkpoints wait for the evaluator"
        catch_up.set()
        learner.run.prequential.mark(lambda record: reached.set())
        assert reached.wait(DEADLINE_S), "the evaluator waits for a snapshot that was never given to it"
        assert learner.run.prequential.record.state()["samples"] == 20 * SIZE
        wait_until(
            lambda: learner.checkpoints.store.seqs()[-1:] == [18 * SIZE], DEADLINE_S, "the checkpoints are written"
        )


def test_checkpoints_by_time_and_none_without_news(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench", checkpoint={"every_samples": 0, "every_s": 0.05, "keep": 100}) as bench:
        bench.learn(4)

        def is_saved() -> bool:
            bench.learn(1)
            return bool(bench.learner.checkpoints.store.seqs())

        wait_until(is_saved, DEADLINE_S, "a checkpoint comes by itself")
        seq = bench.learner.checkpoint(DEADLINE_S).seq
        feeder, turned = bench.learner.run.pipeline._feeder, threading.Semaphore(0)
        following = feeder._batcher.next

        def turn(**options: Any) -> Any:
            turned.release()
            return following(**options)

        feeder._saved_at -= 3600  # as if it were an hour ago; the feeder is idle, and does not touch it
        version = feeder.state.version
        feeder._batcher.next = turn  # type: ignore[method-assign]
        for _ in range(3):
            assert turned.acquire(timeout=DEADLINE_S), "the feeder looks for more"
        assert feeder.state.version == version, "a barrier was sent, and nothing had come"
        assert bench.learner.checkpoints.store.seqs()[-1] == seq


# --- rollback -------------------------------------------------------------------------------------------------------


def test_relearning_leads_to_the_same_weights(bench: Bench) -> None:
    bench.learn(6)
    bench.wait_written(24)
    bench.learn(14, seed=1)
    before = bench.state()
    done = bench.learner.rollback(10 * SIZE + 1, skip=False)
    assert done == (41, 24, 42, 80, "relearned")
    assert equal(bench.state(), before)
    status = bench.learner.status()
    assert (status["learned"], status["skipped"], status["applied_seq"]) == (80, 0, 80)


def test_skip_equals_a_stream_without_those_samples(bench: Bench, tmp_path: Path) -> None:
    """Whatever was learned after the target leaves no trace: as if it had not come."""
    bench.learn(10)
    bench.wait_written(24)
    bench.learn(9, seed=666)
    done = bench.learner.rollback(10 * SIZE, skip=True)
    assert done == (40, 24, 41, 76, "skipped")
    bench.learn(5, seed=2)
    status = bench.learner.status()
    assert (status["accepted"], status["applied_seq"], status["learned"], status["skipped"]) == (96, 96, 60, 36)
    with Bench(tmp_path / "other") as other:
        other.learn(10)
        other.learn(5, seed=2)
        assert equal(bench.state(), other.state())
        assert bench.learner.run.prequential.record.state() == other.learner.run.prequential.record.state()


def test_skipped_samples_stay_skipped_after_a_restart(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench") as bench:
        bench.learn(6)
        bench.wait_written(24)
        bench.learn(6, seed=2)
        bench.learner.rollback(30, skip=True)
        bench.learn(3, seed=1)
        before = bench.state()
    bench.learner.checkpoints.store.discard_after(30)
    assert bench.learner.checkpoints.store.seqs() == [24], "from before the rollback"
    with Bench(tmp_path / "bench") as again:
        assert equal(again.state(), before), "learned again from an older checkpoint"
        assert again.learner.status()["learned"] == 30 + 12


def test_weights_that_predict_go_back_at_once_and_their_version_goes_on(bench: Bench) -> None:
    bench.learn(6)
    bench.wait_written(24)
    bench.learn(14, seed=1)
    bench.learner.pause(True)
    version = bench.learner.snapshots.current.version
    bench.learner.rollback(25, skip=False)
    current = bench.learner.snapshots.current
    assert current.seq == 24
    assert current.version > version
    assert bench.learner.run.pipeline._feeder._paused, "paused before, paused after"
    bench.learner.pause(False)
    bench.learner.wait_idle(DEADLINE_S)
    assert bench.learner.snapshots.current.version > current.version


def test_rollback_to_0(bench: Bench) -> None:
    bench.learn(20)
    before = bench.state()
    assert bench.learner.rollback(0, skip=False).checkpoint == 0
    assert equal(bench.state(), before)


def test_no_checkpoint_beyond_the_target_is_left(bench: Bench) -> None:
    bench.learn(6)
    bench.wait_written(24)
    bench.learn(14, seed=1)
    bench.learner.pause(True)
    bench.learner.rollback(24, skip=True)
    assert bench.learner.checkpoints.store.seqs() == [24]


@pytest.mark.parametrize("to", [81, 10_000])
def test_rollback_to_an_unlearned_sample_is_rejected(bench: Bench, to: int) -> None:
    bench.learn(20)
    with pytest.raises(SequenceUnknown, match="not learned") as caught:
        bench.learner.rollback(to, skip=True)
    assert "0 to 80" in caught.value.hint
    bench.learn(1)


def test_rollback_before_the_journal_is_rejected(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench", checkpoint={"every_samples": 24, "every_s": 0, "keep": 1}) as bench:
        for seed in range(20):
            bench.learn(2, seed=seed)
        bench.learner.checkpoint(DEADLINE_S)
        while bench.trim():
            pass
        with pytest.raises(SequenceUnknown, match="no checkpoint at or below 10") as caught:
            bench.learner.rollback(10, skip=False)
        assert "from 160 on" in caught.value.hint
        bench.learn(1)
        assert bench.learner.status()["learned"] == 164


def test_a_checkpoint_in_hand_that_replaces_the_oldest_leaves_a_rollback_nothing_to_begin_from(
    tmp_path: Path, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is refused, and nothing is lost."""
    newest_only = {"every_samples": 0, "every_s": 0, "keep": 1, "ladder_s": []}
    with Bench(tmp_path / "bench", checkpoint=newest_only) as bench:
        bench.learn(10)
        bench.learner.checkpoint(DEADLINE_S)
        while bench.trim():
            pass
        bench.learn(10, seed=1)
        inside, go_on = hold_at("checkpoint.rename.after", watched, DEADLINE_S)
        bench.learner.run.pipeline.request_checkpoint()
        assert inside.wait(DEADLINE_S)
        settle = bench.learner.checkpoints.writer.settle

        def write_and_settle(timeout_s: float) -> bool:
            # Only now: a rollback has found the old checkpoint, ended learning and waits for the one in hand.
            assert bench.learner.checkpoints.store.seqs() == [40]
            go_on.set()
            return settle(timeout_s)

        monkeypatch.setattr(bench.learner.checkpoints.writer, "settle", write_and_settle)
        with pytest.raises(SequenceUnknown):
            bench.learner.rollback(60, skip=True)
        assert go_on.is_set(), "refused before it waited for the checkpoint in hand"
        assert bench.learner.checkpoints.store.seqs() == [80]
        bench.learn(1)
        assert bench.learner.status()["learned"] == 84


# --- rollback to a checkpoint that the journal does not reach back to -----------------------------------------------

LADDER = {"every_samples": 0, "every_s": 0, "keep": 1}  # the first checkpoint stays as one of the ladder


def grow_old(bench: Bench) -> None:
    """Checkpoints 40 and 120; the journal holds nothing that came before 121, and 8 samples after it."""
    for seed in range(3):
        bench.learn(10, seed=seed)
        bench.learner.checkpoint(DEADLINE_S)
    while bench.trim():
        pass
    bench.learn(2, seed=3)
    assert bench.learner.checkpoints.store.seqs() == [40, 120]
    assert bench.journal.first_seq == 121


def test_rollback_to_an_old_checkpoint_skips_what_the_journal_no_longer_has(tmp_path: Path) -> None:
    """As if what came after it had never come."""
    with Bench(tmp_path / "bench", checkpoint=LADDER) as bench:
        grow_old(bench)
        assert bench.learner.rollback(40, skip=True) == (40, 40, 41, 128, "skipped")
        assert bench.learner.checkpoints.store.seqs() == [40]
        bench.learn(5, seed=4)
        after = bench.state()
        status = bench.learner.status()
        assert (status["accepted"], status["applied_seq"], status["learned"]) == (148, 148, 60)
    with Bench(tmp_path / "other") as other:
        other.learn(10)
        other.learn(5, seed=4)
        assert equal(after, other.state())
    with Bench(tmp_path / "bench", checkpoint=LADDER) as again:
        assert equal(again.state(), after)
        assert again.learner.status()["learned"] == 60
        again.learn(1, seed=5)


@pytest.mark.parametrize(("to", "skip"), [(40, False), (41, True), (41, False), (119, True)])
def test_rollback_that_needs_samples_the_journal_no_longer_has_is_refused(
    tmp_path: Path, to: int, skip: bool
) -> None:
    with Bench(tmp_path / "bench", checkpoint=LADDER) as bench:
        grow_old(bench)
        with pytest.raises(
            SequenceUnknown, match=r"checkpoint 40 .*, and the journal begins at sample 121"
        ) as caught:
            bench.learner.rollback(to, skip=skip)
        assert caught.value.hint == "from 120 on; with --skip also exactly to checkpoint 40"
        with pytest.raises(SequenceUnknown, match="no checkpoint at or below 39"):
            bench.learner.rollback(39, skip=True)
        bench.learn(1)
        assert bench.learner.status()["learned"] == 132


@pytest.mark.parametrize("failpoint", ["rollback.skipped", "rollback.discarded"])
def test_death_in_a_rollback_to_an_old_checkpoint_leaves_one_that_starts(
    tmp_path: Path, watched: Watch, failpoint: str
) -> None:
    bench = Bench(tmp_path / "bench", checkpoint=LADDER)
    bench.learner.start()
    grow_old(bench)
    die_in_rollback(bench, watched, failpoint, to=40, skip=True)
    with Bench(tmp_path / "bench", checkpoint=LADDER) as again:
        assert again.learner.checkpoints.store.seqs() == [40]
        again.learn(1)
        assert again.learner.status()["learned"] == 44


def test_a_skip_that_finds_no_room_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bench(tmp_path / "bench", checkpoint=LADDER) as bench:
        grow_old(bench)

        def full(*arguments: object) -> None:
            raise DiskFull("no room")

        with monkeypatch.context() as patch:
            patch.setattr("ffstream.journal.skips.add", full)
            with pytest.raises(DiskFull) as caught:
                bench.learner.rollback(40, skip=True)
        assert caught.value.hint == "nothing was rolled back: samples 41 to 128 could not be noted as skipped"
        assert bench.learner.checkpoints.store.seqs() == [40, 120]
        bench.learn(1)
        assert bench.learner.status()["learned"] == 132


def test_status_says_how_far_back_a_rollback_reaches(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench", checkpoint=LADDER) as bench:
        clock = [100.0]
        bench.learner.checkpoints.store._monotonic_s = lambda: clock[0]
        bench.learner.checkpoints.store._clock_began_s = -100.0
        status = bench.learner.status()
        assert (status["rollback_from"], status["rollback_age_s"], status["relearn_from"]) == (0, 0, 0)
        grow_old(bench)
        clock[0] += 50.0
        status = bench.learner.status()
        assert (status["rollback_from"], status["rollback_age_s"], status["relearn_from"]) == (40, 50.0, 120)


def test_a_short_disk_takes_old_checkpoints_and_never_the_newest(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench", checkpoint=LADDER) as bench:
        grow_old(bench)
        bench.learner.checkpoints.make_room()
        wait_until(
            lambda: bench.learner.checkpoints.store.seqs() == [120], DEADLINE_S, "the old checkpoint is removed"
        )
        bench.learner.checkpoints._made_room_at = 0.0
        bench.learner.checkpoints.make_room()
        assert bench.learner.checkpoints.writer.settle(DEADLINE_S)
        assert bench.learner.checkpoints.store.seqs() == [120]


def test_a_short_disk_during_a_rollback_leaves_the_checkpoint_that_it_begins_from(
    tmp_path: Path, watched: Watch
) -> None:
    """The journal no longer has the samples before it, so without it learning could not begin again."""
    with Bench(tmp_path / "bench", checkpoint=LADDER) as bench:
        grow_old(bench)
        checkpoints = bench.learner.checkpoints
        inside, go_on = hold_at("rollback.before", watched, DEADLINE_S)
        with ThreadPoolExecutor(1) as pool:
            rollback = pool.submit(bench.learner.rollback, 40, skip=True)
            assert inside.wait(DEADLINE_S)
            checkpoints.make_room()
            assert checkpoints.writer.settle(DEADLINE_S)
            kept = checkpoints.store.seqs()
            go_on.set()
            assert rollback.result(DEADLINE_S).checkpoint == 40
        assert kept == [40, 120]


def test_a_snapshot_published_while_a_rollback_ends_the_run_ends_no_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A barrier may complete until the last thread of the run has ended."""
    bench.learn(10)
    run, snapshots, writer = bench.learner.run, bench.learner.snapshots, bench.learner.checkpoints.writer
    abort, settle = run.abort, writer.settle
    waited: list[bool] = []

    def publish_and_abort(timeout_s: float) -> bool:
        snapshots.publish(replace(snapshots.current, version=snapshots.current.version + 1))
        return abort(timeout_s)

    def settle_and_wait(timeout_s: float) -> bool:
        waited.append(snapshots.wait_for(40, 0.0))
        return settle(timeout_s)

    monkeypatch.setattr(run, "abort", publish_and_abort)
    monkeypatch.setattr(writer, "settle", settle_and_wait)
    bench.learner.rollback(8, skip=False)
    assert waited == [False]


def test_a_rollback_removes_the_goodness_of_the_run_that_it_ends(bench: Bench) -> None:
    bench.learn(10)
    goodness = bench.learner._metrics.goodness
    assert any(family.samples for family in goodness.collect())
    bench.learner.pause(True)
    bench.learner.rollback(0, skip=False)
    assert not any(family.samples for family in goodness.collect())


def test_second_rollback_is_rejected_as_busy(bench: Bench, watched: Watch) -> None:
    bench.learn(10)
    inside, go_on = hold_at("rollback.discarded", watched, DEADLINE_S)
    first = threading.Thread(target=lambda: bench.learner.rollback(8, skip=True))
    first.start()
    assert inside.wait(DEADLINE_S)
    with pytest.raises(Busy):
        bench.learner.rollback(4, skip=True)
    assert not bench.trim(), "nor is anything deleted meanwhile"
    go_on.set()
    first.join(DEADLINE_S)
    bench.learn(1)
    assert bench.learner.status()["learned"] == 12


@pytest.mark.parametrize("paused", [True, False])
def test_a_pause_or_resume_during_a_rollback_holds_after_it(bench: Bench, watched: Watch, paused: bool) -> None:
    bench.learn(10)
    bench.learner.pause(not paused)
    with rolling_back(bench, watched):
        bench.learner.pause(paused)
    assert bench.learner.paused == bench.learner.run.pipeline._feeder._paused == paused
    bench.learner.pause(False)


def test_a_wait_while_learning_is_paused_is_refused_at_once(bench: Bench) -> None:
    bench.learner.pause(True)
    bench.learner.wait_idle(0.0)
    bench.feed(10)
    with pytest.raises(Paused, match="40 samples are not learned") as caught:
        bench.learner.wait_idle(NEVER_S)
    assert "ffstream resume" in caught.value.hint
    with pytest.raises(Paused, match="40 samples are not learned"):
        bench.learner.raise_if_paused()
    bench.learner.pause(False)
    bench.learner.wait_idle(DEADLINE_S)
    bench.learner.raise_if_paused()


def test_a_pause_ends_only_waits_for_samples_that_are_not_fed(bench: Bench, watched: Watch) -> None:
    inside, go_on = hold_at("learned", watched, DEADLINE_S)
    bench.feed(1)
    assert inside.wait(DEADLINE_S)
    with ThreadPoolExecutor() as pool:
        fed = pool.submit(bench.learner.wait_idle, DEADLINE_S)
        bench.learner.pause(True)
        bench.feed(40)
        refused = pool.submit(bench.learner.wait_idle, NEVER_S)
        assert isinstance(refused.exception(DEADLINE_S), Paused)
        go_on.set()
        assert fed.exception(DEADLINE_S) is None, "what was in the queues is learned"
    watched(None)
    bench.learner.pause(False)
    bench.learner.wait_idle(DEADLINE_S)


def test_a_wait_ends_when_learning_is_paused_meanwhile(tmp_path: Path, watched: Watch) -> None:
    with Bench(tmp_path / "bench", pipeline={"device": "cpu", "precision": "fp32", "queue_depth": 1}) as bench:
        inside, go_on = hold_at("learned", watched, DEADLINE_S)
        bench.feed(40)
        assert inside.wait(DEADLINE_S)
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(bench.learner.wait_idle, NEVER_S)
            wait_until(lambda: bench.learner.snapshots._published._waiters, DEADLINE_S, "it waits")  # type: ignore[attr-defined]
            pauses = pool.submit(bench.learner.pause, True)
            wait_until(lambda: bench.learner.run.pipeline._feeder._paused, DEADLINE_S, "the feeder is told")
            go_on.set()
            assert pauses.exception(DEADLINE_S) is None
            assert isinstance(waits.exception(DEADLINE_S), Paused)
        bench.learner.pause(False)


# --- pause is durable -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [True, False])
def test_a_pause_is_on_disk_before_it_takes_effect(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """And a resume: a death just after it leaves what the caller may have been told."""
    on_disk = []
    if again:
        bench.learner.pause(True)

    def pause(paused: bool) -> None:
        on_disk.append((paused, events.learning_is_paused(bench.journal.path)))

    with monkeypatch.context() as patch:
        patch.setattr(bench.learner.run.pipeline, "pause", pause)
        bench.learner.pause(not again)
    bench.learner.pause(False)
    assert on_disk == [(not again, not again)]


def test_a_pause_that_cannot_be_stored_has_no_effect(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_WAIT_MS", 10)
    with closing(sqlite3.connect(bench.journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            bench.learner.pause(True)
    assert "nothing has changed" in caught.value.hint
    assert not bench.learner.paused
    bench.learn(1)


def test_learning_starts_paused_where_it_was_paused(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench") as bench:
        bench.learn(2)
        bench.learner.pause(True)
        bench.feed(3)
    for _ in range(2):
        with Bench(tmp_path / "bench") as bench:
            assert bench.learner.paused
            assert bench.learner.status()["paused"]
            with pytest.raises(Paused):
                bench.learner.wait_idle(NEVER_S)
            assert bench.learner.checkpoint(DEADLINE_S).seq == 2 * SIZE, "nothing was fed"
    with Bench(tmp_path / "bench") as bench:
        bench.learner.pause(False)
        bench.learn(1)
    with Bench(tmp_path / "bench") as bench:
        assert not bench.learner.status()["paused"]
        bench.learn(1)
        assert bench.learner.applied_seq == 7 * SIZE


def test_a_pause_outlives_a_rollback_and_a_restart(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench") as bench:
        bench.learn(10)
        bench.learner.pause(True)
        bench.learner.rollback(25, skip=True)
    with Bench(tmp_path / "bench") as bench:
        assert bench.learner.checkpoint(DEADLINE_S).seq == 24
        bench.learner.pause(False)
        bench.learner.wait_idle(DEADLINE_S)
        assert bench.learner.status()["learned"] == 25


# --- rollback, continued --------------------------------------------------------------------------------------------


def test_wait_idle_does_not_return_during_a_rollback(bench: Bench, watched: Watch) -> None:
    """What predicts has learned more than what learns: it does not count."""
    bench.learn(10)
    with rolling_back(bench, watched), pytest.raises(DeadlineExceeded):
        bench.learner.wait_idle(0.1)
    bench.learner.wait_idle(DEADLINE_S)
    assert bench.learner.applied_seq == 40


@contextmanager
def rolling_back(bench: Bench, watched: Watch) -> Iterator[None]:
    """The block happens in the midst of a rollback to sample 8."""
    inside, go_on = hold_at("rollback.discarded", watched, DEADLINE_S)
    rollback = threading.Thread(target=lambda: bench.learner.rollback(8, skip=False))
    rollback.start()
    assert inside.wait(DEADLINE_S)
    yield
    go_on.set()
    rollback.join(DEADLINE_S)
    watched(None)


def test_a_stop_that_overtakes_a_rollback_undoes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops may be in a hurry, and another daemon may have the folder next."""
    bench.learn(10)
    bench.learner.checkpoint(DEADLINE_S)
    settle = bench.learner.checkpoints.writer.settle

    def settle_and_stop(timeout_s: float) -> bool:
        bench.learner.end_waits()
        return settle(timeout_s)

    monkeypatch.setattr(bench.learner.checkpoints.writer, "settle", settle_and_stop)
    with pytest.raises(Unavailable, match="is stopping"):
        bench.learner.rollback(8, skip=False)
    assert bench.learner.checkpoints.store.seqs()[-1] == 40


def test_a_full_journal_with_a_damaged_newest_checkpoint_makes_room(tmp_path: Path) -> None:
    by_hand = {"every_samples": 0, "every_s": 0, "keep": 3}
    with Bench(tmp_path / "bench", checkpoint=by_hand) as bench:
        for seed in range(2):
            bench.learn(10, seed=seed)
            bench.learner.checkpoint(DEADLINE_S)
    (bench.learner.checkpoints.store.folder / f"{80:020d}" / "state.safetensors").write_bytes(b"")
    with Bench(tmp_path / "bench", checkpoint=by_hand) as bench:
        bench.learner.wait_idle(DEADLINE_S)

        def makes_room() -> bool:
            bench.trim(journal_is_full=True)
            return bench.journal.first_seq > 40

        wait_until(makes_room, DEADLINE_S, "rows give way to a checkpoint that is whole")


def test_a_writer_or_an_evaluator_that_is_stuck_is_named(
    bench: Bench, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.learn(10)
    wait_until(lambda: find_stuck(bench.learner.threads, 0.0) is None, DEADLINE_S, "nobody has anything in hand")
    inside, go_on = hold_at("checkpoint.write.after", watched, DEADLINE_S)
    bench.learner.run.pipeline.request_checkpoint()
    assert inside.wait(DEADLINE_S)
    wait_until(lambda: find_stuck(bench.learner.threads, 0.01) == "ff-checkpoint", DEADLINE_S, "the writer is named")
    go_on.set()
    wait_until(lambda: find_stuck(bench.learner.threads, 0.0) is None, DEADLINE_S, "it has written")

    add, seen = bench.learner.run.prequential.record.add, threading.Event()

    def add_late(size: int, wrong: int, stands_for: int) -> None:
        assert seen.wait(DEADLINE_S)
        add(size, wrong, stands_for)

    monkeypatch.setattr(bench.learner.run.prequential.record, "add", add_late)
    bench.learn(1)
    wait_until(
        lambda: find_stuck(bench.learner.threads, 0.01) == "ff-prequential", DEADLINE_S, "the evaluator is named"
    )
    seen.set()


def test_no_checkpoint_before_the_first_sample(tmp_path: Path) -> None:
    """Its recipe may still be another one."""
    with Bench(tmp_path / "bench") as bench:
        pass
    assert bench.learner.checkpoints.store.seqs() == []


@pytest.mark.parametrize(
    ("failpoint", "skip", "learned"),
    [
        ("rollback.before", True, 80),
        ("rollback.before", False, 80),
        ("rollback.skipped", True, 30),
        ("rollback.discarded", True, 30),
        ("rollback.discarded", False, 80),
    ],
)
def test_death_in_a_rollback_leaves_all_of_it_or_nothing(
    tmp_path: Path, watched: Watch, failpoint: str, skip: bool, learned: int
) -> None:
    """Once the skip is on disk, recovery completes what was begun."""
    bench = Bench(tmp_path / "bench")
    bench.learner.start()
    bench.learn(20)
    die_in_rollback(bench, watched, failpoint, to=30, skip=skip)
    with Bench(tmp_path / "bench") as again:
        again.learner.wait_idle(DEADLINE_S)
        assert again.learner.status()["learned"] == learned
        assert again.learner.applied_seq == 80


def test_a_journal_that_does_not_reach_back_to_its_checkpoint_is_refused(tmp_path: Path) -> None:
    with Bench(tmp_path / "bench", checkpoint={"every_samples": 24, "every_s": 0, "keep": 1}) as bench:
        for seed in range(20):
            bench.learn(2, seed=seed)
        bench.learner.checkpoint(DEADLINE_S)
        while bench.trim():
            pass
    bench.learner.checkpoints.store.discard_after(0)
    with pytest.raises(JournalDamaged, match="in no whole checkpoint") as caught:
        Bench(tmp_path / "bench")
    assert caught.value.hint
