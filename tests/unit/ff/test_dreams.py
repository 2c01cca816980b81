"""Decoders, what they remember, and the rows that a network dreams."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ffstream.ff.activities import Activities
from ffstream.ff.decoder import Statistics, Store
from ffstream.ff.decoding import LinearDecoding, with_values
from ffstream.ff.memories import Remembered, Sizes, StatisticsMemory, StoreMemory
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.util.option_errors import OptionError
from tests import battery
from tests.unit.ff import formulas
from tests.unit.ff.formulas import CONDITIONED, EVOKED, SMALL, UNSUPERVISED

CPU = torch.device("cpu")
MEMORIES: dict[str, Any] = {
    "store": {"kind": "store", "samples": 20},
    "statistics": {"kind": "statistics", "rank": 8},
}
DREAMS = {"kind": "dreams", "blurs": 1}


def sleeping(memory: str = "store") -> Recipe:
    """A network with labels that dreams in sleep."""
    decoder = {"kind": "linear", "memory": MEMORIES[memory]}
    return EVOKED.change(wake=2, sleep=2, negatives=DREAMS, decoder=decoder)


def unlabelled(memory: str = "store") -> Recipe:
    """A network without labels that compares dreams with decoded memories."""
    return UNSUPERVISED.change(negatives=DREAMS, decoder={"kind": "linear", "memory": MEMORIES[memory]})


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoding_of(network: Network, layer: int = 0) -> LinearDecoding:
    decoding = network.layers[layer].decoding
    assert decoding is not None
    return decoding


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("make", [sleeping, unlabelled], ids=["sleep", "unlabelled"])
def test_networks_that_dream_pass_the_battery(make: Any, memory: str, tmp_path: Path) -> None:
    battery.check_layer(make(memory), tmp_path)


# --- the decoder -------------------------------------------------------------------------------------------------


def test_the_gradients_of_each_decoder_equal_autograd() -> None:
    network = formulas.random_network(sleeping())
    images_BI, labels_B = formulas.random_images(7, 16), formulas.random_labels(7, 4)
    given = network.input.forward(images_BI, labels_B, 5, "wake")
    assert given.pixels_BI is not None
    target_BI = images_BI / 255
    for layer in network.layers:
        decoding = decoding_of(network, layer.index)
        own = formulas.leaves(decoding.parameters.views)
        given = layer.forward(given)
        want = torch.autograd.grad(formulas.decoder_loss(own, given.h_NF, target_BI), list(own.values()))
        layer.update()
        for name, each in zip(own, want, strict=True):
            assert torch.allclose(decoding.parameters.gradients[name].double(), each, rtol=1e-4, atol=1e-6)
        target_BI = formulas.normalized(layer.formulas.options.normalization, given.h_NF.clone())


def test_a_decoder_does_not_change_what_its_layer_learns() -> None:
    with_decoder, without = Network(SMALL.change(decoder="linear")), Network(SMALL)
    for network in (with_decoder, without):
        formulas.learn(network, 1, 6)
    state = with_decoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in without.state_dict().items())


def test_a_decoder_knows_what_it_misses() -> None:
    network = Network(sleeping())
    decoding = decoding_of(network)
    assert math.isnan(network.layers[0].figures().decoder_error)
    images_BI, labels_B = formulas.random_images(7, 16), formulas.labels_for(network.recipe, 7)
    network.learn(images_BI, labels_B, 0, "wake")
    assert network.layers[0].figures().decoder_error == pytest.approx(decoding.error())
    mean_BI = (images_BI / 255).mean(0).expand(7, -1)
    assert decoding.error() > 1, "it decodes worse than the mean before it has learned"
    decoding.parameters.views["weight"].zero_()
    decoding.parameters.views["bias"].copy_(mean_BI[0])
    network.learn(images_BI, labels_B, 1, "wake")
    assert decoding.error() == pytest.approx(1.0, abs=1e-5)
    network.learn(images_BI[:1].expand(7, -1), labels_B, 2, "wake")
    assert math.isnan(decoding.error()), "there is nothing to explain"


def test_a_layer_without_a_decoder_has_no_decoder_error() -> None:
    network = Network(SMALL)
    formulas.learn(network, 1, 2)
    assert math.isnan(network.layers[0].figures().decoder_error)


def test_a_decoder_learns_the_images_of_the_stream() -> None:
    network = Network(sleeping().change(learning_rate=0.0, decoder={"learning_rate": 0.02}))
    images_BI = formulas.random_images(7, 16)
    for step in range(400):
        network.learn(images_BI, formulas.labels_for(network.recipe, 7), step, "wake")
    last = network.input.forward(images_BI, formulas.labels_for(network.recipe, 7), 401, "wake")
    decoded_BI = decoding_of(network).decode(network.layers[0].forward(last).h_NF)
    target_BI = images_BI / 255
    before = (target_BI - target_BI.mean(0)).square().mean()
    assert float((decoded_BI - target_BI).square().mean()) < 0.5 * float(before)


def test_grey_values_are_given_in_the_order_of_the_decoded_pixels() -> None:
    decoded = torch.tensor([[0.7, -0.1, 0.4], [2.0, 3.0, 1.0]])
    values = torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.2, 0.9]])
    assert torch.equal(with_values(decoded, values), torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.9, 0.1]]))


# --- memories ----------------------------------------------------------------------------------------------------


def remembered(first: int, count: int, units: int = 6, labels: int = 3) -> Remembered:
    """Samples whose activities and grey values say which they are."""
    n_B = torch.arange(first, first + count)
    return Remembered(n_B[:, None].float().expand(-1, units) + 1, n_B % labels, n_B[:, None].float().expand(-1, 2))


def test_a_store_keeps_the_newest_samples_and_mixes_those_of_one_label() -> None:
    memory = StoreMemory(Store(samples=10), Sizes((6,), 3, 2), CPU)
    assert memory.is_empty
    for first in range(0, 28, 4):
        memory.add(remembered(first, 4), generator())
    drawn = memory.draw(None, 300, generator())
    found_BF = drawn.h_BF - 1
    assert set(found_BF.unique().tolist()) == set(range(18, 28))
    assert (found_BF % 3 == drawn.labels_B[:, None]).all()
    sources = [set(row.tolist()) for row in found_BF]
    assert {len(each) for each in sources} == {1, 2}
    two = next(index for index, each in enumerate(sources) if len(each) == 2)
    assert float(drawn.values_BV[two, 0]) == sum(sources[two]) / 2


def test_a_store_gives_single_samples_and_samples_of_a_label() -> None:
    memory = StoreMemory(Store(samples=10), Sizes((6,), 3, 2), CPU)
    memory.add(remembered(0, 30), generator())  # more than it keeps
    single = memory.draw(None, 50, generator(), mixed=False)
    assert (single.h_BF == single.h_BF[:, :1]).all()
    assert torch.equal(single.values_BV[:, 0], single.h_BF[:, 0] - 1)
    wanted_B = torch.arange(60) % 3
    assert torch.equal(memory.draw(wanted_B, 60, generator()).labels_B, wanted_B)


@pytest.mark.parametrize("mixed", [True, False])
def test_without_labels_a_store_gives_each_of_the_newest_samples_once(mixed: bool) -> None:
    memory = StoreMemory(Store(samples=10), Sizes((6,), 1, 2), CPU)
    for first in range(0, 28, 4):
        memory.add(remembered(first, 4), generator())
    drawn = memory.draw(None, 5, generator(), mixed=mixed)
    newest = set(range(23, 28))
    sources = [set(row.tolist()) for row in drawn.h_BF - 1]
    assert set().union(*sources) <= newest
    if not mixed:
        assert sorted(map(tuple, sources)) == [(each,) for each in sorted(newest)]
    assert float(drawn.values_BV[:, 0].sum()) == sum(newest), "each is the first one once, and the second one once"


def test_a_store_gives_any_sample_for_a_label_that_it_has_not_seen() -> None:
    memory = StoreMemory(Store(samples=10), Sizes((6,), 3, 2), CPU)
    seen = remembered(0, 9)
    memory.add(Remembered(*(each[seen.labels_B < 2] for each in seen)), generator())
    found_B = memory.draw(torch.full((60,), 2), 60, generator()).labels_B
    assert set(found_B.tolist()) == {0, 1}


def test_weights_hold_some_samples_of_a_large_store_and_a_network_dreams_from_them() -> None:
    recipe = sleeping().change(decoder={"memory": {"samples": 400}})
    network = taught(recipe, 40)
    weights = network.weights()
    assert [len(weights[f"layers.0.decoder.memory.{name}"]) for name in ("h", "labels", "values")] == [256] * 3
    again = Network(recipe)
    again.load_weights(weights)
    assert torch.equal(decoding_of(again).memory.state["h"][:256], decoding_of(network).memory.state["h"][:256])
    assert int(decoding_of(again).memory.state["added"]) == 256
    assert decoding_of(again).dream(9, 3).pixels_BI.any()


def test_maps_are_mixed_by_areas_with_all_channels_of_a_place() -> None:
    memory = StoreMemory(Store(samples=10, blurs=2), Sizes((8, 8, 3), 1, 0), CPU)
    n_B = torch.arange(10)
    seen = Remembered(n_B[:, None].float().expand(-1, 192), torch.zeros_like(n_B), torch.zeros(10, 0))
    memory.add(seen, generator())
    maps = memory.draw(None, 200, generator()).h_BF.view(-1, 8, 8, 3)
    assert (maps == maps[..., :1]).all()
    two_B = maps.flatten(1).amax(1) > maps.flatten(1).amin(1)
    changes = (maps[two_B, :, 1:] != maps[two_B, :, :-1]).float().mean()
    assert 0 < float(changes) < 0.35, "independent places change half of the time"


def test_statistics_draw_what_was_seen_of_each_label() -> None:
    memory = StatisticsMemory(Statistics(rank=256, rate=1e-3), Sizes((3,), 2, 2), CPU)
    assert memory.is_empty
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 0.3]])
    means = torch.tensor([[8.0, 9.0, 7.0], [20.0, 5.0, 6.0]])
    draws = generator(3)
    for _ in range(60):
        labels_B = torch.randint(0, 2, (100,), generator=draws)
        h_BF = means[labels_B] + torch.randn(100, 3, generator=draws) @ mixing
        memory.add(Remembered(h_BF, labels_B, labels_B[:, None].float().expand(-1, 2)), draws)
    wanted_B = torch.arange(8000) % 2
    drawn = memory.draw(wanted_B, 8000, draws)
    for label in range(2):
        h_BF = drawn.h_BF[wanted_B == label]
        assert torch.allclose(h_BF.mean(0), means[label], atol=0.15)
        assert torch.allclose(torch.cov(h_BF.t()), mixing.t() @ mixing, atol=0.2)
        assert (drawn.values_BV[wanted_B == label] == label).all()


def test_statistics_hold_no_sample() -> None:
    memory = StatisticsMemory(Statistics(rank=4), Sizes((6,), 3, 2), CPU)
    sizes = {name: value.numel() for name, value in memory.state.items()}
    for first in range(0, 600, 30):
        memory.add(remembered(first, 30), generator(first))
    assert {name: value.numel() for name, value in memory.state.items()} == sizes
    assert sizes == {"mean": 18, "sketch": 72, "values": 6, "counts": 3}


# --- dreams ------------------------------------------------------------------------------------------------------


def taught(recipe: Recipe, steps: int = 6) -> Network:
    network = Network(recipe)
    formulas.learn(network, 1, steps, "wake" if recipe.wake else "interleaved")
    return network


@pytest.mark.parametrize("memory", MEMORIES)
def test_sleep_needs_no_images(memory: str) -> None:
    nothing_BI, labels_B = torch.zeros(0, 16, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64)
    states = []
    for images_BI in (nothing_BI, formulas.random_images(7, 16)):
        network = taught(sleeping(memory))
        network.learn(images_BI, labels_B, 9, "sleep")
        states.append(network.state_dict())
    battery.assert_equal(*states)


def test_sleep_shows_single_memories() -> None:
    network, labels_B = taught(sleeping()), torch.zeros(7, dtype=torch.int64)
    given = network.input.forward(torch.zeros(0, 16, dtype=torch.uint8), labels_B, 9, "sleep")
    dream = decoding_of(network).dream(7, 9, mixed=False)
    assert torch.allclose(given.h_NF + network.input.weights()["mean"], dream.pixels_BI, atol=1e-6)
    assert torch.equal(given.labels_N, dream.labels_B)


def test_sleep_teaches_layers_and_nothing_else() -> None:
    network = taught(sleeping())
    before = network.state_dict()
    network.learn(torch.zeros(0, 16, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64), 9, "sleep")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"layers.0.parameters", "layers.1.parameters"} <= changed
    assert not [name for name in changed if "decoder" in name or name.startswith("input.")]


def test_a_network_that_remembers_nothing_dreams_black() -> None:
    given = Network(sleeping()).input.forward(
        torch.zeros(0, 16, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), 0, "sleep"
    )
    assert given.h_NF.shape == (3, 16)
    assert not given.h_NF.any()


def test_dreams_have_the_grey_values_of_what_they_remember_and_a_known_label() -> None:
    network = taught(sleeping())
    wanted_B = torch.arange(40) % 4
    dream = decoding_of(network).dream(40, 3, wanted_B)
    known = {label for step in range(1, 7) for label in formulas.labels_for(network.recipe, 7, seed=step).tolist()}
    assert set(dream.labels_B.tolist()) <= known
    values = (
        torch.cat([formulas.random_images(7, 16, seed=step).float() / 255 for step in range(1, 7)]).sort(1).values
    )
    middles = (values[:, None] + values[None]) / 2
    for row in dream.pixels_BI.sort(1).values:
        assert float((middles - row).abs().amax(2).min()) < 1e-6
    assert torch.equal(decoding_of(network).dream(40, 3, wanted_B).pixels_BI, dream.pixels_BI)
    assert not torch.equal(decoding_of(network).dream(40, 4, wanted_B).pixels_BI, dream.pixels_BI)


def test_without_labels_dreams_stand_beside_decoded_memories() -> None:
    recipe = unlabelled()
    images_BI, labels_B = formulas.random_images(7, 16), formulas.random_labels(7, 4)
    early = taught(recipe, 1).input.forward(images_BI, labels_B, 20, "interleaved")
    assert (early.read_only, len(early.h_NF)) == (0, 14), "hybrids, before the decoder has learned anything"
    network = taught(recipe)
    given = network.input.forward(images_BI, labels_B, 20, "interleaved")
    assert (given.read_only, given.positives, given.samples, given.fresh) == (7, 7, 7, 7)
    plain = taught(UNSUPERVISED).input.forward(images_BI, labels_B, 20, "wake")
    assert torch.allclose(given.h_NF[:7], plain.h_NF)
    mean = network.input.weights()["mean"]
    decoding = decoding_of(network)
    for at, mixed in ((7, False), (14, True)):
        assert torch.allclose(given.h_NF[at : at + 7] + mean, decoding.dream(7, 20, mixed=mixed).pixels_BI, atol=1e-6)


def test_the_gradients_beside_rows_that_are_only_read_equal_autograd() -> None:
    recipe = unlabelled()
    network = taught(recipe)
    images_BI, labels_B = formulas.random_images(7, 16), formulas.random_labels(7, 4)
    given: Activities = network.input.forward(images_BI, labels_B, 20, "interleaved")
    for layer, shape in zip(network.layers, recipe.input_shapes(), strict=True):
        own = formulas.leaves(layer.parameters.views)
        loss = formulas.layer_loss(recipe.layers[layer.index], own, given, None, shape, recipe.labels)
        want = torch.autograd.grad(loss, list(own.values()))
        given = layer.forward(given)
        layer.update()
        for name, each in zip(own, want, strict=True):
            assert torch.allclose(layer.parameters.gradients[name].double(), each, rtol=1e-4, atol=1e-7)
    assert [len(each) for each in given.carried] == [7, 7]
    assert network.readout is not None
    readout = formulas.leaves(network.readout.parameters.views)
    want = torch.autograd.grad(formulas.readout_loss(recipe.readout, readout, given), list(readout.values()))
    network.readout.learn(given)
    for name, each in zip(readout, want, strict=True):
        assert torch.allclose(network.readout.parameters.gradients[name].double(), each, rtol=1e-4, atol=1e-7)


# --- options -----------------------------------------------------------------------------------------------------

WRONG: Mapping[str, tuple[Recipe, dict[str, Any], str]] = {
    "no decoder": (sleeping(), {"decoder": "none"}, 'decoder = "none": negatives = "dreams" needs one'),
    "phases without labels": (
        unlabelled().change(objective={"kind": "threshold"}),
        {"wake": 2, "sleep": 2},
        "wake = 2: layers without labels compare dreams with decoded memories",
    ),
    "label-conditioned rows": (
        CONDITIONED,
        {"decoder": "linear"},
        'decoder = "linear": needs rows that hold no label',
    ),
    "dreams in a later layer only": (
        sleeping(),
        {
            "layers": [
                layer.model_dump() | {"negatives": kind}
                for layer, kind in zip(sleeping().layers, ("random", "dreams"), strict=True)
            ]
        },
        'layers[0].negatives = "random": negatives = "dreams" must be the same in all layers',
    ),
    "no such memory": (sleeping(), {"decoder": {"kind": "linear", "memory": "film"}}, 'memory = "film"'),
}


@pytest.mark.parametrize(("base", "options", "message"), WRONG.values(), ids=WRONG)
def test_options_that_do_not_go_with_dreams_are_errors(base: Recipe, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        base.change(**options)
    assert message in str(caught.value)


def test_dreams_keep_no_picture() -> None:
    assert sleeping().change(replay=0).draws_from_replay is False
    assert sleeping().change(negatives="random").draws_from_replay is True
    assert unlabelled().draws_from_replay is False
