"""Connections: z = C(x̂; W) + b, from a row of one shape to a row of another.

Rows are flat. A map of height H and width W with C channels lies in the order (H, W, C). `conv` and `local` pool: the
largest of each P×P window of places is kept, and a row or column that does not fill a window is cut.

A connection defines its shapes and its formula. By default autograd differentiates the formula, within the layer
only; `implementation` may name a class that computes the formula and its gradient faster (see `ff/maps.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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

    def receptive_fields(self, weight: Tensor, input_shape: Shape) -> Tensor | None:
        """The weights of each unit (N, h, w, channels) as an image of the inputs that it is connected to. Units that
        share their weights count once. None if they cannot be shown as images."""
        return None

    @staticmethod
    def size(shape: Shape) -> int:
        """How many numbers a row of that shape has."""
        return size_of(shape)

    def build(self, input_shape: Shape) -> Any:
        """An `ff.maps.Map` for input rows of this shape."""
        return resolve(self.implementation)(self, input_shape)


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

    def receptive_fields(self, weight: Tensor, input_shape: Shape) -> Tensor | None:
        """(units, H, W, C) if the input is a map. (units, 1, I, 1) if it is a vector."""
        if len(input_shape) not in (2, 3):
            return weight.view(len(weight), 1, -1, 1)
        return weight.view(len(weight), *input_shape[:2], channels_of(input_shape))

    def formula(self, x_NI: Tensor, parameters: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
        """x̂Wᵀ + b."""
        return x_NI @ parameters["weight"].t() + parameters["bias"]


class Spatial(Connection):
    """Connects each place of the output map to a K×K window of the input map, which has zeros around it."""

    channels: int = Field(32, ge=1, description="channels of the output map")
    kernel: int = Field(3, ge=1, description="height and width of the window that a unit is connected to")
    stride: int = Field(1, ge=1, description="distance between neighbouring windows")
    padding: int = Field(0, ge=0, description="width of the zeros around the input map")
    pool: int = Field(1, ge=1, le=16, description="height and width of the windows of which the maximum is kept")

    def places(self, input_shape: Shape) -> tuple[int, int]:
        """Height and width of the output map before pooling. Raises ValueError."""
        if len(input_shape) not in (2, 3):
            raise ValueError(f"needs a map [height, width, channels], but its input has the shape {[*input_shape]}")
        height, width = ((size + 2 * self.padding - self.kernel) // self.stride + 1 for size in input_shape[:2])
        if min(height, width) < self.pool:
            raise ValueError(
                f"kernel = {self.kernel}, stride = {self.stride}, padding = {self.padding} and pool = {self.pool} "
                f"leave nothing of an input of the shape {[*input_shape]}"
            )
        return height, width

    def output_shape(self, input_shape: Shape) -> Shape:
        """(H, W, channels), after pooling."""
        height, width = self.places(input_shape)
        return height // self.pool, width // self.pool, self.channels

    def fan_in(self, input_shape: Shape) -> int:
        """The numbers in a window."""
        return self.kernel**2 * channels_of(input_shape)


@register
class Conv(Spatial):
    """Convolution: all places share their weights. z = max over the pooling window of conv(x̂, W), plus b."""

    kind: Literal["conv"] = "conv"
    implementation: ClassVar[str] = "ffstream.ff.spatial_maps:ConvMap"

    def parameters(self, input_shape: Shape) -> dict[str, Shape]:
        """`weight` (O, K, K, C) and `bias` (O)."""
        weight = (self.channels, self.kernel, self.kernel, channels_of(input_shape))
        return {"weight": weight, "bias": (self.channels,)}

    def receptive_fields(self, weight: Tensor, input_shape: Shape) -> Tensor | None:
        """(channels, K, K, C)."""
        return weight

    def formula(self, x_NI: Tensor, parameters: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
        """Convolution, maximum, bias."""
        from torch.nn.functional import conv2d, max_pool2d

        weight_OCKK = parameters["weight"].permute(0, 3, 1, 2)
        z = conv2d(maps_of(x_NI, input_shape), weight_OCKK, parameters["bias"], self.stride, self.padding)
        return max_pool2d(z, self.pool).permute(0, 2, 3, 1).flatten(1)


@register
class Local(Spatial):
    """Local receptive fields: like a convolution, but each place has weights of its own (Hinton 2022, section 3.2).

    Each pooled unit has a bias of its own.
    """

    kind: Literal["local"] = "local"
    implementation: ClassVar[str] = "ffstream.ff.spatial_maps:LocalMap"

    def parameters(self, input_shape: Shape) -> dict[str, Shape]:
        """`weight` (P places, O, K·K·C) and `bias` (pooled units)."""
        height, width = self.places(input_shape)
        weight = (height * width, self.channels, self.fan_in(input_shape))
        return {"weight": weight, "bias": (size_of(self.output_shape(input_shape)),)}

    def receptive_fields(self, weight: Tensor, input_shape: Shape) -> Tensor | None:
        """(places · channels, K, K, C)."""
        return weight.reshape(-1, self.kernel, self.kernel, channels_of(input_shape))

    def formula(self, x_NI: Tensor, parameters: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
        """A matrix product for each place, maximum, bias."""
        from torch.nn.functional import max_pool2d, unfold

        height, width = self.places(input_shape)
        windows = unfold(maps_of(x_NI, input_shape), self.kernel, padding=self.padding, stride=self.stride)
        windows_PNCK = windows.view(len(x_NI), channels_of(input_shape), self.kernel**2, -1).permute(3, 0, 1, 2)
        weight_PCKO = parameters["weight"].unflatten(2, (self.kernel**2, -1)).permute(0, 3, 2, 1)
        z_PNO = windows_PNCK.flatten(2) @ weight_PCKO.flatten(1, 2)
        z = z_PNO.permute(1, 2, 0).unflatten(2, (height, width))
        return max_pool2d(z, self.pool).permute(0, 2, 3, 1).flatten(1) + parameters["bias"]


def channels_of(shape: Shape) -> int:
    """The channels of a map (H, W) or (H, W, C)."""
    return shape[2] if len(shape) == 3 else 1


def maps_of(x_NI: Tensor, shape: Shape) -> Tensor:
    """Flat rows as maps (N, C, H, W), a view."""
    return x_NI.view(-1, *shape[:2], channels_of(shape)).permute(0, 3, 1, 2)


def size_of(shape: Shape) -> int:
    """How many numbers a row of that shape has."""
    return math.prod(shape)
