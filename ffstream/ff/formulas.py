"""The mathematics of a layer, without its weights. Learning and prediction both use it.

    x̂ = r·x                z = C(x̂; W) + b          z_l = the preactivation with label l (see label_scheme.py)
    h_l = φ(z_l)           G_l = G(h_l)
    ∂L/∂z_l = (∂L/∂G_l) G′(h_l) φ′(z_l)             the label scheme and the connection turn this into ∂L/∂W

`kernels.py` has compiled versions for ReLU and SiLU with a quadratic goodness, for label vectors, pixels and groups.

Shapes: N rows, I inputs, F units, L labels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff import kernels
from ffstream.ff.areas import area_shape
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape, size_of
from ffstream.ff.group_map import map_of
from ffstream.ff.hardware_model import Array, Device
from ffstream.ff.label_formulas import LabelFormulas, RelativeLabelFormulas, Weights
from ffstream.ff.maps import WEIGHT, Map
from ffstream.ff.recipe import LayerOptions, Recipe


class ForwardResult(NamedTuple):
    """What a forward pass computes: x in the dtype of the matrix products; for each row r, the inverse of its norm,
    and g, the scale of the label vector that is added; z; and what the map saved for its gradients."""

    x_NI: Tensor
    inverse_norm_N: Tensor
    label_scale_N: Tensor
    z_NF: Tensor
    saved: tuple[Tensor, ...]


class Formulas:
    """The formulas of the layer `index` of a recipe: from its input to goodness and activities."""

    def __init__(self, recipe: Recipe, index: int, input_shape: Shape, device: torch.device) -> None:
        self.options = options = recipe.layers[index]
        self.inputs = size_of(input_shape)
        outputs = options.connection.output_shape(input_shape)
        self.units = size_of(outputs)
        self.labels = recipe.labels
        self.map: Map = map_of(options, input_shape, recipe.labels)
        self.scheme = options.label_scheme
        self.label_formulas = _label_formulas(options, recipe.labels, outputs, device)
        weight_shape = options.connection.parameters(input_shape)[WEIGHT]
        array = Array(self.map, weight_shape, options.connection.fan_in(input_shape), self.units, index, device)
        self.hardware: Device = options.hardware.build(array)

    def forward(self, x_NI: Tensor, weights: Weights, dtype: torch.dtype, buffers: Buffers) -> ForwardResult:
        """x (N, I) is float32, or has the dtype of the products. If the label scheme clears inputs, x is changed in
        place. `weights` are those that the hardware has (`Device.program`)."""
        if self.scheme.clears_inputs:
            x_NI[:, : self.labels] = 0
        squares_N = sum_squares(x_NI)
        if self.scheme.extra_squares:
            squares_N.add_(self.scheme.extra_squares)
        inverse_norm_N = self.options.normalization.inverse_norm(squares_N, self.inputs)
        if x_NI.dtype != dtype:
            x_NI = buffers.get("input", torch.empty(0, dtype=dtype, device=x_NI.device), *x_NI.shape).copy_(x_NI)
        z_NF, saved = self.map.forward(x_NI, inverse_norm_N, weights, buffers)
        z_NF = self.hardware.read(z_NF, x_NI, inverse_norm_N, weights)
        return ForwardResult(x_NI, inverse_norm_N, self.scheme.label_scale(inverse_norm_N), z_NF, saved)

    def activities(self, z_NF: Tensor, out_NF: Tensor) -> Tensor:
        """Writes φ(z), the next layer's input, into `out` in the dtype of `out`."""
        return self.options.activation.apply_(out_NF.copy_(z_NF))

    def conditioned(self, result: ForwardResult, weights: Weights, labels_N: Tensor) -> Tensor:
        """Preactivations (N, F) of the rows with one label each, in a new tensor."""
        return self.scheme.condition_(result.z_NF.clone(), result.label_scale_N, weights, labels_N)


def _label_formulas(options: LayerOptions, labels: int, shape: Shape, device: torch.device) -> LabelFormulas:
    areas = options.goodness.areas
    formulas = kernels.fastest(
        LabelFormulas(options.activation, options.goodness, options.label_scheme, labels, area_shape(shape, areas)),
        device,
    )
    if options.objective.relative_to_label_free:
        formulas = RelativeLabelFormulas(formulas)
    return formulas if areas == 1 else kernels.fastest_areas(formulas, shape, areas)


def sum_squares(x_NI: Tensor) -> Tensor:
    """Σ_i x_i² of each row (N), in float32."""
    norm_N: Tensor = torch.linalg.vector_norm(x_NI, dim=1, dtype=torch.float32)
    return norm_N.square_()
