"""Negative rows made from images, and the activities that an input makes with them."""

import pytest
import torch
from torch import Tensor

from ffstream.ff.image_negatives import Hybrid
from ffstream.ff.network import Network
from ffstream.ff.objective import Phase
from ffstream.ff.presets import recipe
from ffstream.util.option_errors import OptionError
from tests.unit.ff import formulas
from tests.unit.ff.formulas import UNSUPERVISED

B = 9


def noise(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("shape", [(28, 28), (5, 9), (8, 6, 3), (1, 2)])
@pytest.mark.parametrize("blurs", [0, 1, 6])
def test_a_hybrid_has_each_pixel_from_the_image_or_from_the_one_before(shape: tuple[int, ...], blurs: int) -> None:
    height, width, *channels = shape
    x_BHWC = torch.randn(B, height, width, *(channels or [1]), generator=torch.Generator().manual_seed(5))
    want_BHWC = formulas.hybrid(x_BHWC, noise((B, height, width)), blurs)
    made_BI = Hybrid(blurs=blurs).make(x_BHWC.flatten(1), shape, noise)
    assert torch.equal(made_BI, want_BHWC.flatten(1))
    assert not torch.equal(made_BI, x_BHWC.flatten(1))


def test_masks_have_large_areas_and_as_many_ones_as_zeros() -> None:
    masks_BHW = Hybrid().masks(200, 28, 28, noise)
    assert abs(float(masks_BHW.mean()) - 0.5) < 0.02
    changes = (masks_BHW != masks_BHW.roll(1, 2)).float().mean()
    assert float(changes) < 0.2, "noise without a blur changes at every second pixel"


@pytest.mark.parametrize(("phase", "positives"), [("interleaved", B), ("wake", B), ("sleep", 0)])
def test_the_input_makes_the_rows_of_the_phase(phase: Phase, positives: int) -> None:
    images_BI, labels_B = formulas.random_images(B, 16), formulas.random_labels(B, 4)
    made = Network(UNSUPERVISED).input.forward(images_BI, labels_B, 3, phase)
    plain = Network(UNSUPERVISED.change(negatives="random", label_scheme="vectors")).input
    x_BI = plain.forward(images_BI, labels_B, 3, phase).h_NF
    assert made.positives == positives
    assert torch.equal(made.h_NF[:positives], x_BI[:positives])
    assert len(made.h_NF) == len(made.labels_N) == (2 * B if phase == "interleaved" else B)
    if phase != "wake":
        negative_BI = made.h_NF[positives:]
        assert ((negative_BI == x_BI) | (negative_BI == x_BI.roll(1, 0))).all()
    assert torch.equal(made.labels_N[:B], labels_B)


def test_hybrids_depend_on_the_seed_and_the_step_only() -> None:
    images_BI, labels_B = formulas.random_images(B, 16), formulas.random_labels(B, 4)

    def rows(seed: int, step: int) -> Tensor:
        network = Network(UNSUPERVISED.change(seed=seed))
        formulas.learn(network, 1, seed + step)  # what was drawn before must not matter
        network.input.load_state_dict(Network(UNSUPERVISED).input.state_dict())
        return network.input.forward(images_BI, labels_B, step, "sleep").h_NF

    torch.manual_seed(1)
    first = rows(0, 3)
    assert torch.equal(rows(0, 3), first)
    assert not torch.equal(rows(0, 4), first)
    assert not torch.equal(rows(1, 3), first)


WRONG = {
    "labels": ({"label_scheme": "vectors"}, 'label_scheme = "vectors": must be "none"'),
    "objective": ({"objective": "softmax"}, 'objective = "softmax": compares labels; negatives = "hybrid" needs'),
    "readout": ({"readout": "none"}, 'readout = "none": must be "softmax"'),
    "activities": ({"activities": "label_conditioned"}, 'activities = "label_conditioned": must be label_free'),
    "flat images": ({"image_shape": [16]}, "network.image_shape = [16] must be [H, W] or [H, W, C]"),
    "one layer": (
        {"layers": [{"negatives": "hybrid", "label_scheme": "none", "objective": "paired"}, {"negatives": "random"}]},
        'layers[1].negatives = "random": negatives = "hybrid" must be the same in all layers',
    ),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_options_that_do_not_go_with_image_negatives_are_errors(options: dict[str, object], message: str) -> None:
    section = {
        "image_shape": [4, 4],
        "negatives": "hybrid",
        "label_scheme": "none",
        "objective": "threshold",
        "readout": "softmax",
    }
    with pytest.raises(OptionError) as caught:
        recipe("fast", **{**section, **options})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"batch_size": 1, "replay": 0, "warmup_samples": 0}, "batch_size"),
        ({"batch_size": 4, "replay": 2, "warmup_samples": 8, "warmup_batch_size": 1}, "warmup_batch_size"),
    ],
)
def test_a_microbatch_of_one_image_has_no_hybrid(given: dict[str, int], name: str) -> None:
    with pytest.raises(OptionError, match=rf"^{name} = 1: must be at least 2"):
        UNSUPERVISED.change(**given)
    assert UNSUPERVISED.change(**{**given, "replay": 4}).image_negatives
