"""overflow = skip: a layer runs ahead of a slow one, which learns from the freshest activities."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ffstream.ff.activities import Activities
from ffstream.ff.network import build
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe
from tests.support import wait_until
from tests.unit.pipeline.run import BATCH, CONDITIONED, DEADLINE_S, QUIET, RECIPE, Gated, Run, Store, Stream

STEPS = 24
SKIP = replace(QUIET, overflow="skip", queue_depth=10)  # room for the warm-up's barriers


class Spy:
    """What a layer was handed, and whether it still held the same when it was learned from."""

    def __init__(self, layer: Any) -> None:
        self.learned: list[int] = []
        self.damaged: list[int] = []
        self._given = self._copy = torch.empty(0)
        forward, update = layer.forward, layer.update

        def spy_forward(given: Activities) -> Activities:
            self._given, self._copy = given.h_NF, given.h_NF.clone()
            self.learned.append(given.step)
            result: Activities = forward(given)
            return result

        def spy_update() -> None:
            if not torch.equal(self._given, self._copy):
                self.damaged.append(self.learned[-1])
            update()

        layer.forward, layer.update = spy_forward, spy_update


def start_with_the_first_in_hand(store: Store, run: Run, stream: Stream, gate: Gated) -> None:
    """The rest is written only then: a stage that is late to take the first microbatch would have it given up."""
    store.write(stream.images[:BATCH], stream.labels[:BATCH])
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the second stage hangs")
    store.write(stream.images[BATCH:], stream.labels[BATCH:])


@pytest.mark.parametrize("recipe", [RECIPE, CONDITIONED], ids=["label-free", "label-conditioned"])
def test_a_slow_stage_skips_and_the_fast_one_does_not_wait(store: Store, recipe: Recipe) -> None:
    recipe = recipe.change(widths=[8, 7])
    stream = Stream.random(STEPS * BATCH)
    run = Run(store, recipe, SKIP, publish_every=1000)
    first, second = run.stages
    spy = Spy(second.layers[0])
    gate = Gated(second.layers[0])
    start_with_the_first_in_hand(store, run, stream, gate)
    wait_until(lambda: first.last_seq == STEPS * BATCH, DEADLINE_S, "the first stage has learned everything")
    assert run.pipeline.applied_seq == 0
    gate.open()
    run.wait_applied(STEPS * BATCH)
    last = run.stop()
    skipped = run.pipeline.describe()[1]["skipped"]
    assert skipped == STEPS - len(spy.learned)
    assert skipped >= STEPS - 1 - 2 * SKIP.queue_depth
    assert run.learned == len(spy.learned) * BATCH
    assert run.pipeline.describe()[0]["skipped"] == 0
    assert spy.learned[-1] == STEPS - 1, "the freshest activities are kept"
    assert spy.learned == sorted(set(spy.learned))
    # The warm-up's barriers at 1, 2, 4, 8, 16, one when idle perhaps, and the last: none is lost.
    steps = [each.step for each in run.barriers]
    assert {1, 2, 4, 8, 16, STEPS} <= set(steps)
    assert [each.version for each in run.barriers] == list(range(1, len(steps) + 1))
    assert not spy.damaged, "activities were written over while they were learned from"
    # Each stage is as if it had learned serially from what it did learn from.
    input, (layer_0, layer_1) = build(recipe, Placement())
    images, labels = torch.from_numpy(stream.images), torch.from_numpy(stream.labels)
    for step in range(STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        activities = layer_0.forward(input.forward(images[part], labels[part], step, "interleaved"))
        layer_0.update()
        if step in spy.learned:
            layer_1.forward(activities)
            layer_1.update()
    for layer in (layer_0, layer_1):
        for name, value in layer.state_dict().items():
            assert torch.equal(last.tensors[f"layers.{layer.index}.{name}"], value), name


def test_applied_seq_passes_microbatches_that_were_skipped_last(store: Store) -> None:
    """The barrier behind the last sample has passed every stage: nothing up to there is left to be learned."""
    stream = Stream.random(STEPS * BATCH)
    run = Run(store, RECIPE.change(widths=[8, 7]), replace(SKIP, queue_depth=6), publish_every=1000)
    second = run.stages[1]
    gate = Gated(second.layers[0])
    start_with_the_first_in_hand(store, run, stream, gate)
    # Six barriers (at 1, 2, 4, 8, 16 and the last, when idle) fill the queue, and all else gives way to them.
    wait_until(lambda: run.inboxes[1].skipped == STEPS - 1, DEADLINE_S, "all but the first is skipped")
    gate.open()
    wait_until(lambda: run.barriers and run.barriers[-1].seq == STEPS * BATCH, DEADLINE_S, "the last barrier")
    assert run.pipeline.applied_seq == STEPS * BATCH


def test_samples_are_never_skipped_before_the_first_stage(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE, replace(SKIP, queue_depth=1))
    gate = Gated(run.stages[0].layers[0])
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the first stage hangs")
    wait_until(lambda: len(run.inboxes[0]), DEADLINE_S, "its inbox is full")
    gate.open()
    wait_until(lambda: run.barriers and run.barriers[-1].seq == STEPS * BATCH, DEADLINE_S, "the last barrier")
    run.stop()
    assert run.pipeline.describe()[0]["skipped"] == 0
    assert run.stages[0].layers[0].state_dict()["samples"] == STEPS * BATCH


def test_with_block_the_fast_stage_waits_and_nothing_is_skipped(store: Store) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE, replace(QUIET, queue_depth=2), publish_every=1000)
    first, second, _ = run.stages
    gate = Gated(second.layers[0])
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the second stage hangs")
    wait_until(lambda: len(run.inboxes[1]) == 2 and len(run.inboxes[0]) == 2, DEADLINE_S, "all queues are full")
    assert first.last_seq < 5 * BATCH
    gate.open()
    run.wait_applied(STEPS * BATCH)
    run.stop()
    assert [each["skipped"] for each in run.pipeline.describe()] == [0, 0, 0]
    assert run.learned == STEPS * BATCH
