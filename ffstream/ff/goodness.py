"""Goodness: one number computed from the activities of a layer. Learning makes it high for positive data.

With `negative` the sign is reversed, so a layer (or group of units) falls silent for positive data.
Changing the goodness usually means changing `objective.alpha` too: a sum grows with the width of the layer, a mean
does not.

Layers over maps may have a goodness for each of several areas (`areas`): then the loss is the mean over areas, and
the goodness of the layer is the mean of theirs (see `ff/areas.py`).

Shapes: activities (…, K), goodness (…).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ffstream.ff.connection import Shape
from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor


class Goodness(Part):
    """G(h) and ∂G/∂h. A member implements `_value` and `_gradient`; this class applies the sign."""

    family: ClassVar[str] = "goodness"
    must_define: ClassVar[tuple[str, ...]] = ("_value", "_gradient")
    negative: bool = Field(False, description="reverse the sign: low activity is good")
    areas: int = Field(
        1, ge=1, description="areas along each axis of the layer's map, each with a goodness and a loss of its own"
    )

    def incompatibility(self, shape: Shape) -> str:
        """Why a layer whose rows have this shape cannot use it; empty if it can."""
        if self.areas == 1:
            return ""
        if len(shape) != 3:
            return "the layer has no map to divide"
        height, width, _ = shape
        if height % self.areas or width % self.areas:
            return f"the layer's map of {height}×{width} places cannot be divided into equal areas"
        return ""

    @property
    def sign(self) -> float:
        """+1.0, or −1.0 with `negative`."""
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
    """G = c(K) Σ_k h_k², which the compiled kernels can compute. A member implements `_coefficient`, c(K)."""

    def coefficient(self, units: int) -> float:
        """c(K) for K units, including the sign."""
        return self.sign * self._coefficient(units)

    def _coefficient(self, units: int) -> float:
        raise NotImplementedError

    def _value(self, h: Tensor) -> Tensor:
        return h.square().sum(-1) * self._coefficient(h.shape[-1])

    def _gradient(self, h: Tensor) -> Tensor:
        return h * (2 * self._coefficient(h.shape[-1]))


@register
class SumSquares(Quadratic):
    """G = Σ_k h_k² (Hinton 2022, section 2).

    >>> SumSquares().value(torch.tensor([[3., 4.]]))
    tensor([25.])
    """

    kind: Literal["sum_squares"] = "sum_squares"

    def _coefficient(self, units: int) -> float:
        return 1.0


@register
class MeanSquares(Quadratic):
    """G = (1/K) Σ_k h_k².

    >>> MeanSquares().value(torch.tensor([[3., 4.]]))
    tensor([12.5000])
    """

    kind: Literal["mean_squares"] = "mean_squares"

    def _coefficient(self, units: int) -> float:
        return 1 / units


@register
class Sum(Goodness):
    """G = Σ_k h_k: the un-squared goodness of DeeperForward (2025), without its factor 1/K.

    >>> Sum().value(torch.tensor([[3., 4.]]))
    tensor([7.])
    """

    kind: Literal["sum"] = "sum"

    def _value(self, h: Tensor) -> Tensor:
        return h.sum(-1)

    def _gradient(self, h: Tensor) -> Tensor:
        return h.new_ones(()).expand(h.shape)
