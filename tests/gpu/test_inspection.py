"""What people see of a network on a CUDA device is what they would see of the same network on the CPU."""

import pytest
import torch

from ffstream.ff import inspection
from ffstream.ff.classifier import Classifier
from ffstream.ff.presets import PRESETS
from tests.harness.crashing.presets import small_recipe
from tests.unit.ff import formulas

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("preset", PRESETS)
def test_answers_equal_those_of_the_cpu(preset: str, device: str) -> None:
    recipe = small_recipe(preset)
    network = formulas.random_network(recipe.change(ema_samples=0.0))
    formulas.learn(network, 1, 2)
    here = network.classifier()
    there = Classifier(recipe, {name: value.to(device) for name, value in here.weights.items()})
    images_BI, labels_B = formulas.random_images(20, recipe.inputs), formulas.random_labels(20, recipe.labels)
    for want, got in zip(
        inspection.compare(here, images_BI, labels_B), inspection.compare(there, images_BI, labels_B), strict=True
    ):
        assert torch.allclose(want.right_B, got.right_B, rtol=1e-3, atol=1e-3)
        assert torch.allclose(want.wrong_B, got.wrong_B, rtol=1e-3, atol=1e-3)
    asked = (images_BI[0], 3, 5, images_BI[1])
    for shown, seen in zip(inspection.show(here, *asked), inspection.show(there, *asked), strict=True):
        assert torch.allclose(shown.right_F, seen.right_F, rtol=1e-3, atol=1e-3)
        assert torch.allclose(shown.wrong_F, seen.wrong_F, rtol=1e-3, atol=1e-3)
        assert seen.goodness_right == pytest.approx(shown.goodness_right, rel=1e-2, abs=1e-3)
    assert torch.allclose(inspection.filters(here, 0, 5), inspection.filters(there, 0, 5), rtol=1e-3, atol=1e-4)
    if recipe.read_layers:
        parts = zip(here.logit_parts(images_BI).items(), there.logit_parts(images_BI).items(), strict=True)
        for (index, want_BL), (other, got_BL) in parts:
            assert index == other
            assert torch.allclose(want_BL, got_BL.cpu(), rtol=1e-3, atol=1e-3)
