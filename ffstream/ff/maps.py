"""Maps compute a connection: the forward pass and the gradients of its parameters.

`spatial_maps.py` has those of the connections over maps, `conv` and `local`; `group_map.py` has a dense one that
skips rows.

The normalised input is x̂ = r·x, where r is the inverse norm of a row. A map that is linear in x multiplies its
result by r, which saves a scaled copy of x. Matrix products use the dtype of x and of the given weight (float32 or
bfloat16); z and the gradients are float32.

Shapes: N rows, I inputs, O units.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Connection, Dense, Shape

WEIGHT: Final = "weight"  # the parameter that is given in the dtype of the matrix products


class MapResult(NamedTuple):
    """z (N, O; float32), and what the gradients of the same rows need besides. Both may lie in buffers that the next
    forward pass overwrites."""

    z_NO: Tensor
    saved: tuple[Tensor, ...] = ()


class Map(Protocol):
    """From flat rows (N, I) to flat rows (N, O)."""

    def forward(
        self, x_NI: Tensor, inverse_norm_N: Tensor, weights: Mapping[str, Tensor], buffers: Buffers
    ) -> MapResult:
        """z, and what `gradients` needs."""
        ...

    def gradients(
        self,
        e_NO: Tensor,
        saved: tuple[Tensor, ...],
        x_NI: Tensor,
        inverse_norm_N: Tensor,
        weights: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        buffers: Buffers,
    ) -> None:
        """Writes the gradients of all parameters into `into`, from e = ∂L/∂z (N, O)."""
        ...


class FormulaMap:
    """The formula of the connection, differentiated by autograd. For connections without a faster map."""

    def __init__(self, options: Connection, input_shape: Shape) -> None:
        self._options = options
        self._input_shape = input_shape
        self._names = tuple(options.parameters(input_shape))

    def forward(
        self, x_NI: Tensor, inverse_norm_N: Tensor, weights: Mapping[str, Tensor], buffers: Buffers
    ) -> MapResult:
        """z = C(x̂; W) + b, in float32."""
        parameters = {name: weights[name].float() for name in self._names}
        return MapResult(self._formula(x_NI, inverse_norm_N, parameters).contiguous())

    def gradients(
        self,
        e_NO: Tensor,
        saved: tuple[Tensor, ...],
        x_NI: Tensor,
        inverse_norm_N: Tensor,
        weights: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        buffers: Buffers,
    ) -> None:
        """∂(Σ e·z)/∂W for every parameter W. No gradient reaches the layer below."""
        with torch.enable_grad():
            leaves = {name: weights[name].detach().float().requires_grad_() for name in self._names}
            z_NO = self._formula(x_NI, inverse_norm_N, leaves)
            found = torch.autograd.grad(z_NO, list(leaves.values()), e_NO, allow_unused=True, materialize_grads=True)
        for name, gradient in zip(leaves, found, strict=True):
            into[name].copy_(gradient)

    def _formula(self, x_NI: Tensor, inverse_norm_N: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return self._options.formula(x_NI.float() * inverse_norm_N[:, None], weights, self._input_shape)


class DenseMap:
    """Two matrix products for each step.

    z = r·(xWᵀ) + b        ∂L/∂W = (r·e)ᵀ x        ∂L/∂b = Σ_rows e
    """

    def __init__(self, options: Dense, input_shape: Shape) -> None:
        self.outputs, self.inputs = options.parameters(input_shape)[WEIGHT]

    def forward(
        self, x_NI: Tensor, inverse_norm_N: Tensor, weights: Mapping[str, Tensor], buffers: Buffers
    ) -> MapResult:
        """z (N, O)."""
        weight_OI, bias_O = weights[WEIGHT], weights["bias"]
        product_NO = torch.mm(x_NI, weight_OI.t(), out=buffers.get("product", x_NI, x_NI.shape[0], self.outputs))
        z_NO = product_NO
        if product_NO.dtype != bias_O.dtype:
            z_NO = buffers.get("preactivation", bias_O, x_NI.shape[0], self.outputs).copy_(product_NO)
        return MapResult(torch.addcmul(bias_O, z_NO, inverse_norm_N[:, None], out=z_NO))

    def gradients(
        self,
        e_NO: Tensor,
        saved: tuple[Tensor, ...],
        x_NI: Tensor,
        inverse_norm_N: Tensor,
        weights: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        buffers: Buffers,
    ) -> None:
        """∂L/∂W (O, I) and ∂L/∂b (O)."""
        into["bias"].copy_(e_NO.sum(0))
        scaled_NO = torch.mul(
            e_NO, inverse_norm_N[:, None], out=buffers.get("product", x_NI, e_NO.shape[0], self.outputs)
        )
        weight_OI = into[WEIGHT]
        same = x_NI.dtype == weight_OI.dtype
        product_OI = weight_OI if same else buffers.get("weight gradient", x_NI, self.outputs, self.inputs)
        self.product(scaled_NO, x_NI, product_OI, buffers)
        if not same:
            weight_OI.copy_(product_OI)

    def product(self, scaled_NO: Tensor, x_NI: Tensor, out_OI: Tensor, buffers: Buffers) -> None:
        """Writes (r·e)ᵀ x (O, I), in the dtype of x."""
        torch.mm(scaled_NO.t(), x_NI, out=out_OI)
