"""Connections: z = C(x̂; W) + b, from an input of some shape to an output of another.

A member states its shapes and its formula. By default the gradient is that of the formula by autograd, within the
layer; `implementation` names a class that computes both faster (see `ff/maps.py`).
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
    """A linear map with a bias, and its shapes."""

    family: ClassVar[str] = "connection"
    must_define: ClassVar[tuple[str, ...]] = ("output_shape", "parameters", "fan_in", "formula")
    implementation: ClassVar[str] = "ffstream.ff.maps:FormulaMap"

    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one row's output. Raises ValueError for an input that it does not take."""
        raise NotImplementedError

    def parameters(self, input_shape: Shape) -> dict[str, Shape]:
        """Shapes of `weight`, of `bias`, and of what else it learns. A weight begins uniform in ±1/√fan_in."""
        raise NotImplementedError

    def fan_in(self, input_shape: Shape) -> int:
        """Inputs of a unit."""
        raise NotImplementedError

    def formula(self, x_NI: Tensor, parameters: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
        """z (N, units) of normalised rows x̂ (N, inputs), both flat: the definition, which autograd can follow."""
        raise NotImplementedError

    @staticmethod
    def size(shape: Shape) -> int:
        """Numbers in a row of that shape."""
        return size_of(shape)

    def build(self, input_shape: Shape) -> Any:
        """An `ff.maps.Map` on rows of this shape."""
        make: Callable[..., Any] = resolve(self.implementation)
        return make(self, input_shape)


@register
class Dense(Connection):
    """Every unit sees every input: z = x̂Wᵀ + b."""

    kind: Literal["dense"] = "dense"
    implementation: ClassVar[str] = "ffstream.ff.maps:DenseMap"
    units: int = Field(512, ge=1, description="outputs")

    def output_shape(self, input_shape: Shape) -> Shape:
        """(units)."""
        return (self.units,)

    def parameters(self, input_shape: Shape) -> dict[str, Shape]:
        """`weight` (O, I) and `bias` (O)."""
        return {"weight": (self.units, size_of(input_shape)), "bias": (self.units,)}

    def fan_in(self, input_shape: Shape) -> int:
        """All inputs."""
        return size_of(input_shape)

    def formula(self, x_NI: Tensor, parameters: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
        """x̂Wᵀ + b."""
        return x_NI @ parameters["weight"].t() + parameters["bias"]


def size_of(shape: Shape) -> int:
    """Numbers in a row of that shape."""
    return math.prod(shape)
