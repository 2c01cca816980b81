"""Max pooling of the maps that `conv` and `local` compute, fused with what surrounds it.

    z = r · max over the P×P window of c + b          ∂L/∂c = r · ∂L/∂z at the place of the maximum, 0 elsewhere

Pooling before the norm and the bias is exact, because r > 0 and b is the same for the whole window. Of equal values
the first in the window counts (compiled, −0 is less than +0). A row or column of c that does not fill a window has
the gradient 0.

On the CPU the loops in `loops.py` do this in one pass over c; `max_pool2d` alone takes longer, and longer still in
bfloat16.

Shapes: N rows, c (N, H, W, O), z (N, F) with F = H/P · W/P · O.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ffstream.ff.buffers import Buffers

_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class Pooling:
    """Pools maps of H×W places with O channels."""

    def __init__(self, height: int, width: int, channels: int, pool: int) -> None:
        self.pool = pool
        self._places = (height, width, channels)
        self.pooled = (height // pool, width // pool, channels)

    def forward(
        self, c_NHWO: Tensor, inverse_norm_N: Tensor, bias_F: Tensor, buffers: Buffers
    ) -> tuple[Tensor, Tensor]:
        """z (N, F; float32), and which place of its window each maximum is at (N, F). Both lie in buffers."""
        z_NF = buffers.get("preactivation", inverse_norm_N, len(c_NHWO), bias_F.numel())
        if not _compiles(c_NHWO):
            return self._forward(c_NHWO, inverse_norm_N, bias_F, z_NF)
        from ffstream.ff import loops

        like = torch.empty(0, dtype=torch.uint8)
        at_NF = buffers.get("place of the maximum", like, *z_NF.shape)
        z_NHWO = z_NF.view(-1, *self.pooled)
        given = _bits(c_NHWO), inverse_norm_N.numpy(), bias_F.view(self.pooled).numpy()
        into = at_NF.view(z_NHWO.shape).numpy(), _bits(z_NHWO), z_NHWO.numpy()
        if self.pool == 2:
            loops.pool_pairs(*given, *into)
        else:
            loops.pool(*given, self.pool, *into)
        return z_NF, at_NF

    def _forward(self, c_NHWO: Tensor, inverse_norm_N: Tensor, bias_F: Tensor, z_NF: Tensor) -> tuple[Tensor, Tensor]:
        largest, at = max_pool2d(c_NHWO.permute(0, 3, 1, 2), self.pool, return_indices=True)
        z_NF.view(-1, *self.pooled).copy_(largest.permute(0, 2, 3, 1))
        return torch.addcmul(bias_F, z_NF, inverse_norm_N[:, None], out=z_NF), at

    def gradient(self, e_NF: Tensor, at: Tensor, inverse_norm_N: Tensor, like: Tensor, buffers: Buffers) -> Tensor:
        """∂L/∂c (N, H, W, O) in the dtype of `like`, from e = ∂L/∂z. It lies in a buffer."""
        d_NHWO = buffers.get("map gradient", like, len(e_NF), *self._places)
        if not _compiles(d_NHWO):
            return self._gradient(e_NF * inverse_norm_N[:, None], at, d_NHWO)
        from ffstream.ff import loops

        e_NHWO = e_NF.view(-1, *self.pooled)
        given = e_NHWO.numpy(), inverse_norm_N.numpy(), at.view(e_NHWO.shape).numpy()
        if self.pool == 2:
            loops.unpool_pairs(*given, _bits(d_NHWO))
        else:
            loops.unpool(*given, self.pool, _bits(d_NHWO))
        return self._clear_edges(d_NHWO)

    def _gradient(self, scaled_NF: Tensor, at_NOhw: Tensor, d_NHWO: Tensor) -> Tensor:
        """Compares each place with that of the maximum of its window. `max_unpool2d` scatters, which is not
        reproducible on CUDA."""
        _, width, _ = self._places
        rows, columns = (torch.arange(size * self.pool, device=d_NHWO.device) for size in self.pooled[:2])
        place_HW = rows[:, None] * width + columns
        at_NHWO, scaled_NHWO = (
            each.repeat_interleave(self.pool, 1).repeat_interleave(self.pool, 2)
            for each in (at_NOhw.permute(0, 2, 3, 1), scaled_NF.view(-1, *self.pooled))
        )
        filled = d_NHWO[:, : len(rows), : len(columns)]
        filled.copy_(scaled_NHWO.where(at_NHWO == place_HW[:, :, None], scaled_NHWO.new_zeros(())))
        return self._clear_edges(d_NHWO)

    def _clear_edges(self, d_NHWO: Tensor) -> Tensor:
        """What fills no window."""
        d_NHWO[:, self.pooled[0] * self.pool :] = 0
        d_NHWO[:, :, self.pooled[1] * self.pool :] = 0
        return d_NHWO


def _compiles(maps: Tensor) -> bool:
    return maps.device.type == "cpu" and maps.dtype in _BITS


def _bits(maps: Tensor) -> Any:
    """The same memory as whole numbers of the same width: numpy has no bfloat16."""
    return maps.view(_BITS[maps.dtype]).numpy()
