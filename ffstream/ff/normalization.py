"""Normalisation: input rows are scaled, so that a layer cannot read the goodness of the layer below from their
length.

A layer needs only r, the inverse norm of each row: with x̂ = r·x, x̂Wᵀ = r·(xWᵀ), which saves a scaled copy of x.
Shapes: N rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor


class Normalization(Part):
    """x̂ = r·x."""

    family: ClassVar[str] = "normalization"
    must_define: ClassVar[tuple[str, ...]] = ("inverse_norm",)

    def inverse_norm(self, squares_N: Tensor, width: int) -> Tensor:
        """r (N) for rows of `width` numbers with the sums of squares `squares_N`."""
        raise NotImplementedError


@register
class RootMeanSquare(Normalization):
    """The mean of x̂² is 1: r = 1 / √(Σx²/width + 10⁻⁸)."""

    kind: Literal["rms"] = "rms"

    def inverse_norm(self, squares_N: Tensor, width: int) -> Tensor:
        """r (N)."""
        return (squares_N / width + 1e-8).rsqrt_()


@register
class UnitLength(Normalization):
    """The length of x̂ is 1: r = 1 / (√Σx² + 10⁻⁴)."""

    kind: Literal["unit"] = "unit"

    def inverse_norm(self, squares_N: Tensor, width: int) -> Tensor:
        """r (N)."""
        return (squares_N.sqrt() + 1e-4).reciprocal_()


@register
class Unnormalized(Normalization):
    """x̂ = x, so a layer sees the goodness of the layer below. For experiments."""

    kind: Literal["none"] = "none"

    def inverse_norm(self, squares_N: Tensor, width: int) -> Tensor:
        """Ones (N)."""
        return squares_N.new_ones(()).expand(squares_N.shape).contiguous()
