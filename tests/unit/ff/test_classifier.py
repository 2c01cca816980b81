"""Predictions equal brute force: write each label into the image, run all layers, add up the goodness."""

import pytest
import torch
from torch import Tensor

from ffstream.ff.classifier import Classifier
from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe
from tests.battery import assert_equal
from tests.support import assert_bounded
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL

B = 300  # more than the classifier computes at a time
DEEP = SMALL.change(widths=[12, 8, 8], objective="paired")


def brute_force(recipe: Recipe, classifier: Classifier, images_BI: Tensor) -> Tensor:
    """The goodness (B, L), computed by trying every label with `formulas`."""
    layers = [formulas.leaves(layer_weights(classifier, index)) for index in range(len(recipe.layers))]
    x_BI = images_BI.double() / 255 if images_BI.dtype == torch.uint8 else images_BI.double()
    if recipe.preprocessing.kind == "running_mean":
        x_BI = x_BI - classifier.weights["input.mean"].double()
    columns = []
    with torch.no_grad():
        for label in range(recipe.labels):
            total_B = torch.zeros(len(images_BI), dtype=torch.float64)
            labels_B, given_BI = torch.full((len(images_BI),), label), x_BI
            for options, own, shape in zip(recipe.layers, layers, recipe.input_shapes(), strict=True):
                h_BF = formulas.with_label(options, own, given_BI, labels_B, shape, recipe.labels).relu()
                group = h_BF
                if options.label_scheme.kind == "groups":
                    group = h_BF.view(len(h_BF), recipe.labels, -1)[:, label]
                total_B += options.score_weight * formulas.goodness(options.goodness, group)
                label_free = formulas.preactivation(options, own, given_BI, shape, recipe.labels).relu()
                given_BI = label_free if recipe.activities == "label_free" else h_BF
            columns.append(total_B)
    return torch.stack(columns, 1)


def layer_weights(classifier: Classifier, index: int) -> dict[str, Tensor]:
    """The weights of one layer, by their names in the layer."""
    prefix = f"layers.{index}."
    return {name.removeprefix(prefix): v for name, v in classifier.weights.items() if name.startswith(prefix)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("normalization", ["rms", "unit"])
@pytest.mark.parametrize("goodness", ["sum_squares", "mean_squares", "sum"])
@pytest.mark.parametrize(
    ("activities", "schemes"),
    [
        ("label_free", ("pixels", "vectors", "vectors")),
        ("label_free", ("groups", "groups", "vectors")),
        ("label_conditioned", ("pixels", "vectors", "vectors")),
        ("label_conditioned", ("vectors", "none", "none")),
    ],
)
def test_prediction_equals_brute_force(
    activities: str, schemes: tuple[str, ...], goodness: str, normalization: str, dtype: torch.dtype
) -> None:
    for preprocessing, depth, first_weight in (("none", 3, 1.0), ("running_mean", 3, 0.0), ("running_mean", 1, 1.0)):
        layers = DEEP.model_dump()["layers"][:depth]
        for layer, scheme in zip(layers, schemes, strict=False):
            layer["label_scheme"] = {"kind": scheme}
        layers[0]["score_weight"] = first_weight
        recipe = DEEP.change(layers=layers, activities=activities, preprocessing=preprocessing)
        recipe = recipe.change(goodness=goodness, normalization=normalization)
        network = formulas.random_network(recipe)
        formulas.learn(network, 1, 2)
        images_BI = formulas.random_images(B, 16, dtype)
        prediction = network.classifier().predict(images_BI)
        want_BL = brute_force(recipe, network.classifier(), images_BI)
        assert prediction.goodness_BL.dtype == torch.float32
        assert torch.allclose(prediction.goodness_BL.double(), want_BL, rtol=1e-4, atol=1e-4)
        assert torch.equal(prediction.labels_B, prediction.goodness_BL.argmax(1))
        assert float(want_BL.std(1).max()) > 0.01, "equal goodness for all labels proves nothing"


def test_a_prediction_does_not_depend_on_the_other_samples_in_the_batch() -> None:
    classifier = formulas.random_network(DEEP).classifier()
    images_BI = formulas.random_images(B, 16)
    together = classifier.predict(images_BI).goodness_BL
    alone = torch.cat([classifier.predict(image[None]).goodness_BL for image in images_BI])
    assert torch.allclose(alone, together, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 16, 17, 255, 256, 257])
