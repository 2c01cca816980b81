"""Fast paths: compiled versions of formulas that are not matrix products. Each must equal its formula.

A label adds g·E[l] to a row, so h = φ(z + g E[l]) for every label l. Written with tensor operations, this takes
six passes over N·L·F numbers, which takes as long as the matrix products. As a loop it takes two passes over numbers
that stay in the first-level cache. The loops are in `loops.py`; they run on the CPU, for float32 tensors.

Shapes: N rows, L labels, F units, A areas of a map, S segments of K units.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ffstream.ff.activation import Activation, Relu, Silu
from ffstream.ff.areas import AreaFormulas
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape
from ffstream.ff.goodness import MeanSquares, Quadratic, SumSquares
from ffstream.ff.label_formulas import LabelFormulas, Weights
from ffstream.ff.label_scheme import VECTORS, Groups, LabelScheme, Pixels, Vectors
from ffstream.ff.objective import Objective, Softmax

Floats = NDArray[Any]


class Segments(NamedTuple):
    """The units of a layer as S segments, in order: the area (S; int64) of each, and how many areas there are."""

    area_S: Floats
    areas: int

    def split(self, units: Tensor) -> Floats:
        """Numbers of units (N, F), by segment (N, S, K)."""
        rows, segments = units.numpy(), self.area_S.shape[0]
        # Reshaping an array takes less time than a view of a tensor.
        return rows.reshape(rows.shape[0], segments, rows.shape[1] // segments)


_WHOLE = Segments(np.zeros(1, np.int64), 1)


def prepare() -> None:
    """Imports the compiled loops now, so that the first caller that needs them does not have to wait."""
    from ffstream.ff import loops  # noqa: F401


def fastest(formulas: LabelFormulas, device: torch.device) -> LabelFormulas:
    """The fastest implementation of these formulas on this device: compiled, if there are kernels for these parts."""
    # Exactly these classes: a subclass may compute something else.
    if type(formulas.goodness) not in (SumSquares, MeanSquares):
        return formulas
    activation, scheme = type(formulas.activation), type(formulas.scheme)
    kind = _COMPILED.get((activation, scheme)) if device.type == "cpu" else None
    if kind is None or (issubclass(kind, CompiledGroupFormulas) and len(formulas.shape) > 1):
        if activation is not Relu:
            return formulas
        kind = SquaredLabelFormulas
    return kind(formulas.activation, formulas.goodness, formulas.scheme, formulas.labels, formulas.shape)


def fastest_areas(area: LabelFormulas, shape: Shape, areas: int) -> AreaFormulas:
    """The fastest formulas of a map of this shape, from those of one of its areas."""
    if isinstance(area, CompiledVectorFormulas):
        return CompiledAreaFormulas(area, shape, areas)
    return AreaFormulas(area, shape, areas)


def fastest_objective(objective: Objective, device: torch.device) -> Objective:
    """The fastest implementation of this objective on this device."""
    if type(objective) is Softmax and device.type == "cpu":
        return CompiledSoftmax.model_construct(**dict(objective))
    return objective


class SquaredLabelFormulas(LabelFormulas):
    """For ReLU with a quadratic goodness. ReLU's derivative is 1 where h > 0, so the gradient needs only h."""

    goodness: Quadratic

    def error(self, z: Tensor, gradient: Tensor) -> Tensor:
        """∂L/∂z, in a new tensor, from ∂L/∂G."""
        scaled = gradient * (2 * self.goodness.coefficient(z.shape[-1]))
        return z.clamp_min(0).mul_(scaled[..., None])


class CompiledFormulas(LabelFormulas):
    """For a quadratic goodness, with ReLU or SiLU."""

    goodness: Quadratic

    @property
    def silu(self) -> bool:
        """Which of both activations the loops compute."""
        return type(self.activation) is Silu


