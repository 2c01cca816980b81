"""A layer notices that the concept has changed, and learns the new one without what came before."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ffstream.data import load
from ffstream.data.streams import label_permutation_at
from ffstream.ff.activities import Activities
from ffstream.ff.adaptation import CumulativeSum
from ffstream.ff.drift import Restart
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from tests.unit.ff import formulas
from tests.unit.ff.formulas import CONDITIONED, SMALL, UNSUPERVISED

THRESHOLD = 5.0


def watching(recipe: Recipe, threshold: float = 0.5) -> Recipe:
    """With a drift test on every microbatch."""
    return recipe.change(drift={"kind": "restart", "threshold": threshold, "every": 1, "rows": 4})


# --- the test ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=40))
def test_ema_weights_are_behind_when_errors_in_a_row_exceed_the_threshold(errors: list[tuple[int, int]]) -> None:
    """Since they were last behind, the differences of some last microbatches sum to more than the threshold."""
    test = CumulativeSum(Restart(threshold=THRESHOLD), 100)
    differences: list[int] = []
    for ema, newest in errors:
        differences.append(ema - newest)
        largest = max(sum(differences[at:]) for at in range(len(differences)))
        found = test.compare(ema, newest, 4)
        assert found == (largest > THRESHOLD)
        if found:
            differences = []


def compared(errors: Iterable[tuple[int, int]], rows: int = 32) -> tuple[CumulativeSum, int]:
    """A test that has seen the errors of the newest and of the EMA weights on one microbatch after another, and how
    often the EMA weights were behind."""
    test, behind = CumulativeSum(Restart(every=1, rows=rows), 100), 0
    for step, (newest, ema) in enumerate(errors):
        test.needs_ema(step, newest, rows)
        behind += test.compare(ema, newest, rows)
        test.passed(10)
    return test, behind


def test_a_layer_that_learns_faster_than_its_ema_follows_has_not_drifted() -> None:
    """As a layer of the preset `overlay` in one pass: its errors fall, and those of its EMA weights follow."""
    test, behind = compared((28 - step // 3, min(32, 33 - step // 3)) for step in range(72))
    assert behind > 0
    assert test.restarts == 0
    assert test.outdated(torch.tensor([1, 100])) is None


def test_a_changed_concept_is_a_drift_at_any_usual_error() -> None:
    for usual in (1, 4, 8, 12):
        stationary = [(usual, usual - 1)] * 100
        assert compared(stationary)[1] == 0
        test, behind = compared([*stationary, (31, 31), (16, 31), (10, 31)])
        assert test.restarts == behind == 1, usual
        assert test.outdated(torch.tensor([20, 31])) is not None


def test_every_fourth_microbatch_is_compared() -> None:
    test = CumulativeSum(Restart(every=4, rows=32), 100)
    assert [test.rows_due(step, 128) for step in range(6)] == [32, 0, 0, 0, 32, 0]
    assert test.rows_due(8, 5) == 5


def test_ema_weights_are_compared_seldom_unless_there_is_a_reason() -> None:
    test = CumulativeSum(Restart(every=4, rows=32, threshold=THRESHOLD), 100)
    assert [test.needs_ema(step, 1, 32) for step in (4, 8, 12, 16, 20)] == [False, False, False, True, False]
    assert test.needs_ema(24, 9, 32)  # many errors
    assert not test.needs_ema(28, 1, 32)
    test.compare(2, 1, 32)
    assert test.needs_ema(28, 1, 32)  # the EMA weights were worse
    test.compare(1, 2, 32)
    assert not test.needs_ema(36, 1, 32)


def test_many_errors_become_usual() -> None:
    test = CumulativeSum(Restart(every=4, rows=32), 100)
    for look in range(100):
        test.needs_ema(4 * look, 1, 32)
    reasons = [test.needs_ema(404, 16, 32) for _ in range(200)]
    assert reasons[0]
    assert not reasons[-1]


def test_errors_at_the_start_of_a_stream_are_usual_then() -> None:
    test = CumulativeSum(Restart(every=4, rows=32), 100)
    test.needs_ema(0, 28, 32)
    assert not test.needs_ema(4, 28, 32)


def test_samples_from_before_the_change_are_outdated_until_the_buffer_has_lost_them() -> None:
    test = CumulativeSum(Restart(threshold=THRESHOLD), 25)
    ages_R = torch.tensor([1, 10, 20, 25])
    for ema_wrong, newest_wrong in [(0, 0), (0, 2), (3, 0)]:  # the change: before the third
        assert not test.compare(ema_wrong, newest_wrong, 4)
        test.passed(10)
        assert test.outdated(ages_R) is None
    assert test.compare(3, 0, 4)
    found = test.outdated(ages_R)
    assert found is not None
    assert found.tolist() == [False, False, True, True]  # 10 samples since the change
    test.passed(10)
    found = test.outdated(ages_R)
    assert found is not None
    assert found.tolist() == [False, False, False, True]
    test.passed(10)
    assert test.outdated(ages_R) is None


# --- a layer -------------------------------------------------------------------------------------------------------


def with_bad_ema(recipe: Recipe) -> Network:
    """A network whose newest weights have learned one microbatch well, and whose EMA weights are random."""
    network = Network(recipe)
    for _ in range(60):
        formulas.learn(network, 4, 4)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith(".ema"):
            value.normal_(generator=torch.Generator().manual_seed(5))
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("base", [SMALL, CONDITIONED], ids=["label-free", "label-conditioned"])
def test_the_ema_and_the_schedule_restart_when_the_newest_weights_predict_better(base: Recipe) -> None:
    objective = {} if base is SMALL else {"objective": {"kind": "paired", "alpha": 0.5}}
    network = with_bad_ema(watching(base.change(learning_rate=0.03, **objective)))
    newest = network.state_dict()
    formulas.learn(network, 4, 4)
    for index, layer in enumerate(network.layers):
        restarted, before = layer.state_dict(), newest[f"layers.{index}.parameters"]
        assert float(restarted["samples"]) == base.batch_size
        weight = 1 / (1 + 1 / 5)  # the reach is a fifth of the samples since the restart
        assert torch.allclose(restarted["ema"], before.lerp(restarted["parameters"], weight))


@pytest.mark.parametrize("base", [SMALL, CONDITIONED], ids=["label-free", "label-conditioned"])
def test_nothing_restarts_while_the_ema_weights_predict_as_well(base: Recipe) -> None:
    network = Network(watching(base, threshold=10.0))
    for _ in range(60):
        formulas.learn(network, 4, 4)
    assert [float(layer.parameters.samples) for layer in network.layers] == [60 * base.batch_size] * 2


def test_a_readout_restarts_by_itself() -> None:
    network = with_bad_ema(watching(UNSUPERVISED.change(readout={"kind": "softmax", "learning_rate": 0.1})))
    assert network.readout is not None
    before = network.readout.state_dict()
    formulas.learn(network, 4, 4)
    after = network.readout.state_dict()
    assert int(after["drift.restarts"]) == 1 + int(before["drift.restarts"])
    assert float(after["samples"]) < float(before["samples"])


def test_the_loss_leaves_out_replayed_samples_from_before_the_change() -> None:
    """The gradient is that of the mean loss over the other samples."""
    network = formulas.random_network(watching(SMALL))
    layer, images_BI = network.layers[0], formulas.random_images(7, SMALL.inputs)
    labels_B = formulas.random_labels(7, SMALL.labels)
    state = layer.state_dict()
    layer.load_state_dict(state | {"drift.since_change": torch.tensor(12)})
    ages_R = torch.tensor([13, 4, 12, 90])
    given = network.input.forward(images_BI, labels_B, 1, "interleaved", ages_R)
    kept = torch.tensor([0, 1, 2, 4, 5])
    before = Activities(given.h_NF[kept].clone(), labels_B[kept], None, 1, "interleaved")
    own = formulas.leaves(layer.parameters.views)
    loss = formulas.layer_loss(SMALL.layers[0], own, before, None, (4, 4), SMALL.labels)
    wanted = torch.autograd.grad(loss, list(own.values()))
    layer.forward(given)
    layer.update()
    for name, want in zip(own, wanted, strict=True):
        assert torch.allclose(layer.parameters.gradients[name].double(), want, rtol=1e-4, atol=1e-6), name


def test_learning_returns_the_score_of_the_fresh_samples_by_the_weights_before_it() -> None:
    recipe = SMALL.change(ema_samples=0.0)
    base = recipe.model_dump()["layers"]
    layers = [{**layer, "score_weight": weight} for layer, weight in zip(base, (0.5, 2.0), strict=True)]
    network = formulas.random_network(recipe.change(layers=layers, preprocessing="none"))
    images_BI, labels_B = formulas.random_images(7, recipe.inputs), formulas.random_labels(7, recipe.labels)
    want_BL = network.classifier().predict(images_BI[:5]).goodness_BL
    scored = network.learn(images_BI, labels_B, 3, ages_R=torch.tensor([1, 2]))
    assert scored is not None
    assert torch.allclose(scored.score_BL, want_BL, rtol=1e-4)
    assert torch.equal(scored.labels_B, labels_B[:5])


# --- digits --------------------------------------------------------------------------------------------------------


def permuted_digits(samples: int, change: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Digits, whose labels are permuted from sample `change` on."""
    digits = load("embedded").train
    at = np.random.default_rng(0).integers(0, len(digits), samples)
    permute = label_permutation_at(change)
    for first in range(0, samples, batch):
        part = at[first : first + batch]
        labels = permute(first, digits.labels[part])
        yield torch.from_numpy(digits.images[part]).flatten(1), torch.from_numpy(labels.astype(np.int64))


def test_permuted_labels_are_served_soon() -> None:
    options = make_recipe("fast", widths=[64, 64], batch_size=64, warmup_batch_size=32, warmup_samples=0, replay=0)
    before, after = {}, {}
    for kind in ("restart", "none"):
        network, wrong = Network(options.change(drift=kind)), []
        for step, (images_BI, labels_B) in enumerate(permuted_digits(10_240, 7_680, 64)):
            wrong.append(float((network.classifier().predict(images_BI).labels_B != labels_B).float().mean()))
            network.learn(images_BI, labels_B, step)
        before[kind], after[kind] = np.mean(wrong[100:120]), np.mean(wrong[-20:])
    assert max(before.values()) < 0.15, before
    assert after["restart"] < 0.25, after
    assert after["none"] > 0.5, after
