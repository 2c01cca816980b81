"""Convolutions whose kernel is partly over padding at every place."""

import pytest
import torch

from ffstream.ff.buffers import ReusedBuffers
from ffstream.ff.connection import Conv
from ffstream.ff.spatial_maps import ConvMap

N = 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "options", "reached"),
    [
        ((1, 1, 2), Conv(channels=4, kernel=3, padding=1), [1]),
        ((1, 1, 2), Conv(channels=4, kernel=2, stride=2, padding=1), [1]),
        ((2, 2, 2), Conv(channels=4, kernel=5, padding=2), [1, 2, 3]),
    ],
)
def test_weights_that_are_always_over_padding_have_the_gradient_zero(
    shape: tuple[int, ...], options: Conv, reached: list[int], dtype: torch.dtype
) -> None:
    layer, buffers, ones_N = ConvMap(options, shape), ReusedBuffers(), torch.ones(N)
    parameters = options.parameters(shape)
    weights = {"weight": torch.ones(parameters["weight"], dtype=dtype), "bias": torch.zeros(parameters["bias"])}
    into = {name: torch.empty(size) for name, size in parameters.items()}
    x_NI = torch.ones(N, options.size(shape), dtype=dtype)
    for _ in range(8):  # what is uninitialised differs from call to call
        z_NO, saved = layer.forward(x_NI, ones_N, weights, buffers)
        layer.gradients(torch.ones_like(z_NO), saved, x_NI, ones_N, weights, into, buffers)
        _leave_behind_nan()
        nonzero_OKKC = torch.zeros_like(into["weight"], dtype=torch.bool)
        for row in reached:
            nonzero_OKKC[:, row, reached] = True
        assert torch.equal(into["weight"] != 0, nonzero_OKKC)


def _leave_behind_nan() -> None:
    """Memory that is allocated next holds NaN."""
    _ = [torch.full((size,), torch.nan) for size in range(1, 512)]