class CompiledVectorFormulas(CompiledFormulas):
    """For label schemes that add a label vector, as compiled loops over all labels of a row."""

    def by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """The goodness (N, L) of every label."""
        return self.by_segment(z_NF, label_scale_N, weights, _WHOLE)[:, 0]

    def by_segment(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, segments: Segments) -> Tensor:
        """The goodness (N, A, L) of every area and label."""
        from ffstream.ff import loops

        rows, units = z_NF.shape
        squares_NAL = torch.empty(rows, segments.areas, self.labels)
        loops.squares(
            segments.split(z_NF),
            label_scale_N.numpy(),
            segments.split(weights[VECTORS]),
            segments.area_S,
            squares_NAL.numpy(),
            self.silu,
        )
        coefficient = self.goodness.coefficient(units // segments.areas)
        return squares_NAL if coefficient == 1 else squares_NAL.mul_(coefficient)

    def label_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and ∂L/∂E (L, F)."""
        return self.segment_errors(z_NF, label_scale_N, weights, gradient_NL[:, None], buffers, _WHOLE)

    def segment_errors(
        self,
        z_NF: Tensor,
        label_scale_N: Tensor,
        weights: Weights,
        gradient_NAL: Tensor,
        buffers: Buffers,
        segments: Segments,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from the gradient (N, A, L) of every area and label."""
        from ffstream.ff import loops

        vectors_LF = weights[VECTORS]
        error_NF = buffers.get("error", z_NF, *z_NF.shape)
        gradient_LF = torch.empty_like(vectors_LF)
        loops.errors(
            segments.split(z_NF),
            label_scale_N.numpy(),
            segments.split(vectors_LF),
            segments.area_S,
            gradient_NAL.mul(2 * self.goodness.coefficient(z_NF.shape[1] // segments.areas)).numpy(),
            segments.split(error_NF),
            segments.split(gradient_LF),
            self.silu,
        )
        return error_NF, {VECTORS: gradient_LF}


class CompiledReluFormulas(CompiledVectorFormulas, SquaredLabelFormulas):
    """With ReLU."""


class CompiledAreaFormulas(AreaFormulas):
    """Label vectors with a goodness for each area. The loops see a row as segments: the parts of its rows of places
    that lie in one area. So nothing is copied."""

    def __init__(self, area: CompiledVectorFormulas, shape: Shape, areas: int) -> None:
        super().__init__(area, shape, areas)
        self._compiled = area
        rows_H = np.arange(shape[0]) // (shape[0] // areas)
        self._segments = Segments((rows_H[:, None] * areas + np.arange(areas)).flatten(), areas**2)

    def areas_by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """The goodness (N, A, L) of every area and label."""
        return self._compiled.by_segment(z_NF, label_scale_N, weights, self._segments)

    def label_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and ∂L/∂E (L, F), from ∂L/∂G (N, A, L)."""
        return self._compiled.segment_errors(z_NF, label_scale_N, weights, gradient_NL, buffers, self._segments)


class CompiledGroupFormulas(CompiledFormulas):
    """For units that are divided among the labels, as one compiled loop over a row."""

    def by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """The goodness (N, L) of every label."""
        from ffstream.ff import loops

        squares_NL = torch.empty(z_NF.shape[0], self.labels)
        loops.group_squares(z_NF.numpy(), squares_NL.numpy(), self.silu)
        coefficient = self.goodness.coefficient(z_NF.shape[1] // self.labels)
        return squares_NL if coefficient == 1 else squares_NL.mul_(coefficient)

    def label_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F). There are no parameters."""
        from ffstream.ff import loops

        error_NF = buffers.get("error", z_NF, *z_NF.shape)
        scaled_NL = gradient_NL.mul(2 * self.goodness.coefficient(z_NF.shape[1] // self.labels))
        loops.group_errors(z_NF.numpy(), scaled_NL.numpy(), error_NF.numpy(), self.silu)
        return error_NF, {}


class CompiledReluGroupFormulas(CompiledGroupFormulas, SquaredLabelFormulas):
    """With ReLU."""


_COMPILED: Mapping[tuple[type[Activation], type[LabelScheme]], type[LabelFormulas]] = {
    (Relu, Vectors): CompiledReluFormulas,
    (Relu, Pixels): CompiledReluFormulas,
    (Relu, Groups): CompiledReluGroupFormulas,
    (Silu, Vectors): CompiledVectorFormulas,
    (Silu, Pixels): CompiledVectorFormulas,
    (Silu, Groups): CompiledGroupFormulas,
}


class CompiledSoftmax(Softmax):
    """Softmax with one compiled loop instead of a dozen small tensor operations."""

    def loss(self, G_BL: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂G (B, L) and L."""
        if G_BL.dtype != torch.float32:
            return super().loss(G_BL, own_B)
        from ffstream.ff import loops

        gradient_BL = torch.empty_like(G_BL)
        loss = loops.softmax(G_BL.numpy(), own_B.numpy(), self.alpha, self.smoothing, gradient_BL.numpy())
        return gradient_BL, torch.tensor(loss)
