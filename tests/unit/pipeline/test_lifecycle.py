"""Failure, abort, pause, and options that cannot be."""

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ffstream.errors import ConfigError, JournalDamaged
from ffstream.pipeline import feeder
from ffstream.pipeline.device import choose_device, choose_product_dtype
from ffstream.util.threads import find_stuck
from tests.support import wait_until
from tests.unit.pipeline.run import (
    BATCH,
    CONDITIONED,
    DEADLINE_S,
    QUIET,
    RECIPE,
    Gated,
    Run,
    Serial,
    Store,
    Stream,
    assert_same,
    resume_state,
    running,
)

STEPS = 40


def breaks_at(layer: Any, seq: int, method: str) -> None:
    """Lets a method raise the third time it is called."""
    original = getattr(layer, method)
    calls = 0

    def broken(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == seq:
            raise ValueError("a broken layer")
        return original(*arguments)

    setattr(layer, method, broken)


@pytest.mark.parametrize("method", ["forward", "update"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_failing_stage_is_reported_once_by_name_and_everything_ends(store: Store, stage: int, method: str) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE)
    breaks_at(run.stages[stage].layers[0], 3, method)
    run.start()
    wait_until(lambda: not running(), DEADLINE_S, "all threads ended by themselves")
    (failure,) = run.failures
    assert f"ff-stage-{stage}" in failure.message
    assert "a broken layer" in failure.message
    assert run.pipeline.applied_seq <= 3 * BATCH
    assert run.pipeline.abort(DEADLINE_S)
    assert len(run.failures) == 1


def test_weights_that_are_not_finite_are_never_saved(store: Store) -> None:
    """Checkpoints of such a state would replace all good ones, one after the other."""
    stream = Stream.random(STEPS * BATCH)
    run = Run(store, RECIPE)
    layer, steps = run.stages[1].layers[0], []
    update = layer.update

    def diverges() -> None:
        update()
        steps.append(1)
        if len(steps) == STEPS:
            layer.parameters.flat[3] = float("nan")

    layer.update = diverges  # type: ignore[method-assign]
    run.start()
    store.write(stream.images, stream.labels)
    run.wait_applied(STEPS * BATCH)
    run.pipeline.request_checkpoint()
    wait_until(lambda: run.failures, DEADLINE_S, "reported")
    assert run.pipeline.abort(DEADLINE_S)
    (failure,) = run.failures
    assert "layers.1.parameters is not finite after sample 160" in failure.message
    assert not any(barrier.saves for barrier in run.barriers)


def test_after_a_failure_an_idle_learner_is_ended_by_abort(store: Store) -> None:
    stream = Stream.random(BATCH)
    run = Run(store, RECIPE)
    breaks_at(run.stages[1].layers[0], 1, "update")
    run.start()
    store.write(stream.images, stream.labels)
    wait_until(lambda: run.failures, DEADLINE_S, "reported")
    assert run.pipeline.abort(DEADLINE_S)
    assert not running()
    assert len(run.failures) == 1


def test_a_failing_listener_is_a_failing_stage(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE)

    def broken(barrier: object) -> None:
        raise ValueError("a broken listener")

    run.on_barrier = broken  # type: ignore[method-assign]
    run.start()
    wait_until(lambda: not running(), DEADLINE_S, "all threads ended")
    assert len(run.failures) == 1
    assert "a broken listener" in run.failures[0].message


def test_a_damaged_journal_is_reported_by_the_feeder(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels, size=BATCH)
    store.journal._db.execute("UPDATE messages SET crc = crc + 1 WHERE first_seq = ?", (20 * BATCH + 1,))
    run = Run(store, RECIPE).start()
    wait_until(lambda: not running(), DEADLINE_S, "all threads ended")
    (failure,) = run.failures
    assert isinstance(failure, JournalDamaged)
    assert "checksum" in failure.message
    assert failure.hint
    assert run.pipeline.abort(DEADLINE_S)


def test_abort_drops_what_is_queued(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE)
    gate = Gated(run.stages[1].layers[0])
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the second stage hangs")
    wait_until(lambda: len(run.inboxes[1]), DEADLINE_S, "something is queued")
    assert not run.pipeline.abort(0.05), "one stage still hangs"
    gate.open()
    assert run.pipeline.abort(DEADLINE_S)
    assert run.pipeline.applied_seq <= BATCH
    assert not [each for each in run.barriers if each.saves]
    assert not run.failures


def test_a_stop_that_is_not_in_time_says_so_and_can_be_repeated(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE)
    gate = Gated(run.stages[2].layers[0])
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the last stage hangs")
    assert not run.pipeline.stop(0.05)
    gate.open()
    last = run.stop()
    assert_same(last.tensors, Serial(RECIPE, stream).states[last.step])
    assert find_stuck(run.pipeline.threads, 0.0) is None, (
        "what has ended is not stuck, in the midst of the stream or not"
    )


def test_threads_are_named_and_end(store: Store) -> None:
    run = Run(store, RECIPE, replace(QUIET, stages=(1, 2))).start()
    assert set(running()) == {"ff-feeder", "ff-stage-0", "ff-stage-1"}
    run.stop()
    assert not running()


def test_paused_learns_nothing_and_everything_else_goes_on(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    half = STEPS // 2 * BATCH
    run = Run(store, RECIPE).start()
    run.pipeline.pause(True)
    before = run.save().seq
    store.write(stream.images[:half], stream.labels[:half])
    assert run.save().seq == before, "a checkpoint is taken, nothing was fed before it"
    assert run.save().seq == before
    assert run.pipeline._feeder._paused
    run.pipeline.pause(False)
    run.wait_applied(half)
    run.pipeline.pause(True)
    store.write(stream.images[half:], stream.labels[half:])
    last = run.stop()
    assert last.seq >= half
    assert_same(last.tensors, Serial(RECIPE, stream).states[last.step])


def test_a_stuck_stage_is_named(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE)
    gate = Gated(run.stages[1].layers[0])
    run.start()
    third = run.stages[2]
    wait_until(lambda: len(run.inboxes[0]) == len(run.inboxes[1]) == 2, DEADLINE_S, "all queues before it are full")
    # It has handed on its first microbatch, which the stage after it may have in hand for a while.
    wait_until(lambda: third.steps and not third.thread.is_busy, DEADLINE_S, "the stage after it waits")
    # Waited for: the stage before it may be on its way to the full queue still.
    wait_until(
        lambda: find_stuck(run.pipeline.threads, 0.05) == "ff-stage-1",
        DEADLINE_S,
        "the stuck stage is named, not the one that waits for it",
    )
    assert find_stuck(run.pipeline.threads, 600) is None
    gate.open()
    run.wait_applied(STEPS * BATCH)
    wait_until(lambda: find_stuck(run.pipeline.threads, 0.0) is None, DEADLINE_S, "idle")
    run.stop()
    assert find_stuck(run.pipeline.threads, 0.0) is None


def test_phases_can_be_turned_off_between_two_runs(store: Store) -> None:
    """`[learning] wake` and `sleep` are no part of the network, so a state of a run with them must still load."""
    stream = Stream.random(6 * BATCH)
    store.write(stream.images, stream.labels)
    first = Run(store, CONDITIONED, replace(QUIET, wake=1, sleep=1)).start()
    first.wait_applied(3 * BATCH)
    last = first.stop()
    second = Run(store, CONDITIONED, QUIET, resume=resume_state(last)).start()
    second.wait_applied(6 * BATCH)
    assert second.stop().seq == 6 * BATCH
    assert second.pipeline.phase == "interleaved"


def test_waiting_for_the_rest_of_a_microbatch_takes_no_processor_time(store: Store) -> None:
    """Whatever `linger_s` is: it is for `partial = flush` alone."""
    store.write(np.zeros((1, 16), np.uint8), np.zeros(1, np.int64))
    run = Run(store, RECIPE, linger_s=0.0, partial="wait")
    assembler, looked = run.pipeline._feeder._batcher, threading.Semaphore(0)
    original = assembler.next

    def count(**options: Any) -> Any:
        looked.release()
        return original(**options)

    assembler.next = count  # type: ignore[method-assign]
    began = time.monotonic()
    run.start()
    looks = sum(looked.acquire(timeout=0.3) for _ in range(5))
    # By the time it took: while this thread is held up, the feeder may look again by right.
    assert looks <= 2 + (time.monotonic() - began) / feeder._IDLE_WAIT_S, "the feeder spins"
    run.stop()


def test_devices_and_precisions_by_name() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_product_dtype("fp32", cpu) == torch.float32
    assert choose_product_dtype("bf16", cpu) == torch.bfloat16
    assert choose_product_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        choose_device("cuda")
