"""The compiled loops pool as `max_pool2d` does, in both precisions."""

import pytest
import torch
from torch import Tensor

from ffstream.ff import pooling
from ffstream.ff.buffers import ReusedBuffers
from ffstream.ff.pooling import Pooling

SIZES = [(8, 8, 16, 2), (9, 7, 5, 2), (7, 8, 3, 3), (5, 5, 4, 1)]


def random_maps(height: int, width: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Maps with many equal values, of both signs."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randint(-2, 3, (6, height, width, channels), generator=generator).to(dtype)
    maps[3:].normal_(generator=generator)
    return maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width", "channels", "size"), SIZES)
def test_compiled_pooling_equals_torch(
    height: int, width: int, channels: int, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Pooling(height, width, channels, size)
    maps = random_maps(height, width, channels, dtype)
    scale_N = torch.linspace(0.5, 2, len(maps))
    bias_F = torch.linspace(-1, 1, layer.pooled[0] * layer.pooled[1] * channels)
    error_NF = torch.linspace(-3, 3, len(maps) * len(bias_F)).view(len(maps), -1)

    def compute() -> tuple[Tensor, Tensor]:
        buffers = ReusedBuffers()
        z_NF, at = layer.forward(maps, scale_N, bias_F, buffers)
        return z_NF.clone(), layer.gradient(error_NF, at, scale_N, maps, buffers).clone()

    z_NF, gradient = compute()
    monkeypatch.setattr(pooling, "_compiles", lambda maps: False)
    want_NF, want = compute()
    assert torch.allclose(z_NF, want_NF, rtol=1e-6, atol=1e-6)
    assert torch.equal(gradient, want)


def test_the_first_of_equal_maxima_has_the_gradient() -> None:
    maps = torch.zeros(1, 2, 2, 1)
    layer, buffers = Pooling(2, 2, 1, 2), ReusedBuffers()
    one = torch.ones(1)
    _, at = layer.forward(maps, one, one, buffers)
    assert layer.gradient(torch.ones(1, 1), at, one, maps, buffers).flatten().tolist() == [1, 0, 0, 0]


def test_a_reused_buffer_has_no_gradient_left_at_a_cut_edge() -> None:
    layer, buffers, maps = Pooling(3, 3, 1, 2), ReusedBuffers(), torch.ones(1, 3, 3, 1)
    buffers.get("map gradient", maps, 1, 3, 3, 1).fill_(7)
    _, at = layer.forward(maps, torch.ones(1), torch.ones(1), buffers)
    gradient = layer.gradient(torch.ones(1, 1), at, torch.ones(1), maps, buffers)
    assert gradient.view(3, 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
