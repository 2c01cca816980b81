"""Goodness: one number from the activities of a layer, high for positive data.

With `negative` the sign turns: the goodness of positive data is then a *silent* layer (or class group).
The members are not interchangeable: sums grow with the width of a layer, means do not.

Shapes: activities (…, K), goodness (…).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor


class Goodness(Part):
    """G(h) and ∂G/∂h. Members implement `_value` and `_gradient` without the sign."""

    family: ClassVar[str] = "goodness"
    must_define: ClassVar[tuple[str, ...]] = ("_value", "_gradient")
    negative: bool = Field(False, description="low activity is good: G = −G(h)")

    @property
    def sign(self) -> float:
        """+1, or −1 with `negative`."""
        return -1.0 if self.negative else 1.0

    def value(self, h: Tensor) -> Tensor:
        """G over the last dimension."""
        return self._value(h) * self.sign

    def gradient(self, h: Tensor) -> Tensor:
        """∂G/∂h, in a new tensor."""
        return self._gradient(h) * self.sign

    def _value(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def _gradient(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class Quadratic(Goodness):
    """A goodness that is c(K) · Σ_k h_k²: what the compiled kernels compute. Members implement `_factor`, c."""

    def scale(self, units: int) -> float:
        """c(K), sign included."""
        return self.sign * self._factor(units)

    def _factor(self, units: int) -> float:
        raise NotImplementedError

    def _value(self, h: Tensor) -> Tensor:
        return h.square().sum(-1) * self._factor(h.shape[-1])

    def _gradient(self, h: Tensor) -> Tensor:
        return h * (2 * self._factor(h.shape[-1]))


@register
class SumSquares(Quadratic):
    """G = Σ_k h_k² (Hinton 2022, section 2).

    >>> SumSquares().value(torch.tensor([[3., 4.]]))
    tensor([25.])
    """

    kind: Literal["sum_squares"] = "sum_squares"

    def _factor(self, units: int) -> float:
        return 1.0


@register
class MeanSquares(Quadratic):
    """G = (1/K) Σ_k h_k².

    >>> MeanSquares().value(torch.tensor([[3., 4.]]))
    tensor([12.5000])
    """

    kind: Literal["mean_squares"] = "mean_squares"

    def _factor(self, units: int) -> float:
        return 1 / units


@register
class Sum(Goodness):
    """G = Σ_k h_k, not squared (the "un-squared" goodness of DeeperForward, 2025, up to the factor 1/K).

    >>> Sum().value(torch.tensor([[3., 4.]]))
    tensor([7.])
    """

    kind: Literal["sum"] = "sum"

    def _value(self, h: Tensor) -> Tensor:
        return h.sum(-1)

    def _gradient(self, h: Tensor) -> Tensor:
        return h.new_ones(()).expand(h.shape)
