"""A readout in the pipeline: it reads what earlier layers computed, and equals the serial reference bit for bit."""

from dataclasses import replace

import pytest

from ffstream.errors import CheckpointIncompatible
from ffstream.ff.recipe import Recipe
from ffstream.util.labels import UNLABELLED
from tests.support import wait_until
from tests.unit.pipeline.run import (
    BATCH,
    DEADLINE_S,
    QUIET,
    RECIPE,
    UNSUPERVISED,
    Gated,
    Options,
    Run,
    Serial,
    Store,
    Stream,
    assert_same,
    resume_state,
)

SAMPLES = 30 * BATCH
READ = RECIPE.change(readout="softmax")
BASES = pytest.mark.parametrize("base", [READ, UNSUPERVISED], ids=["supervised", "unsupervised"])


def stream_for(recipe: Recipe) -> Stream:
    stream = Stream.random(SAMPLES)
    return stream.without_some_labels() if recipe.learns_unlabelled else stream


@BASES
@pytest.mark.parametrize("replay", [0, 3])
@pytest.mark.parametrize("stages", [(), (3,), (1, 2), (2, 1)])
def test_weights_are_the_serial_references(store: Store, base: Recipe, replay: int, stages: tuple[int, ...]) -> None:
    recipe = base.change(replay=replay, warmup_batch_size=2, warmup_samples=3 * BATCH)
    stream = stream_for(recipe)
    serial = Serial(recipe, stream)
    store.write(stream.images, stream.labels)
    run = Run(store, recipe, QUIET, stages=stages).start()
    run.wait_applied(SAMPLES)
    last = run.stop()
    assert_same(last.tensors, serial.states[last.step])
    assert last.weights["readout.weight"].any()


@BASES
@pytest.mark.parametrize("queue_depth", [1, 3])
def test_what_it_reads_does_not_change_while_earlier_layers_run_ahead(
    store: Store, base: Recipe, queue_depth: int
) -> None:
    """The last stage stands still until all queues are full, with each layer on a stage of its own."""
    stream = stream_for(base)
    serial = Serial(base, stream)
    store.write(stream.images, stream.labels)
    run = Run(store, base, QUIET, queue_depth=queue_depth, publish_every=1000)
    stages = run.stages
    gate = Gated(stages[-1].layers[0])
    run.start()
    wait_until(lambda: all(len(inbox) == queue_depth for inbox in run.inboxes), DEADLINE_S, "all queues are full")
    gate.open()
    run.wait_applied(SAMPLES)
    last = run.stop()
    assert_same(last.tensors, serial.states[last.step])


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (READ.change(replay=3), QUIET),
        (UNSUPERVISED.change(replay=3, replay_buffer=9), replace(QUIET, stages=(2, 1))),
        (UNSUPERVISED.change(replay=3), replace(QUIET, wake=3, sleep=2)),
    ],
    ids=["supervised", "unsupervised", "sleep"],
)
def test_stopped_and_resumed_anywhere(store: Store, recipe: Recipe, options: Options) -> None:
    """Also with samples without a label in the replay buffer."""
    stream = stream_for(recipe)
    serial = Serial(recipe, stream, wake=options.wake, sleep=options.sleep)
    resume = None
    for at in range(0, SAMPLES, 24):
        part = slice(at, at + 24)
        store.write(stream.images[part], stream.labels[part], size=5)
        run = Run(store, recipe, options, resume=resume).start()
        run.wait_applied(store.journal.head.seq // BATCH * BATCH - (BATCH if at % 48 else 0))
        last = run.stop()
        assert_same(last.tensors, serial.states[last.step])
        resume = resume_state(last)


def test_a_network_that_needs_labels_does_not_resume_with_unlabelled_samples_to_replay(store: Store) -> None:
    """It would learn from a label that does not exist."""
    recipe = RECIPE.change(replay=3)
    stream = Stream.random(SAMPLES)
    store.write(stream.images, stream.labels)
    run = Run(store, recipe).start()
    run.wait_applied(SAMPLES)
    resume = resume_state(run.stop())
    labels = resume.tensors["replay.labels"].clone()
    labels[3] = UNLABELLED
    with pytest.raises(CheckpointIncompatible, match="holds a label outside 0 to 3"):
        Run(store, recipe, resume=resume._replace(tensors={**resume.tensors, "replay.labels": labels}))


def test_its_loss_is_a_metric(store: Store) -> None:
    stream = stream_for(READ)
    store.write(stream.images, stream.labels)
    run = Run(store, READ).start()

    def loss() -> float | None:
        return run.metrics.registry.get_sample_value("ffstream_layer_loss", {"layer": "readout"})

    wait_until(lambda: loss() is not None, DEADLINE_S, "a barrier")
    assert 0 < (loss() or 0) < 5
    run.stop()
