"""Losses on goodness: value and slopes against autograd in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ffstream.ff.layer import Polarity
from ffstream.ff.objective import Paired, Softmax, Threshold
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL, variant

B, L = 6, 5


def leaf(*shape: int, seed: int = 0, scale: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, dtype=torch.float64, generator=generator) * scale).requires_grad_()


def same(got: Tensor | None, want: Tensor) -> bool:
    return got is not None and torch.allclose(got, want, rtol=1e-12, atol=1e-14)


def test_paired() -> None:
    positive_B, negative_B = leaf(B, seed=1), leaf(B, seed=2)
    want = formulas.contrast(variant(SMALL, objective="paired", alpha=0.3), positive_B, negative_B, "interleaved")
    slopes = Paired(0.3).slopes(positive_B.detach(), negative_B.detach())
    up, down = torch.autograd.grad(want, (positive_B, negative_B))
    assert same(slopes.loss, want)
    assert same(slopes.positive_B, up)
    assert same(slopes.negative_B, down)


@pytest.mark.parametrize("polarity", ["interleaved", "wake", "sleep"])
def test_threshold(polarity: Polarity) -> None:
    positive_B, negative_B = leaf(B, seed=1), leaf(B, seed=2)
    recipe = variant(SMALL, objective="threshold", alpha=0.3, theta=1.1)
    want = formulas.contrast(recipe, positive_B, negative_B, polarity)
    given: dict[str, Any] = {
        "positive_B": None if polarity == "sleep" else positive_B.detach(),
        "negative_B": None if polarity == "wake" else negative_B.detach(),
    }
    slopes = Threshold(0.3, 1.1).slopes(**given)
    up, down = torch.autograd.grad(want, (positive_B, negative_B), allow_unused=True, materialize_grads=True)
    assert same(slopes.loss, want)
    assert (slopes.positive_B is None) == (polarity == "sleep")
    assert (slopes.negative_B is None) == (polarity == "wake")
    assert slopes.positive_B is None or same(slopes.positive_B, up)
    assert slopes.negative_B is None or same(slopes.negative_B, down)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_softmax(smoothing: float) -> None:
    goodness_BL = leaf(B, L)
    labels_B = formulas.random_labels(B, L)
    want = cross_entropy(0.3 * goodness_BL, labels_B, label_smoothing=smoothing)
    slope_BL, loss = Softmax(0.3, smoothing).slopes(goodness_BL.detach(), labels_B)
    (gradient,) = torch.autograd.grad(want, goodness_BL)
    assert same(loss, want)
    assert same(slope_BL, gradient)


def test_losses_survive_huge_goodness() -> None:
    huge_B, none_B = torch.full((B,), 1e6), torch.zeros(B)
    labels_B = torch.zeros(B, dtype=torch.int64)
    results = [
        Paired(1.0).slopes(none_B, huge_B),
        Threshold(1.0, 3.0).slopes(none_B, huge_B),
        Softmax(1.0, 0.2).slopes(torch.stack((none_B, huge_B), 1), labels_B),
    ]
    for result in results:
        assert all(part is not None and part.isfinite().all() for part in result)
