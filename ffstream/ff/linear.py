"""A linear map of normalised activities: what the readout and the decoders learn.

    f = h / rms(h)        y = W f + b        ∂L/∂W = Σ ∂L/∂y fᵀ        ∂L/∂b = Σ ∂L/∂y

Shapes: B samples, F numbers of all activities that are read, O outputs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.formulas import sum_squares
from ffstream.ff.maps import WEIGHT
from ffstream.ff.normalization import RootMeanSquare

_NORMALIZATION = RootMeanSquare()


def features(activities: Sequence[Tensor], buffers: Buffers) -> Tensor:
    """f (B, F), float32, from the activities (B, units) of each layer."""
    sizes = [h_BF.shape[1] for h_BF in activities]
    f_BF = buffers.get("features", torch.empty(0, device=activities[0].device), len(activities[0]), sum(sizes))
    for part_BF, h_BF in zip(f_BF.split(sizes, 1), activities, strict=True):
        inverse_norm_B = _NORMALIZATION.inverse_norm(sum_squares(h_BF), h_BF.shape[1])
        part_BF.copy_(h_BF).mul_(inverse_norm_B[:, None])
    return f_BF


def outputs(f_BF: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """y (B, O), from the weights `weight` (O, F) and `bias` (O)."""
    return torch.addmm(weights["bias"], f_BF, weights[WEIGHT].t())


def write_gradients(gradient_BO: Tensor, f_BF: Tensor, into: Mapping[str, Tensor]) -> None:
    """The gradients of both weights, from ∂L/∂y."""
    torch.mm(gradient_BO.t(), f_BF, out=into[WEIGHT])
    into["bias"].copy_(gradient_BO.sum(0))
