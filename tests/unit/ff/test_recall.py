"""Fast weights: what a layer recalls is what followed inputs like the one that it sees."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.fast_weights import Fixed, Hebbian, Recent, Remembering
from ffstream.ff.network import Network
from ffstream.ff.recall import Recall, extended
from ffstream.ff.recipe import Recipe
from ffstream.util.option_errors import OptionError
from tests.battery import assert_equal
from tests.unit.ff import formulas
from tests.unit.ff.formulas import CONDITIONED, SMALL, UNSUPERVISED

INPUTS, L = 5, 4
CPU = torch.device("cpu")
KINDS: list[Remembering] = [Hebbian(decay=0.9), Recent(decay=0.9), Fixed()]


def stream(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(count, INPUTS, generator=generator), torch.randint(0, L, (count,), generator=generator)


def rows(x_NI: Tensor, labels_N: Tensor, replayed: int = 0, replicas: int = 1) -> Activities:
    ages_R = torch.ones(replayed, dtype=torch.int64) if replayed else None
    return Activities(x_NI, labels_N, None, 1, "interleaved", ages_R=ages_R, replicas=replicas)


def read(options: Remembering, sizes: list[int], mean_rate: float = 0.01) -> tuple[Tensor, dict[str, Tensor]]:
    """What is recalled for a stream that is cut into microbatches of these sizes, and the state after them."""
    recall = Recall(options.model_copy(update={"mean_rate": mean_rate}), INPUTS, L, 0, CPU)
    x_NI, labels_N = stream(sum(sizes))
    found = []
    for part_NI, part_N in zip(x_NI.split(sizes), labels_N.split(sizes), strict=True):
        found.append(recall.forward(rows(part_NI, part_N))[:, INPUTS:])
        recall.update()
    return torch.cat(found), recall.state


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_each_sample_reads_all_that_came_before_it_whatever_the_microbatches(options: Remembering) -> None:
    """A mean that hardly moves makes the keys the same."""
    one, state = read(options, [1] * 12, 1e-30)
    for sizes in ([12], [5, 7], [1, 11], [4, 4, 4]):
        other, other_state = read(options, sizes, 1e-30)
        assert torch.allclose(one, other, atol=1e-5)
        assert torch.allclose(state["values"], other_state["values"], atol=1e-5)


def test_a_later_label_changes_nothing_that_was_read_before() -> None:
    x_NI, labels_N = stream(8)
    changed_N = labels_N.clone()
    changed_N[5] = (labels_N[5] + 1) % L
    first, second = (Recall(Hebbian(), INPUTS, L, 0, CPU).forward(rows(x_NI, each)) for each in (labels_N, changed_N))
    assert torch.equal(first[:6], second[:6])
    assert not torch.allclose(first[6:], second[6:], atol=1e-3)


def test_what_followed_the_same_input_is_recalled() -> None:
    recall = Recall(Hebbian(), INPUTS, L, 0, CPU)
    x_NI = torch.eye(INPUTS)[:L]
    recall.forward(rows(x_NI, torch.tensor([2, 0, 3, 1])))
    recall.update()
    m_NL = extended(Hebbian(), x_NI, recall.state | {"mean": torch.zeros(INPUTS)})[:, INPUTS:]
    assert m_NL.argmax(1).tolist() == [2, 0, 3, 1]


def test_extra_inputs_are_as_large_as_the_others() -> None:
    x_NI, labels_N = stream(9)
    for options in KINDS:
        recall = Recall(options, INPUTS, L, 0, CPU)
        recall.forward(rows(x_NI, labels_N))
        recall.update()
        both_NI = extended(options, 3 * x_NI, recall.state)
        assert torch.equal(both_NI[:, :INPUTS], 3 * x_NI)
        given, recalled = (part.square().mean(1) for part in both_NI.split([INPUTS, L], 1))
        assert torch.allclose(recalled, given, rtol=1e-4)


def test_replayed_samples_are_read_after_the_fresh_ones_and_change_nothing() -> None:
    x_NI, labels_N = stream(10)
    alone, beside = Recall(Hebbian(), INPUTS, L, 0, CPU), Recall(Hebbian(), INPUTS, L, 0, CPU)
    want_NI = alone.forward(rows(x_NI[:6], labels_N[:6]))
    got_NI = beside.forward(rows(x_NI, labels_N, replayed=4))
    alone.update()
    beside.update()
    assert torch.allclose(got_NI[:6], want_NI)
    assert_equal(beside.state, alone.state)
    kept = {name: value.clone() for name, value in alone.state.items()}
    alone.forward(rows(x_NI[:4], labels_N[:4], replayed=4))  # as in a sleep phase
    alone.update()
    assert_equal(alone.state, kept)


def test_one_of_several_replicas_forgets_as_fast_as_one_network() -> None:
    """Each of four replicas sees a quarter of the samples."""
    x_NI, labels_N = stream(1)
    states = []
    for replicas, steps in ((1, 8), (4, 2)):
        recall = Recall(Hebbian(decay=0.9, mean_rate=1e-30), INPUTS, L, 0, CPU)
        recall.state["values"].fill_(1.0)
        for _ in range(steps):
            recall.forward(rows(x_NI, labels_N, replicas=replicas))
            recall._values_BL.zero_()
            recall.update()
        states.append(recall.state["values"])
    assert torch.allclose(states[0], states[1])


def test_the_mean_of_one_of_several_replicas_moves_as_fast_as_that_of_one_network() -> None:
    means = []
    for replicas, steps in ((1, 8), (4, 2)):
        recall = Recall(Hebbian(mean_rate=0.1), INPUTS, L, 0, CPU)
        for _ in range(steps):
            recall.forward(rows(torch.ones(1, INPUTS), torch.zeros(1, dtype=torch.int64), replicas=replicas))
            recall.update()
        means.append(recall.state["mean"])
    assert torch.allclose(means[0], torch.full((INPUTS,), 1 - 0.9**8))
    assert torch.allclose(means[0], means[1])


REMEMBERING: Recipe = SMALL.change(
    layers=[
        {**layer, "fast_weights": kind}
        for layer, kind in zip(SMALL.model_dump()["layers"], ("none", "hebbian"), strict=True)
    ]
)


def test_a_network_with_fast_weights_starts_from_exported_weights_with_its_memory() -> None:
    network = Network(REMEMBERING)
    formulas.learn(network, 1, 3)
    other = Network(REMEMBERING)
    other.load_weights(network.weights())
    assert_equal(other.weights(), network.weights())
    assert network.weights()["layers.1.fast_weights.values"].abs().sum() > 0


def test_predictions_do_not_change_the_memory() -> None:
    network = Network(REMEMBERING)
    formulas.learn(network, 1, 3)
    classifier = network.classifier()
    before = {name: value.clone() for name, value in classifier.weights.items()}
    classifier.predict(formulas.random_images(5, REMEMBERING.inputs))
    assert_equal(classifier.weights, before)


@pytest.mark.parametrize(
    ("base", "options", "said"),
    [
        (SMALL, {"fast_weights": "hebbian"}, r'fast_weights = "hebbian": the first layer sees images only'),
        (CONDITIONED, {}, r"layers\[1\].fast_weights .* needs one row for each sample"),
        (UNSUPERVISED, {}, r"layers\[1\].fast_weights .* needs one row for each sample"),
    ],
)
def test_layers_that_cannot_have_fast_weights_are_rejected(base: Recipe, options: dict[str, Any], said: str) -> None:
    first, *later = base.model_dump()["layers"]
    layers = [first, *({**layer, "fast_weights": {"kind": "recent"}} for layer in later)]
    with pytest.raises(OptionError, match=said):
        base.change(**(options or {"layers": layers}))
