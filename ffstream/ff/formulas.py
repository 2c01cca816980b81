"""A layer's mathematics without its weights, used by learning and by prediction alike.

    x̂ = r·x                z = C(x̂; W) + b          z_l: z with label l, as the label scheme says
    h_l = φ(z_l)           G_l = G(h_l)
    ∂L/∂z_l = (∂L/∂G_l) G′(h_l) φ′(z_l)             from there the label scheme and the connection lead to ∂L/∂W

Where ReLU meets a quadratic goodness and labels that are added, compiled kernels compute the same (`kernels`).

Shapes: N rows, I inputs, F units, L labels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff import kernels
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape, size_of
from ffstream.ff.label_formulas import LabelFormulas, Weights
from ffstream.ff.maps import Map
from ffstream.ff.recipe import LayerOptions


class Pass(NamedTuple):
    """What a forward pass computes: x in the products' precision, the factor r and the gain g of each row, z."""

    x_NI: Tensor
    factor_N: Tensor
    gain_N: Tensor
    z_NF: Tensor


class Formulas:
    """One layer: forward, goodness, errors, and what it passes on."""

    def __init__(self, options: LayerOptions, input_shape: Shape, labels: int, device: torch.device) -> None:
        self.options = options
        self.inputs = size_of(input_shape)
        self.units = size_of(options.connection.output_shape(input_shape))
        self.labels = labels
        self.map: Map = options.connection.build(input_shape)
        self.scheme = options.label_scheme
        self.of_labels = kernels.fastest(
            LabelFormulas(options.activation, options.goodness, options.label_scheme, labels), device
        )

    def forward(self, x_NI: Tensor, weights: Weights, dtype: torch.dtype, buffers: Buffers) -> Pass:
        """x: float32 that may be changed in place where the label scheme clears inputs, or activities from below."""
        if self.scheme.clears_inputs:
            x_NI[:, : self.labels] = 0
        squares_N = sum_squares(x_NI)
        if self.scheme.extra_squares:
            squares_N.add_(self.scheme.extra_squares)
        factor_N = self.options.normalization.factor(squares_N, self.inputs)
        if x_NI.dtype != dtype:
            x_NI = buffers.get("input", torch.empty(0, dtype=dtype, device=x_NI.device), *x_NI.shape).copy_(x_NI)
        z_NF = self.map.forward(x_NI, factor_N, weights, buffers)
        return Pass(x_NI, factor_N, self.scheme.gain(factor_N), z_NF)

    def activities(self, z_NF: Tensor, out_NF: Tensor) -> Tensor:
        """φ(z) into `out`, in its precision: what the next layer gets."""
        return self.options.activation.apply_(out_NF.copy_(z_NF))

    def conditioned(self, seen: Pass, weights: Weights, labels_N: Tensor) -> Tensor:
        """Preactivations (N, F) of the rows with a label each; those without it stay as they are."""
        return self.scheme.condition_(seen.z_NF.clone(), seen.gain_N, weights, labels_N)


def sum_squares(x_NI: Tensor) -> Tensor:
    """Σ_i x_i² of each row, in float32."""
    norm_N: Tensor = torch.linalg.vector_norm(x_NI, dim=1, dtype=torch.float32)
    return norm_N.square_()
