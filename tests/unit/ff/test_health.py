"""The health of layers: figures that show what would otherwise fail without an error."""

import math
from typing import Any

import pytest
import torch

from ffstream.ff import health
from ffstream.ff.layer_monitor import HEALTH_EVERY, LayerFigures
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from tests.unit.ff import formulas
from tests.unit.ff.formulas import CONDITIONED, CONTRASTED, SMALL, UNSUPERVISED

MANY = 2048 // SMALL.batch_size + 1  # sampled microbatches after which contradictions are known


def figures_after(recipe: Recipe, samples: int, network: Network | None = None, **batch: Any) -> list[LayerFigures]:
    """The figures of each layer once so many microbatches were sampled. A batch may be given."""
    network = network or Network(recipe)
    found: list[LayerFigures] = []
    for step in range(samples * HEALTH_EVERY):
        images_BI = batch.get("images", formulas.random_images(recipe.batch_size, recipe.inputs, seed=step))
        labels_B = batch.get("labels", formulas.random_labels(recipe.batch_size, recipe.labels, seed=step))
        network.learn(images_BI, labels_B, step)
        found = [layer.figures() for layer in network.layers]
    return found


def test_a_unit_is_dead_once_it_was_silent_in_eight_sampled_microbatches() -> None:
    network = formulas.random_network(SMALL.change(learning_rate=0.0))
    layer = network.layers[1]
    layer.parameters.views["bias"][:3] = -1000.0
    assert math.isnan(figures_after(SMALL, health.SILENT_MICROBATCHES - 1, network)[1].health.dead_units)
    assert figures_after(SMALL, 1, network)[1].health.dead_units == 3 / 12
    layer.parameters.views["bias"][0] = 1000.0
    assert figures_after(SMALL, 1, network)[1].health.dead_units == 2 / 12


def test_the_norm_is_that_of_the_newest_weights() -> None:
    network = formulas.random_network(SMALL.change(learning_rate=0.0))
    want = [float(layer.parameters.views["weight"].double().norm()) for layer in network.layers]
    assert [each.health.weight_norm for each in figures_after(SMALL, 1, network)] == pytest.approx(want)


def test_the_margin_is_over_the_strongest_wrong_label() -> None:
    G_BL = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]])
    assert health.margin_by_label(G_BL, torch.tensor([0, 1])) == pytest.approx((0.5 - 1.0) / 2)


def test_separation_is_a_half_by_chance_and_one_for_what_was_learned() -> None:
    recipe = SMALL.change(learning_rate=0.03)
    images, labels = formulas.random_images(7, 16), formulas.random_labels(7, 4)
    for each in figures_after(recipe, 20, images=images, labels=labels):
        assert each.separation > 0.8
    shares = []
    network = Network(recipe.change(learning_rate=0.0))
    for seed in range(60):
        network.learn(formulas.random_images(7, 16, seed=seed), formulas.random_labels(7, 4, seed=seed + 99), seed)
        shares.append(network.layers[0].figures().separation)
    assert 0.35 < sum(shares) / len(shares) < 0.65


@pytest.mark.parametrize("recipe", [SMALL, CONTRASTED, CONDITIONED], ids=["all", "one", "rows"])
def test_different_images_do_not_contradict(recipe: Recipe) -> None:
    found = figures_after(recipe, MANY)
    assert found[0].health.contradictions == 0
    assert math.isnan(found[1].health.contradictions)


def test_an_image_with_two_labels_contradicts() -> None:
    """All other labels of a sample are negatives, so each of the two is positive and negative."""
    images, labels = formulas.random_images(7, 16), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    images[4] = images[1]
    images[5] = images[1]  # the label of 1, too
    found = figures_after(SMALL, MANY, images=images, labels=labels)[0].health.contradictions
    assert found == pytest.approx(3 / 7)


def test_a_wrong_label_contradicts_if_it_is_the_right_one_of_an_equal_image() -> None:
    x_BI, own_B = torch.tensor([[1.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 1, 2, 3])
    assert health.contradicting_labels(x_BI, own_B, torch.tensor([1, 2, 2, 0])) == 2


def test_blends_of_equal_images_contradict() -> None:
    images = formulas.random_images(1, UNSUPERVISED.inputs).repeat(7, 1)
    found = figures_after(UNSUPERVISED, MANY, images=images)[0].health.contradictions
    assert found > 0.9


def test_figures_do_not_change_what_is_learned() -> None:
    watched, alone = Network(CONTRASTED), Network(CONTRASTED)
    figures_after(CONTRASTED, 3, watched)
    for step in range(3 * HEALTH_EVERY):
        alone.learn(formulas.random_images(7, 16, seed=step), formulas.random_labels(7, 4, seed=step), step)
    for name, value in alone.state_dict().items():
        assert torch.equal(watched.state_dict()[name], value)
