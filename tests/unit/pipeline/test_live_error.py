"""The error of the newest weights, from the training pass."""

import pytest
import torch

from ffstream.ff.activities import Scored
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.live_error import LIVE, LiveError
from tests.unit.pipeline.run import BATCH, CONDITIONED, DEADLINE_S, RECIPE, Run, Store, Stream, resume_state

SAMPLES = 30 * BATCH


def serial_wrong(recipe: Recipe, stream: Stream) -> int:
    """Errors of the newest weights on each microbatch before it is learned, by a classifier."""
    network, wrong = Network(recipe), 0
    for step in range(SAMPLES // BATCH):
        part = slice(step * BATCH, (step + 1) * BATCH)
        images, labels = torch.from_numpy(stream.images[part]), torch.from_numpy(stream.labels[part])
        wrong += int((network.classifier().predict(images).labels_B != labels).sum())
        network.learn(images, labels, step)
    return wrong


@pytest.mark.parametrize("stages", [(), (3,)], ids=["each", "one"])
def test_it_is_the_error_of_predictions_by_the_newest_weights(store: Store, stages: tuple[int, ...]) -> None:
    recipe = RECIPE.change(ema_samples=0.0, preprocessing="none")
    stream = Stream.random(SAMPLES)
    store.write(stream.images, stream.labels)
    run = Run(store, recipe, stages=stages).start()
    run.wait_applied(SAMPLES)
    state = run.stop().progress[LIVE]
    assert state["samples"] == SAMPLES
    assert state["wrong"] == serial_wrong(recipe, stream)


def test_each_microbatch_counts_once_and_fresh_samples_only(store: Store) -> None:
    stream = Stream.random(SAMPLES)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE.change(replay=3)).start()
    run.wait_applied(SAMPLES)
    last = run.stop()
    state = last.progress[LIVE]
    assert state["samples"] == SAMPLES
    assert 0 < state["wrong"] < SAMPLES
    assert run.metrics.registry.get_sample_value("ffstream_live_error_ratio") == state["wrong"] / SAMPLES


def test_a_resumed_run_continues_the_count(store: Store) -> None:
    stream = Stream.random(SAMPLES)
    for each in (slice(0, SAMPLES // 2), slice(SAMPLES // 2, SAMPLES)):
        store.write(stream.images[each], stream.labels[each])
    whole = Run(store, RECIPE).start()
    whole.wait_applied(SAMPLES)
    saved = whole.save()
    want = whole.stop().progress[LIVE]
    early = Run(store, RECIPE, checkpoint_every_samples=SAMPLES // 2).start()
    early.wait_applied(SAMPLES)
    assert early.pipeline.abort(DEADLINE_S)
    half = next(each for each in early.barriers if each.saves)
    resumed = Run(store, RECIPE, resume=resume_state(half)).start()
    resumed.wait_applied(SAMPLES)
    assert half.seq < saved.seq
    assert resumed.stop().progress[LIVE] == want


def test_label_conditioned_layers_have_none(store: Store) -> None:
    stream = Stream.random(SAMPLES)
    store.write(stream.images, stream.labels)
    run = Run(store, CONDITIONED).start()
    run.wait_applied(SAMPLES)
    assert run.stop().progress[LIVE]["samples"] == 0
    assert run.metrics.registry.get_sample_value("ffstream_live_error_ratio") is None


def test_many_microbatches_between_barriers_are_counted_in_between() -> None:
    live = LiveError()
    score_BL = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    for _ in range(100):
        live.add(Scored(score_BL, torch.tensor([1, 1])))
    assert live.record.recent == 0.5
    live.add(None)
    live.count()
    assert live.record.total == 0.5
    assert live.record.window_samples == 200
