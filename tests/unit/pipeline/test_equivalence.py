"""The pipeline's weights are the serial reference's, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from ffstream.ff.recipe import Recipe
from tests.support import wait_until
from tests.unit.pipeline.run import (
    BATCH,
    CONDITIONED,
    DEADLINE_S,
    DREAMING,
    EVOKED,
    QUIET,
    RECIPE,
    Options,
    Run,
    Serial,
    Store,
    Stream,
    assert_same,
    resume_state,
)

SAMPLES = 30 * BATCH
NEVER_S = 3600.0

SENSITIVE = {"kind": "restart", "threshold": 0.5, "every": 1, "rows": 4}  # random samples restart it

GROUPINGS = [
    (1, ()),
    (2, ()),
    (2, (2,)),
    (3, ()),
    (3, (3,)),
    (3, (1, 2)),
    (3, (2, 1)),
]


def with_fast_weights(recipe: Recipe) -> Recipe:
    """The recipe with fast weights in every layer but the first."""
    first, *later = recipe.model_dump()["layers"]
    return recipe.change(layers=[first, *(layer | {"fast_weights": "hebbian"} for layer in later)])


def pipelined(recipe: Recipe, store: Store, stream: Stream, options: Options, serial: Serial) -> None:
    """Learns the stream until the learner idles, and compares the state."""
    store.write(stream.images, stream.labels)
    run = Run(store, recipe, options).start()
    steps = len(serial.phases)
    wait_until(lambda: run.failures or (run.barriers and run.barriers[-1].step == steps), DEADLINE_S, "all steps")
    last = run.stop()
    assert last.step == steps
    assert last.seq == serial.seqs[-1]
    assert_same(last.tensors, serial.states[last.step])


@pytest.mark.parametrize("replay", [0, 3])
@pytest.mark.parametrize("base", [RECIPE, CONDITIONED], ids=["label-free", "label-conditioned"])
@pytest.mark.parametrize(("layers", "stages"), GROUPINGS)
def test_weights_are_the_serial_references(
    store: Store, layers: int, stages: tuple[int, ...], base: Recipe, replay: int
) -> None:
    recipe = base.change(widths=[8, 7, 6][:layers], replay=replay)
    stream = Stream.random(SAMPLES)
    pipelined(recipe, store, stream, replace(QUIET, stages=stages), Serial(recipe, stream))


@pytest.mark.parametrize("base", [RECIPE, CONDITIONED], ids=["label-free", "label-conditioned"])
def test_restarts_after_a_drift_are_the_serial_references(store: Store, base: Recipe) -> None:
    recipe = base.change(replay=3, drift=SENSITIVE, learning_rate=0.1)
    stream = Stream.random(SAMPLES)
    stream = stream._replace(labels=np.repeat([0, 1, 2], SAMPLES // 3))
    serial = Serial(recipe, stream)
    restarts = [int(serial.states[-1][f"layers.{index}.drift.restarts"]) for index in range(3)]
    assert sum(restarts) >= 2
    pipelined(recipe, store, stream, QUIET, serial)


@pytest.mark.parametrize("replay", [0, 6])
def test_warm_up_makes_smaller_microbatches(store: Store, replay: int) -> None:
    recipe = RECIPE.change(warmup_batch_size=2, warmup_samples=5 * BATCH, replay=replay)
    stream = Stream.random(SAMPLES)
    serial = Serial(recipe, stream)
    assert serial.seqs[10:12] == [5 * BATCH, 6 * BATCH]
    pipelined(recipe, store, stream, QUIET, serial)


@pytest.mark.parametrize("queue_depth", [1, 3, 40])
def test_weights_do_not_depend_on_the_queues(store: Store, queue_depth: int) -> None:
    stream = Stream.random(SAMPLES)
    for_each = replace(QUIET, queue_depth=queue_depth)
    pipelined(CONDITIONED, store, stream, for_each, Serial(CONDITIONED, stream))


@pytest.mark.parametrize("replay", [0, 3])
@pytest.mark.parametrize(
    "base",
    [CONDITIONED.change(activities="label_free"), CONDITIONED, EVOKED],
    ids=["label-free", "label-conditioned", "evoked"],
)
@pytest.mark.parametrize(("wake", "sleep"), [(3, 2), (1, 1), (4, 0)])
def test_wake_and_sleep(store: Store, wake: int, sleep: int, base: Recipe, replay: int) -> None:
    recipe = base.change(replay=replay)
    stream = Stream.random(SAMPLES)
    serial = Serial(recipe, stream, wake=wake, sleep=sleep)
    assert serial.phases.count("sleep") == 30 // wake * sleep
    quiet_s = 0.0 if sleep else NEVER_S  # a network that never sleeps is rejected
    options = replace(QUIET, wake=wake, sleep=sleep, sleep_when_quiet_s=quiet_s)
    pipelined(recipe, store, stream, options, serial)


def test_sleep_that_is_dreamt_is_fed_no_images_and_equals_the_serial_reference_with_images(store: Store) -> None:
    stream = Stream.random(12 * BATCH)
    serial = Serial(DREAMING, stream, wake=3, sleep=2)
    store.write(stream.images, stream.labels)
    run = Run(store, DREAMING, replace(QUIET, wake=3, sleep=2)).start()
    steps = len(serial.phases)
    wait_until(lambda: run.failures or (run.barriers and run.barriers[-1].step == steps), DEADLINE_S, "all steps")
    last = run.stop()
    assert not [name for name in last.tensors if name.startswith("replay.")]
    assert_same(last.tensors, serial.states[steps])


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (RECIPE, QUIET),
        (RECIPE.change(replay=3, optimizer="sgd"), replace(QUIET, stages=(2, 1))),
        (CONDITIONED.change(replay=3), QUIET),
        (RECIPE.change(replay=3, drift=SENSITIVE), QUIET),
        (RECIPE.change(warmup_samples=9 * BATCH), QUIET),
        (CONDITIONED, replace(QUIET, wake=3, sleep=2)),
        (CONDITIONED.change(replay=3, replay_buffer=9), replace(QUIET, wake=2, sleep=2)),
        (EVOKED.change(replay=3), replace(QUIET, wake=5, sleep=4)),
        (DREAMING, replace(QUIET, wake=3, sleep=2)),
        (with_fast_weights(RECIPE.change(replay=3)), replace(QUIET, stages=(1, 2))),
    ],
    ids=[
        "plain",
        "replay",
        "conditioned",
        "drift",
        "warm-up",
        "sleep",
        "sleep and replay",
        "evoked",
        "dreams",
        "fast weights",
    ],
)
def test_stopped_and_resumed_anywhere(store: Store, recipe: Recipe, options: Options) -> None:
    """Five learners after one another, each from the state that the one before left, with samples coming in."""
    stream = Stream.random(SAMPLES)
    serial = Serial(recipe, stream, wake=options.wake, sleep=options.sleep)
    resume = None
    for at in range(0, SAMPLES, 24):
        part = slice(at, at + 24)
        store.write(stream.images[part], stream.labels[part], size=5)
        run = Run(store, recipe, options, resume=resume).start()
        target = store.journal.head.seq // BATCH * BATCH - (BATCH if at % 48 else 0)
        run.wait_applied(target)
        last = run.stop()
        assert_same(last.tensors, serial.states[last.step])
        assert last.seq == serial.seqs[last.step]
        resume = resume_state(last)
    run = Run(store, recipe, options, resume=resume).start()
    run.wait_applied(SAMPLES)
    last = run.stop()
    assert_same(last.tensors, serial.states[last.step])
    assert last.seq == SAMPLES


def test_resumed_from_the_middle_after_a_crash(store: Store) -> None:
    """What was learned after the last saving barrier is learned again, the same."""
    recipe = CONDITIONED.change(replay=3)
    stream = Stream.random(SAMPLES)
    serial = Serial(recipe, stream, wake=3, sleep=1)
    store.write(stream.images, stream.labels)
    options = replace(QUIET, wake=3, sleep=1)
    crashed = Run(store, recipe, options, checkpoint_every_samples=28).start()
    crashed.wait_applied(SAMPLES // 2)
    assert crashed.pipeline.abort(DEADLINE_S)
    saving = [each for each in crashed.barriers if each.saves]
    assert len(saving) >= 2
    for barrier in saving:
        assert_same(barrier.tensors, serial.states[barrier.step])
    resumed = Run(store, recipe, options, resume=resume_state(saving[-1])).start()
    resumed.wait_applied(SAMPLES)
    last = resumed.stop()
    assert_same(last.tensors, serial.states[last.step])
    assert last.seq == SAMPLES


def test_an_incomplete_microbatch_waits_in_deterministic_mode(store: Store) -> None:
    stream = Stream.random(4 * BATCH + 3)
    serial = Serial(RECIPE, stream)
    store.write(stream.images, stream.labels, size=7)
    run = Run(store, RECIPE, linger_s=0.0).start()
    run.wait_applied(4 * BATCH)
    last = run.stop()
    assert last.seq == 4 * BATCH
    assert_same(last.tensors, serial.states[4])


def test_an_incomplete_microbatch_is_learned_when_the_stream_pauses(store: Store) -> None:
    """And the next one ends on the grid again."""
    stream = Stream.random(4 * BATCH)
    part = 2 * BATCH + 1
    store.write(stream.images[:part], stream.labels[:part])
    run = Run(store, RECIPE, partial="flush", linger_s=0.01).start()
    run.wait_applied(part)
    store.write(stream.images[part:], stream.labels[part:])
    run.wait_applied(4 * BATCH)
    run.stop()
    sizes = [len(micro.labels) for micro, _ in run.observed]
    assert sum(sizes) == 4 * BATCH
    ends = [micro.seq for micro, _ in run.observed]
    assert {BATCH, 2 * BATCH, part, 3 * BATCH, 4 * BATCH} <= set(ends)
    labels = [int(label) for micro, _ in run.observed for label in micro.labels]
    assert labels == stream.labels.tolist()
