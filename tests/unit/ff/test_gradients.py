"""Every closed-form gradient against autograd on the formulas."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from ffstream.ff.layer import Activities, LayerWeights, Polarity
from ffstream.ff.negatives import random_wrong_labels
from ffstream.ff.network import LaterLayer, Network
from ffstream.ff.presets import Recipe
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL, variant

B = 7
SEQ = 11

OBJECTIVES = [
    ("softmax", "interleaved"),
    ("paired", "interleaved"),
    ("threshold", "interleaved"),
    ("threshold", "wake"),
    ("threshold", "sleep"),
]

each_objective = pytest.mark.parametrize(("objective", "polarity"), OBJECTIVES)
each_contrast = pytest.mark.parametrize(("objective", "polarity"), OBJECTIVES[1:])
each_goodness = pytest.mark.parametrize("goodness", ["sum_squares", "mean_squares"])
each_normalization = pytest.mark.parametrize("normalization", ["rms", "unit"])


def wrong_labels(recipe: Recipe, labels_B: Tensor, goodness_BL: Tensor) -> Tensor:
    if recipe.negatives == "random":
        return random_wrong_labels(labels_B, recipe.labels, recipe.seed, SEQ)
    return formulas.hardest(goodness_BL, labels_B)


def check_first_layer(
    recipe: Recipe, images_BI: Tensor, polarity: Polarity, network: Network, mean_I: Tensor
) -> None:
    """One step of the first layer; `mean_I` is the mean of all images up to these."""
    labels_B = formulas.random_labels(len(images_BI), recipe.labels)
    before = network.first.averaged()
    network.first.forward(images_BI, labels_B, SEQ, polarity)
    network.first.update()
    weights = formulas.leaves(before, first=True)

    def goodness_of(labels_B: Tensor) -> Tensor:
        return formulas.goodness(recipe, formulas.first_layer(recipe, weights, images_BI, mean_I, labels_B))

    with torch.no_grad():
        goodness_BL = formulas.every_label(recipe, len(images_BI), goodness_of)
    wrong_B = wrong_labels(recipe, labels_B, goodness_BL)
    loss = formulas.label_loss(recipe, goodness_of, labels_B, wrong_B, polarity)
    got = formulas.moved_by(before, network.first.averaged(), first=True)
    formulas.assert_close(got, formulas.gradients(loss, weights))
    assert network.first.figures().loss == pytest.approx(loss.item(), rel=1e-4)


@each_objective
@each_goodness
@each_normalization
def test_first_layer(objective: str, polarity: Polarity, goodness: str, normalization: str) -> None:
    ways = ["neutral"] if objective == "softmax" else ["neutral", "labelled"]
    options = product(ways, ["hardest", "random"], [False, True], [torch.uint8, torch.float32])
    for hand_on, negatives, centering, dtype in options:
        recipe = variant(
            SMALL,
            objective=objective,
            goodness=goodness,
            normalization=normalization,
            hand_on=hand_on,
            negatives=negatives,
            centering=centering,
        )
        images_BI = formulas.random_images(B, recipe.inputs, dtype)
        mean_I = formulas.pixels(images_BI).mean(0) if centering else torch.zeros(recipe.inputs)
        check_first_layer(recipe, images_BI, polarity, formulas.random_network(recipe), mean_I)


def test_the_mean_that_centres_is_of_all_images_seen() -> None:
    recipe = variant(SMALL, centering=True, learning_rate=0.0)
    network = formulas.random_network(recipe)
    seen = [formulas.random_images(n, recipe.inputs, torch.uint8, seed=n) for n in (7, 3, 5)]
    for images_BI in seen:
        network.learn(images_BI, formulas.random_labels(len(images_BI), recipe.labels), SEQ)
    last = formulas.random_images(B, recipe.inputs, torch.uint8, seed=9)
    mean_I = formulas.pixels(torch.cat([*seen, last])).mean(0)
    moving = formulas.random_network(variant(recipe, learning_rate=SMALL.learning_rate))
    moving.load(network.state())
    network.first.figures()
    check_first_layer(moving.recipe, last, "interleaved", moving, mean_I)


@pytest.mark.parametrize("objective", ["softmax", "paired"])
def test_first_layer_of_the_shipped_width_and_a_full_microbatch(objective: str) -> None:
    """All labels' activities do not fit a core's cache here, so they are computed in parts."""
    recipe = variant(SMALL, inputs=25, widths=(512, 5), labels=10, objective=objective, alpha=0.05)
    recipe = variant(recipe, batch_size=70, young_batch_size=70)
    images_BI = formulas.random_images(70, recipe.inputs, torch.uint8)
    mean_I = formulas.pixels(images_BI).mean(0)
    check_first_layer(recipe, images_BI, "interleaved", formulas.random_network(recipe, scale=0.1), mean_I)


def step_later(layer: LaterLayer, given: Activities) -> tuple[LayerWeights, formulas.Weights]:
    """One step of a later layer: its weights before, and the gradient that it went along."""
    before = layer.averaged()
    layer.forward(given)
    layer.update()
    return before, formulas.moved_by(before, layer.averaged(), first=False)


def activities(rows: int, width: int) -> Tensor:
    """Rows like those that a relu hands on, of different lengths."""
    x_NI = torch.randn(rows, width, generator=torch.Generator().manual_seed(5)).relu_()
    return x_NI * torch.linspace(0.2, 3, rows)[:, None]


@each_objective
@each_goodness
@each_normalization
@pytest.mark.parametrize("negatives", ["hardest", "random"])
def test_later_layer_on_neutral_activities(
    objective: str, polarity: Polarity, goodness: str, normalization: str, negatives: str
) -> None:
    recipe = variant(SMALL, objective=objective, goodness=goodness, normalization=normalization, negatives=negatives)
    x_BI, labels_B = activities(B, recipe.widths[0]), formulas.random_labels(B, recipe.labels)
    layer = formulas.random_network(recipe).later[0]
    before, got = step_later(layer, Activities(x_BI, labels_B, SEQ, polarity))
    weights = formulas.leaves(before, first=False)

    def goodness_of(labels_B: Tensor) -> Tensor:
        return formulas.goodness(recipe, formulas.later_layer(recipe, weights, x_BI, labels_B))

    with torch.no_grad():
        goodness_BL = formulas.every_label(recipe, B, goodness_of)
    wrong_B = wrong_labels(recipe, labels_B, goodness_BL)
    loss = formulas.label_loss(recipe, goodness_of, labels_B, wrong_B, polarity)
    formulas.assert_close(got, formulas.gradients(loss, weights))
    assert layer.figures().loss == pytest.approx(loss.item(), rel=1e-4)


@each_contrast
@each_goodness
@each_normalization
@pytest.mark.parametrize("label_vectors", [True, False])
def test_later_layer_on_labelled_rows(
    objective: str, polarity: Polarity, goodness: str, normalization: str, label_vectors: bool
) -> None:
    recipe = variant(
        SMALL,
        hand_on="labelled",
        objective=objective,
        goodness=goodness,
        normalization=normalization,
        label_vectors=label_vectors,
    )
    own_B = formulas.random_labels(B, recipe.labels)
    labels_N = torch.cat((own_B, (own_B + 1) % recipe.labels)) if polarity == "interleaved" else own_B
    x_NI = activities(len(labels_N), recipe.widths[0])
    layer = formulas.random_network(recipe).later[0]
    before, got = step_later(layer, Activities(x_NI, labels_N, SEQ, polarity))
    weights = formulas.leaves(before, first=False)
    goodness_N = formulas.goodness(recipe, formulas.later_layer(recipe, weights, x_NI, labels_N))
    loss = formulas.contrast(recipe, goodness_N[:B], goodness_N[-B:], polarity)
    formulas.assert_close(got, formulas.gradients(loss, weights))
    assert len(before.vectors_LO) == (recipe.labels if label_vectors else 0)
    figures = layer.figures()
    assert figures.loss == pytest.approx(loss.item(), rel=1e-4)
    if polarity != "sleep":
        assert figures.goodness_positive == pytest.approx(goodness_N[:B].mean().item(), rel=1e-4)
    if polarity != "wake":
        assert figures.goodness_negative == pytest.approx(goodness_N[-B:].mean().item(), rel=1e-4)


def test_a_row_of_zeros_does_no_harm() -> None:
    """A sample for which every unit of the layer before is silent."""
    for hand_on in ("neutral", "labelled"):
        network = formulas.random_network(variant(SMALL, objective="paired", hand_on=hand_on, learning_rate=0.1))
        rows = B if hand_on == "neutral" else 2 * B
        given = Activities(torch.zeros(rows, SMALL.widths[0]), torch.arange(rows) % SMALL.labels, SEQ, "interleaved")
        network.later[0].forward(given)
        network.later[0].update()
        assert all(part.isfinite().all() for part in network.later[0].averaged())


def test_figures_are_means_since_the_last_reading() -> None:
    recipe = variant(SMALL, learning_rate=0.0, objective="paired")
    network = formulas.random_network(recipe)
    images_BI, labels_B = formulas.random_images(B, 16, torch.uint8), formulas.random_labels(B, 4)
    network.learn(images_BI, labels_B, SEQ)
    once = network.later[0].figures()
    network.learn(images_BI, labels_B, SEQ)
    network.learn(images_BI, labels_B, SEQ)
    assert network.later[0].figures() == pytest.approx(once, rel=1e-5)
    assert all(math.isnan(value) for value in network.later[0].figures()), "nothing was learned since"
