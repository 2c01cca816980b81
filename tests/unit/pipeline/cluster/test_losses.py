"""A stage that is lost ends its run once, whatever is lost first. Another run goes on, with what is left."""

import errno
import subprocess
import threading
from typing import Final

import pytest

from ffstream.config import Config
from ffstream.errors import StageFailed, StagesLost
from ffstream.ff.layer import Layer
from ffstream.metrics import Metrics
from ffstream.pipeline.cluster import actor, control
from ffstream.pipeline.cluster.engine import ClusterEngine
from ffstream.pipeline.cluster.requests import Place, Placed, Slot
from ffstream.pipeline.cluster.sockets import Keys
from ffstream.pipeline.engine import Engine
from ffstream.pipeline.messages import Barrier
from ffstream.pipeline.resume_state import ResumeState
from tests.support import Watch, hold_at, wait_until
from tests.unit.pipeline.cluster.local import Connection, Engines, LocalKeeper
from tests.unit.pipeline.run import (
    BATCH,
    CONDITIONED,
    DEADLINE_S,
    QUIET,
    RECIPE,
    Run,
    Serial,
    Store,
    Stream,
    assert_same,
    resume_state,
)

CONNECTIONS: Final[tuple[Connection, ...]] = ("control", "inlet")
STEPS = 40
STREAM = Stream.random(STEPS * BATCH)