def test_padding_rows_do_not_change_predictions(count: int) -> None:
    """What the CPU computes is padded to a few sizes."""
    network = Network(DEEP, Placement(product_dtype=torch.bfloat16))
    images_BI = formulas.random_images(B, 16)
    some = network.classifier().predict(images_BI[:count])
    assert some.labels_B.shape == (count,)
    every = network.classifier().predict(images_BI)
    assert torch.allclose(some.goodness_BL, every.goodness_BL[:count], rtol=1e-2)


@pytest.mark.timeout(600)
def test_queries_of_many_sizes_do_not_leak_memory() -> None:
    """A bf16 product is compiled for each number of rows, and the compiled code is never freed."""
    program = """
from ffstream.ff.placement import Placement
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe

classifier = Network(recipe("stream", widths=[256, 256]), Placement(product_dtype=torch.bfloat16)).classifier()

def product(rows):
    {}

for rows in range(1, 257, 16):  # compile the sizes that predictions use
    product(rows)
begin()
for rows in range(1, 257):
    product(rows)
"""
    assert_bounded(
        program,
        "classifier.predict(torch.zeros(rows, 784, dtype=torch.uint8))",
        "torch.zeros(rows, 784, dtype=torch.bfloat16) @ classifier.weights['layers.0.weight'].t()",
    )


@pytest.mark.timeout(600)
def test_convolutions_of_many_sizes_do_not_fragment_memory() -> None:
    """Maps whose size differs from query to query leave gaps in the heap that fit no later map."""
    program = """
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe

classifier = Network(recipe("conv", image_shape=[16, 16])).classifier()

def predict(rows):
    images = torch.zeros(rows, 256, dtype=torch.uint8)
    {}

for rows in range(1, 257, 16):
    predict(rows)
begin()
for rows in range(1, 257, 3):
    predict(rows)
"""
    assert_bounded(program, "classifier.predict(images)", "classifier.goodness(images)")


def test_predicting_no_images_returns_no_labels() -> None:
    prediction = formulas.random_network(DEEP).classifier().predict(torch.empty(0, 16))
    assert prediction.labels_B.shape == (0,)
    assert prediction.goodness_BL.shape == (0, 4)


def test_a_classifier_does_not_change_while_the_network_learns() -> None:
    network = formulas.random_network(DEEP.change(learning_rate=0.1, ema_samples=20.0))
    images_BI, labels_B = formulas.random_images(7, 16), formulas.random_labels(7, 4)
    classifier = network.classifier()
    before = classifier.predict(images_BI).goodness_BL
    network.learn(images_BI, labels_B, 0)
    assert torch.equal(classifier.predict(images_BI).goodness_BL, before)
    assert not torch.equal(network.classifier().predict(images_BI).goodness_BL, before)


def test_predicting_changes_nothing() -> None:
    network = formulas.random_network(DEEP)
    before = network.state_dict()
    network.classifier().predict(formulas.random_images(B, 16))
    assert_equal(network.state_dict(), before)


@pytest.mark.parametrize("activities", ["label_free", "label_conditioned"])
def test_bfloat16_predicts_within_three_percent(activities: str) -> None:
    recipe = DEEP.change(image_shape=[10, 10], widths=[64, 64], activities=activities, labels=10)
    exact = formulas.random_network(recipe, scale=0.1)
    rounded = Network(recipe, Placement(product_dtype=torch.bfloat16))
    rounded.load_state_dict(exact.state_dict())
    images_BI = formulas.random_images(B, 100)
    want, got = (each.classifier().predict(images_BI).goodness_BL for each in (exact, rounded))
    assert float((got - want).norm() / want.norm()) < 0.03
