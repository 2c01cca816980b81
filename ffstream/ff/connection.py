"""Connections: z = C(x̂; W) + b, from a row of one shape to a row of another.

A connection defines its shapes and its formula. By default autograd differentiates the formula, within the layer
only; `implementation` may name a class that computes the formula and its gradient faster (see `ff/maps.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register, resolve

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


class Connection(Part):
    """A map that is linear in its parameters, and its shapes."""

    family: ClassVar[str] = "connection"
    must_define: ClassVar[tuple[str, ...]] = ("output_shape", "parameters", "fan_in", "formula")
    implementation: ClassVar[str] = "ffstream.ff.maps:FormulaMap"

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of one output row. Raises ValueError if the connection cannot take such an input."""
        raise NotImplementedError

    def parameters(self, input_shape: Shape) -> dict[str, Shape]:
        """The shapes of `weight`, `bias` and any other parameters. `weight` is initialised uniformly in ±1/√fan_in,
        all others with zeros."""
        raise NotImplementedError

    def fan_in(self, input_shape: Shape) -> int:
        """The number of inputs of one unit."""
        raise NotImplementedError

    def formula(self, x_NI: Tensor, parameters: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
        """z (N, units) for normalised rows x̂ (N, inputs), both flat. Must be differentiable by autograd."""
        raise NotImplementedError

    @staticmethod
    def size(shape: Shape) -> int:
        """How many numbers a row of that shape has."""
        return size_of(shape)

    def build(self, input_shape: Shape) -> Any:
        """An `ff.maps.Map` for input rows of this shape."""
        make: Callable[..., Any] = resolve(self.implementation)
        return make(self, input_shape)


@register
class Dense(Connection):
    """Every unit is connected to every input: z = x̂Wᵀ + b."""

    kind: Literal["dense"] = "dense"
    implementation: ClassVar[str] = "ffstream.ff.maps:DenseMap"
    units: int = Field(512, ge=1, description="number of units, which is the width of the layer")

    def output_shape(self, input_shape: Shape) -> Shape:
        """(units)."""
        return (self.units,)

    def parameters(self, input_shape: Shape) -> dict[str, Shape]:
        """`weight` (O, I) and `bias` (O)."""
        return {"weight": (self.units, size_of(input_shape)), "bias": (self.units,)}

    def fan_in(self, input_shape: Shape) -> int:
        """All inputs of the layer."""
        return size_of(input_shape)

    def formula(self, x_NI: Tensor, parameters: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
        """x̂Wᵀ + b."""
        return x_NI @ parameters["weight"].t() + parameters["bias"]


def size_of(shape: Shape) -> int:
    """How many numbers a row of that shape has."""
    return math.prod(shape)