def begun(store: Store, engine: Engines, steps: int = STEPS // 2) -> Run:
    """A run whose connections can be cut. It has learned so many microbatches."""
    store.write(STREAM.images[: steps * BATCH], STREAM.labels[: steps * BATCH])
    run = Run(store, CONDITIONED, engine=engine.wired).start()
    run.wait_applied(steps * BATCH)
    return run


def lost(run: Run) -> StagesLost:
    """The only failure of a run that has lost a stage. The run has ended."""
    wait_until(lambda: run.failures, DEADLINE_S, "the loss is noticed")
    assert run.pipeline.abort(DEADLINE_S)
    (failure,) = run.failures
    assert isinstance(failure, StagesLost)
    return failure


def goes_on(store: Store, engines: Engines, resume: ResumeState | None = None) -> None:
    """Another run of the same engine learns the stream as the serial reference does."""
    engine = engines.made[-1]

    def same(config: Config, metrics: Metrics) -> Engine:
        return engine

    run = Run(store, CONDITIONED, engine=same, resume=resume).start()
    missing = slice(store.journal.head.seq, None)
    store.write(STREAM.images[missing], STREAM.labels[missing])
    run.wait_applied(STEPS * BATCH)
    last = run.stop()
    assert_same(last.tensors, Serial(CONDITIONED, STREAM).states[STEPS])


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_a_connection_that_ends_while_the_stream_is_quiet(
    store: Store, engines: Engines, connection: Connection, stage: int
) -> None:
    run = begun(store, engines)
    barrier = run.save()
    engines.keeper.wire(stage, connection).cut()
    failure = lost(run)
    noticed_by = max(0, stage - 1) if connection == "inlet" else stage
    assert failure.message.startswith(f"ff-stage-{noticed_by} is lost"), failure.message
    assert "connection" in failure.message
    value = run.metrics.registry.get_sample_value
    labels = {"stage": str(noticed_by), "reason": "connection"}
    assert value("ffstream_stage_replacements_total", labels) == 1
    goes_on(store, engines, resume_state(barrier))
    before, after = engines.keeper.placed
    assert set(before) - set(after) == ({before[stage]} if connection == "control" or stage == 0 else set())


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_a_connection_that_ends_while_items_are_on_their_way(
    store: Store, engines: Engines, watched: Watch, connection: Connection
) -> None:
    reached, release = hold_at("learned", watched, DEADLINE_S)
    store.write(STREAM.images, STREAM.labels)
    run = Run(store, CONDITIONED, engine=engines.wired, publish_every=1).start()
    assert reached.wait(DEADLINE_S)
    wait_until(lambda: run.pipeline.fed_microbatches[1] >= 3, DEADLINE_S, "items wait in queues")
    engines.keeper.wire(1, connection).cut()
    wait_until(lambda: run.failures, DEADLINE_S, "the loss is noticed")
    release.set()
    lost(run)
    goes_on(store, engines)


def test_an_actor_that_vanishes(store: Store, engines: Engines) -> None:
    run = begun(store, engines)
    gone = engines.keeper.placed[0][1]
    for connection in CONNECTIONS:
        engines.keeper.wire(1, connection).close()
    engines.made[-1]._on_lost(gone, "it was killed")
    assert "ff-stage-1 is lost" in lost(run).message
    goes_on(store, engines)
    assert engines.keeper.killed == [gone]


def test_an_actor_that_the_keeper_misses(store: Store, engines: Engines) -> None:
    run = begun(store, engines)
    engine = engines.made[-1]
    engine._on_lost(77, "an actor of no stage")
    engine._on_lost(engines.keeper.placed[0][2], "its process was killed")
    engine._on_lost(engines.keeper.placed[0][1], "its process was killed, too")
    assert lost(run).message == "ff-stage-2 is lost (process 0 on node node): its process was killed"
    assert run.metrics.registry.get_sample_value(
        "ffstream_stage_replacements_total", {"stage": "2", "reason": "actor"}
    )
    goes_on(store, engines)


def test_a_keeper_that_ends(store: Store, engines: Engines) -> None:
    run = begun(store, engines)
    engines.made[-1]._on_lost(None, "the keeper has ended")
    assert lost(run).message == "the keeper has ended"
    goes_on(store, engines)


def test_a_keeper_that_ended_before_the_stages_were_placed_does_not_end_them(store: Store, engines: Engines) -> None:
    store.write(STREAM.images, STREAM.labels)
    run = Run(store, CONDITIONED, engine=engines)
    engines.made[-1]._on_lost(None, "the keeper has ended")
    run.start().wait_applied(STEPS * BATCH)
    run.stop()


def test_an_actor_that_is_gone_before_it_is_connected(
    store: Store, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(store, CONDITIONED, engine=engines)
    place = engines.keeper.place

    def place_and_lose(request: Place) -> Placed:
        placed = place(request)
        engines.made[-1]._on_lost(placed.spots[1].number, "its process was killed")
        return placed

    monkeypatch.setattr(engines.keeper, "place", place_and_lose)
    with pytest.raises(StagesLost, match=r"ff-stage-1 is lost .*: its process was killed"):
        run.start()
    assert run.pipeline.abort(DEADLINE_S)
    monkeypatch.undo()
    goes_on(store, engines)


def test_a_keeper_for_which_there_is_no_memory_is_tried_again(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines(QUIET.config(RECIPE), Metrics())

    def without_memory(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", without_memory)
    with pytest.raises(StagesLost, match="the keeper cannot be started: Cannot allocate memory"):
        ClusterEngine._start_keeper(engine)


def test_a_place_that_cannot_be_found_is_asked_for_again(store: Store, engines: Engines) -> None:
    run = Run(store, CONDITIONED, engine=engines)
    engines.keeper.refusals.append("no node has room for 1 CPU")
    with pytest.raises(StagesLost, match="no node has room"):
        run.start()
    assert run.pipeline.abort(DEADLINE_S)
    goes_on(store, engines)


def test_a_stage_that_says_nothing_is_replaced(store: Store, engines: Engines, watched: Watch) -> None:
    run = Run(store, CONDITIONED, engine=engines, stall_timeout_s=2.0).start()
    reached, release = hold_at("learned", watched, DEADLINE_S)
    store.write(STREAM.images, STREAM.labels)
    assert reached.wait(DEADLINE_S)
    wait_until(lambda: run.failures, DEADLINE_S, "the stall is noticed")
    release.set()
    assert lost(run).message.endswith("it has said nothing for 2 s")
    assert engines.keeper.killed == engines.keeper.placed[0][-1:]
    goes_on(store, engines)


class Silent(Run):
    """The daemon's thread stops at a barrier until `go_on` is set. It is started."""

    def __init__(self, store: Store, engines: Engines, watched: Watch) -> None:
        super().__init__(store, CONDITIONED, engine=engines, publish_every=4)
        self.go_on = threading.Event()
        self.learned_in_silence = 0
        watched(self._count)
        self.start()

    def _count(self, failpoint: str) -> None:
        self.learned_in_silence += failpoint == "learned" and bool(self.barriers)

    def on_barrier(self, barrier: Barrier) -> None:
        super().on_barrier(barrier)
        assert self.go_on.wait(DEADLINE_S)


def test_stages_learn_while_the_daemon_is_silent_for_a_while(store: Store, engines: Engines, watched: Watch) -> None:
    store.write(STREAM.images, STREAM.labels)
    run = Silent(store, engines, watched)
    wait_until(lambda: run.learned_in_silence >= STEPS // 2, DEADLINE_S, "stages learn")
    run.go_on.set()
    run.wait_applied(STEPS * BATCH)
    assert_same(run.stop().tensors, Serial(CONDITIONED, STREAM).states[STEPS])


def test_stages_end_when_the_daemon_is_silent_for_long(
    store: Store, engines: Engines, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(STREAM.images, STREAM.labels)
    monkeypatch.setattr(control, "SILENT_S", 1.5)
    run = Silent(store, engines, watched)
    wait_until(lambda: run.barriers and not engines.keeper.is_busy, DEADLINE_S, "the actors are idle")
    run.go_on.set()
    # The first stage that ends is noticed by the one before it, too.
    assert lost(run).message.endswith(("it heard nothing from the daemon", "connection to the next stage is gone"))
    monkeypatch.undo()
    goes_on(store, engines)
    assert engines.keeper.killed == []


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_that_diverges_fails_the_run(
    store: Store, engines: Engines, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    update = Layer.update

    def diverges(layer: Layer) -> None:
        update(layer)
        if layer.index == stage:
            layer.parameters.flat[3] = float("nan")

    monkeypatch.setattr(Layer, "update", diverges)
    run = Run(store, RECIPE, engine=engines, checkpoint_every_samples=2 * BATCH).start()
    store.write(STREAM.images, STREAM.labels)
    wait_until(lambda: run.failures, DEADLINE_S, "the failure is reported")
    wait_until(lambda: not engines.keeper.is_busy, DEADLINE_S, "the actors are idle")
    assert run.pipeline.abort(DEADLINE_S)
    (failure,) = run.failures
    assert isinstance(failure, StageFailed)
    assert f"ff-stage-{stage} (process 0 on node node): learning has diverged: layers.{stage}." in failure.message
    assert not any(barrier.saves for barrier in run.barriers)


def test_a_stage_that_cannot_be_made_fails_the_run(
    store: Store, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*arguments: object) -> None:
        raise MemoryError("no memory")

    run = Run(store, RECIPE, engine=engines)
    monkeypatch.setattr(actor, "members_of", without_memory)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # the actor raises it, too: for Ray's logs
    with pytest.raises(StageFailed, match="no memory"):
        run.start()
    wait_until(lambda: not engines.keeper.is_busy, DEADLINE_S, "the actors are idle")
    assert run.pipeline.abort(DEADLINE_S)
    assert engines.keeper.killed == []


def test_a_daemon_that_never_comes_leaves_no_actor_waiting(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "_START_S", 0.3)
    keeper = LocalKeeper()
    request = Place([Slot()], "token", Keys.new().public, encrypt=False, timeout_s=1.0, replicas=1, stages=1)
    keeper.place(request)
    wait_until(lambda: not keeper.is_busy, DEADLINE_S, "the actor is idle")
    assert keeper.stop(DEADLINE_S)


def test_with_keys_all_connections_are_encrypted(
    store: Store, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "is_loopback", lambda host: False)
    seen: list[bytes] = []
    run = begun(store, engines)
    for stage in range(3):
        for connection in CONNECTIONS:
            seen.append(bytes(engines.keeper.wire(stage, connection).recorded))
    assert all(b"CURVE" in each for each in seen)
    assert not any(b"microbatch" in each or b"start" in each for each in seen)
    goes_on(store, engines, resume_state(run.stop()))
