import doctest

import pytest
import torch

from ffstream.ff import goodness
from ffstream.ff.goodness import make_goodness
from ffstream.ff.normalization import make_normalization, sum_squares
from ffstream.ff.presets import GoodnessName, NormalizationName
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL, variant

NAMES: list[GoodnessName] = ["sum_squares", "mean_squares"]
NORMALIZATIONS: list[NormalizationName] = ["rms", "unit"]


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(goodness)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_goodness_is_of_each_row_in_float32_whatever_the_shape_and_precision(name: GoodnessName) -> None:
    h_BLO = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    want = formulas.goodness(variant(SMALL, goodness=name), h_BLO.double())
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        got = make_goodness(name)(h_BLO.to(dtype))
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), want, rtol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_derivative(name: GoodnessName) -> None:
    h_NO = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(formulas.goodness(variant(SMALL, goodness=name), h_NO).sum(), h_NO)
    assert torch.allclose(make_goodness(name).slope(5) * h_NO, gradient)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_normalised_row_has_the_wanted_length_however_long_it_was(name: NormalizationName) -> None:
    row = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) + 1
    rows = torch.cat((row * 10, row, row * 1000))
    scaled = rows * make_normalization(name).factor(sum_squares(rows), 50)[:, None]
    length = scaled.square().mean(1) if name == "rms" else scaled.square().sum(1)
    assert torch.allclose(length, torch.ones(3), atol=1e-3)
    assert torch.allclose(scaled, scaled[:1].expand(3, -1), rtol=1e-3)
    assert make_normalization(name).factor(torch.zeros(1), 50).isfinite().all()
