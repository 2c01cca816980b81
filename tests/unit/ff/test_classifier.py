"""Prediction equals brute force: write each label into the image, go forward, sum the goodness."""

import pytest
import torch
from torch import Tensor

from ffstream.ff.classifier import Classifier
from ffstream.ff.layer import Placement
from ffstream.ff.network import Network
from ffstream.ff.presets import Recipe
from tests.support import assert_bounded
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL, variant

B = 300  # more than are computed at a time
DEEP = variant(SMALL, widths=(12, 10, 7), objective="paired")


def brute_force(recipe: Recipe, classifier: Classifier, images_BI: Tensor) -> Tensor:
    """Goodness (B, L)."""
    layers = [formulas.leaves(each, first=index == 0) for index, each in enumerate(classifier.layers)]
    mean_I = classifier.layers[0].mean_I if recipe.centering else torch.zeros(recipe.inputs)

    def goodness_of(labels_B: Tensor) -> Tensor:
        h_BO = formulas.first_layer(recipe, layers[0], images_BI, mean_I, labels_B)
        x_BO = formulas.first_layer_neutral(recipe, layers[0], images_BI, mean_I)
        parts = [formulas.goodness(recipe, h_BO)]
        for weights in layers[1:]:
            if recipe.hand_on == "neutral":
                h_BO = formulas.later_layer(recipe, weights, x_BO, labels_B)
                x_BO = formulas.later_layer(recipe, weights, x_BO, None)
            else:
                h_BO = formulas.later_layer(recipe, weights, h_BO, labels_B)
            parts.append(formulas.goodness(recipe, h_BO))
        counted = parts if recipe.score_first_layer or len(parts) == 1 else parts[1:]
        return torch.stack(counted).sum(0)

    with torch.no_grad():
        return formulas.every_label(recipe, len(images_BI), goodness_of)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("score_first_layer", [True, False])
@pytest.mark.parametrize("normalization", ["rms", "unit"])
@pytest.mark.parametrize("goodness", ["sum_squares", "mean_squares"])
@pytest.mark.parametrize(("hand_on", "label_vectors"), [("neutral", True), ("labelled", True), ("labelled", False)])
def test_prediction_is_brute_force(
    hand_on: str, label_vectors: bool, goodness: str, normalization: str, score_first_layer: bool, dtype: torch.dtype
) -> None:
    for centering, widths in ((False, (12, 10, 7)), (True, (12, 10, 7)), (True, (12,))):
        recipe = variant(
            DEEP,
            widths=widths,
            hand_on=hand_on,
            label_vectors=label_vectors,
            goodness=goodness,
            normalization=normalization,
            score_first_layer=score_first_layer,
            centering=centering,
            learning_rate=0.01,
        )
        network = formulas.random_network(recipe)
        network.learn(formulas.random_images(7, 16, torch.uint8, seed=8), formulas.random_labels(7, 4), 0)
        images_BI = formulas.random_images(B, 16, dtype)
        prediction = network.classifier().predict(images_BI)
        want_BL = brute_force(recipe, network.classifier(), images_BI)
        assert prediction.goodness_BL.dtype == torch.float32
        assert torch.allclose(prediction.goodness_BL.double(), want_BL, rtol=1e-4, atol=1e-4)
        assert torch.equal(prediction.labels_B, prediction.goodness_BL.argmax(1))
        assert float(want_BL.std(1).max()) > 0.01, "equal goodness for all labels proves nothing"


def test_a_sample_is_predicted_the_same_in_any_company() -> None:
    classifier = formulas.random_network(DEEP).classifier()
    images_BI = formulas.random_images(B, 16, torch.uint8)
    together = classifier.predict(images_BI).goodness_BL
    alone = torch.cat([classifier.predict(image[None]).goodness_BL for image in images_BI])
    assert torch.allclose(alone, together, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 16, 17, 255, 256, 257])
def test_rows_that_fill_up_are_nobody(count: int) -> None:
    """Products in bf16 are of certain sizes only."""
    network = Network(DEEP, Placement(product_dtype=torch.bfloat16))
    images_BI = formulas.random_images(B, 16, torch.uint8)
    some = network.classifier().predict(images_BI[:count])
    assert some.labels_B.shape == (count,)
    every = network.classifier().predict(images_BI)
    assert torch.allclose(some.goodness_BL, every.goodness_BL[:count], rtol=1e-2)


@pytest.mark.timeout(600)
def test_queries_of_any_size_do_not_pile_up() -> None:
    """A product in bf16 is compiled for each number of rows, and kept."""
    program = """
from ffstream.ff.layer import Placement
from ffstream.ff.network import Network
from ffstream.ff.presets import Recipe

classifier = Network(Recipe(widths=(256, 256)), Placement(product_dtype=torch.bfloat16)).classifier()

def product(rows):
    {}

for rows in range(1, 257, 16):  # what each of the sizes that there are needs
    product(rows)
begin()
for rows in range(1, 257):
    product(rows)
"""
    assert_bounded(
        program,
        "classifier.predict(torch.zeros(rows, 784, dtype=torch.uint8))",
        "torch.zeros(rows, 784, dtype=torch.bfloat16) @ classifier.layers[0].weight_OI.t()",
    )


def test_no_images_get_no_labels() -> None:
    prediction = formulas.random_network(DEEP).classifier().predict(torch.empty(0, 16))
    assert prediction.labels_B.shape == (0,)
    assert prediction.goodness_BL.shape == (0, 4)


def test_a_classifier_does_not_change_while_the_network_learns() -> None:
    network = formulas.random_network(variant(DEEP, learning_rate=0.1, averaging_samples=20.0))
    images_BI, labels_B = formulas.random_images(7, 16, torch.uint8), formulas.random_labels(7, 4)
    classifier = network.classifier()
    before = classifier.predict(images_BI).goodness_BL
    network.learn(images_BI, labels_B, 0)
    assert torch.equal(classifier.predict(images_BI).goodness_BL, before)
    assert not torch.equal(network.classifier().predict(images_BI).goodness_BL, before)


def test_predicting_changes_nothing() -> None:
    network = formulas.random_network(DEEP)
    before = network.state()
    network.classifier().predict(formulas.random_images(B, 16, torch.uint8))
    after = network.state()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("hand_on", ["neutral", "labelled"])
def test_bfloat16_predicts_within_three_percent(hand_on: str) -> None:
    recipe = variant(DEEP, inputs=100, widths=(64, 64), hand_on=hand_on, labels=10)
    exact = formulas.random_network(recipe, scale=0.1)
    rounded = Network(recipe, Placement(product_dtype=torch.bfloat16))
    rounded.load(exact.state())
    images_BI = formulas.random_images(B, 100, torch.uint8)
    want, got = (each.classifier().predict(images_BI).goodness_BL for each in (exact, rounded))
    assert float((got - want).norm() / want.norm()) < 0.03
