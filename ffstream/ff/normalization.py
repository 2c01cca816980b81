"""Row scales that hide the previous layer's goodness from the next layer.

A layer needs only the factor: with x̂ = r·x, x̂Wᵀ = r·(xWᵀ), so no scaled copy of the input is ever made.
Shapes: N rows, I inputs.
"""

from typing import Protocol

import torch
from torch import Tensor

from ffstream.ff.presets import NormalizationName


class Normalization(Protocol):
    """Maps each row's sum of squares to the factor that fixes its length."""

    def factor(self, squares_N: Tensor, width: int) -> Tensor:
        """The r_N with r·x of the wanted length, for rows x of `width` numbers with Σx² = squares."""
        ...


class RootMeanSquare:
    """mean(x̂²) = 1."""

    def factor(self, squares_N: Tensor, width: int) -> Tensor:
        return (squares_N / width + 1e-8).rsqrt_()


class UnitLength:
    """|x̂| = 1."""

    def factor(self, squares_N: Tensor, width: int) -> Tensor:
        return (squares_N.sqrt() + 1e-4).reciprocal_()


def sum_squares(x_NI: Tensor) -> Tensor:
    """Σ_i x_i² of each row, in float32."""
    norm_N: Tensor = torch.linalg.vector_norm(x_NI, dim=1, dtype=torch.float32)
    return norm_N.square_()


def make_normalization(name: NormalizationName) -> Normalization:
    """The normalisation of that name."""
    return RootMeanSquare() if name == "rms" else UnitLength()
