"""Normalisation: rows are scaled so that the next layer cannot read off the goodness of the one before.

A layer needs only the factor r of each row: with x̂ = r·x, x̂Wᵀ = r·(xWᵀ), so no scaled copy of the input is made.
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
    must_define: ClassVar[tuple[str, ...]] = ("factor",)

    def factor(self, squares_N: Tensor, width: int) -> Tensor:
        """r (N) for rows of `width` numbers whose squares add up to `squares_N`."""
        raise NotImplementedError


@register
class RootMeanSquare(Normalization):
    """mean(x̂²) = 1."""

    kind: Literal["rms"] = "rms"

    def factor(self, squares_N: Tensor, width: int) -> Tensor:
        """r (N)."""
        return (squares_N / width + 1e-8).rsqrt_()


@register
class UnitLength(Normalization):
    """|x̂| = 1."""

    kind: Literal["unit"] = "unit"

    def factor(self, squares_N: Tensor, width: int) -> Tensor:
        """r (N)."""
        return (squares_N.sqrt() + 1e-4).reciprocal_()


@register
class Unnormalized(Normalization):
    """x̂ = x: the next layer sees the goodness of this one. For experiments."""

    kind: Literal["none"] = "none"

    def factor(self, squares_N: Tensor, width: int) -> Tensor:
        """Ones (N)."""
        return squares_N.new_ones(()).expand(squares_N.shape).contiguous()
