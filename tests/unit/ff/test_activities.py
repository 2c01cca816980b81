"""What a layer hands on, and with which labels."""

import pytest
import torch

from ffstream.ff.layer import Activities, Polarity
from ffstream.ff.negatives import random_wrong_labels
from ffstream.ff.presets import Recipe
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL, variant

B = 6
SEQ = 4
NEUTRAL = variant(SMALL, objective="threshold")
LABELLED = variant(NEUTRAL, hand_on="labelled", negatives="random")


@pytest.mark.parametrize("normalization", ["rms", "unit"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_neutral_activities_know_no_label(normalization: str, dtype: torch.dtype) -> None:
    recipe = variant(NEUTRAL, normalization=normalization)
    network = formulas.random_network(recipe)
    images_BI, labels_B = formulas.random_images(B, 16, dtype), formulas.random_labels(B, 4)
    first, later = network.first.averaged(), network.later[0].averaged()
    mean_I = formulas.pixels(images_BI).mean(0)
    x_BO = formulas.first_layer_neutral(recipe, formulas.leaves(first, first=True), images_BI, mean_I)
    y_BO = formulas.later_layer(recipe, formulas.leaves(later, first=False), x_BO, None)
    given = network.first.forward(images_BI, labels_B, SEQ, "interleaved")
    assert torch.allclose(given.h_NO.double(), x_BO, atol=1e-5)
    assert torch.equal(given.labels_N, labels_B)
    assert torch.allclose(network.later[0].forward(given).h_NO.double(), y_BO, atol=1e-5)


@pytest.mark.parametrize("polarity", ["interleaved", "wake", "sleep"])
def test_labelled_activities_are_a_row_for_each_polarity(polarity: Polarity) -> None:
    network = formulas.random_network(LABELLED)
    images_BI, own_B = formulas.random_images(B, 16, torch.uint8), formulas.random_labels(B, 4)
    first, later = network.first.averaged(), network.later[0].averaged()
    wrong_B = random_wrong_labels(own_B, 4, LABELLED.seed, SEQ)
    labels_N = {"interleaved": torch.cat((own_B, wrong_B)), "wake": own_B, "sleep": wrong_B}[polarity]
    given = network.first.forward(images_BI, own_B, SEQ, polarity)
    mean_I = formulas.pixels(images_BI).mean(0)
    repeated = torch.cat([images_BI] * (len(labels_N) // B))
    x_NO = formulas.first_layer(LABELLED, formulas.leaves(first, first=True), repeated, mean_I, labels_N)
    y_NO = formulas.later_layer(LABELLED, formulas.leaves(later, first=False), x_NO, labels_N)
    assert given.polarity == polarity
    assert torch.equal(given.labels_N, labels_N)
    assert torch.allclose(given.h_NO.double(), x_NO, atol=1e-5)
    assert torch.allclose(network.later[0].forward(given).h_NO.double(), y_NO, atol=1e-5)


@pytest.mark.parametrize("recipe", [NEUTRAL, LABELLED], ids=["neutral", "labelled"])
def test_the_update_changes_nothing_that_was_handed_on(recipe: Recipe) -> None:
    """The next layer reads activities while this one updates itself."""
    network = formulas.random_network(variant(recipe, learning_rate=0.1, widths=(6, 5, 4)))
    images_BI, labels_B = formulas.random_images(B, 16, torch.float32), formulas.random_labels(B, 4)
    given = network.first.forward(images_BI, labels_B, SEQ, "interleaved")
    for layer in (network.first, *network.later):
        kept = Activities(given.h_NO.clone(), given.labels_N.clone(), SEQ, "interleaved")
        layer.update()
        assert torch.equal(given.h_NO, kept.h_NO)
        assert torch.equal(given.labels_N, kept.labels_N)
        if layer is not network.later[-1]:
            given = network.later[layer.index].forward(given)


def test_images_and_labels_are_left_as_they_came() -> None:
    for dtype in (torch.uint8, torch.float32):
        network = formulas.random_network(variant(NEUTRAL, learning_rate=0.1))
        images_BI, labels_B = formulas.random_images(B, 16, dtype), formulas.random_labels(B, 4)
        images_before, labels_before = images_BI.clone(), labels_B.clone()
        network.learn(images_BI, labels_B, SEQ)
        network.classifier().predict(images_BI)
        assert torch.equal(images_BI, images_before)
        assert torch.equal(labels_B, labels_before)


def test_what_shows_in_the_label_pixels_of_an_image_does_not_count() -> None:
    images_BI, labels_B = formulas.random_images(B, 16, torch.uint8), formulas.random_labels(B, 4)
    scribbled_BI = images_BI.clone()
    scribbled_BI[:, :4] = 255 - scribbled_BI[:, :4]
    states = []
    for images in (images_BI, scribbled_BI):
        network = formulas.random_network(variant(NEUTRAL, learning_rate=0.1, centering=False))
        network.learn(images, labels_B, SEQ)
        states.append(network.state()["layers.0.parameters"])
    assert torch.equal(*states)
