"""Goodness per area: the map of a layer is divided, and each area has a goodness and a loss of its own.

With a × a areas of equal size, A = a²:

    G_l = mean over areas of G_la        L = mean over areas of L(G_·a)

so each area must tell right from wrong by itself. An area is computed as a layer whose map it is, by the formulas of
the label scheme, the activation and the goodness; `kernels.py` has a version for label vectors that copies nothing.

Shapes: N rows, L labels, A areas, H height and W width of the map, C channels, F = H·W·C units, K = F/A units of an
area.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape
from ffstream.ff.label_formulas import LabelFormulas, Weights
from ffstream.ff.objective import Balance, LossFunction, LossResult, Phase


def area_shape(shape: Shape, areas: int) -> Shape:
    """The shape of an area of a map of that shape, with so many areas along each axis. 1: the whole shape."""
    if areas == 1:
        return shape
    height, width, channels = shape
    return height // areas, width // areas, channels


class AreaFormulas(LabelFormulas):
    """The formulas of a map of the given shape, from those of one of its areas."""

    def __init__(self, area: LabelFormulas, shape: Shape, areas: int) -> None:
        super().__init__(area.activation, area.goodness, area.scheme, area.labels, shape)
        self._area, self._areas = area, areas

    def areas_by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """The goodness (N, A, L) of every area and label."""
        parts = self._parts(z_NF, weights)
        return torch.stack([self._area.by_label(z_NK, label_scale_N, own) for z_NK, own in parts], 1)

    def areas_by_row(self, z_NF: Tensor) -> Tensor:
        """The goodness (N, A) of every area of label-conditioned rows."""
        return torch.stack([self._area.by_row(z_NK) for z_NK in self._divide(z_NF)], 1)

    def over_areas(self, goodness: Tensor) -> Tensor:
        """Their mean."""
        return goodness.mean(1)

    def by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """The goodness (N, L) of every label."""
        return self.over_areas(self.areas_by_label(z_NF, label_scale_N, weights))

    def by_row(self, z_NF: Tensor) -> Tensor:
        """The goodness (N) of label-conditioned rows."""
        return self.over_areas(self.areas_by_row(z_NF))

    def label_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and the gradients of the label scheme's parameters, from ∂L/∂G (N, A, L)."""
        parts = self._parts(z_NF, weights)

        def errors(area: int, gradient_NL: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            z_NK, own = parts[area]
            return self._area.label_errors(z_NK, label_scale_N, own, gradient_NL, buffers)

        return self._join(errors, gradient_NL)

    def row_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, labels_N: Tensor, gradient_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for label-conditioned rows, from ∂L/∂G (N, A)."""
        z_ANK = self._divide(z_NF)

        def errors(area: int, gradient_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self._area.row_errors(z_ANK[area], label_scale_N, labels_N, gradient_N)

        return self._join(errors, gradient_N)

    def _parts(self, z_NF: Tensor, weights: Weights) -> list[tuple[Tensor, Weights]]:
        """For each area its preactivations (N, K), and its part of the label scheme's parameters."""
        names = self.scheme.parameters(self.labels, z_NF.shape[1])
        divided = {name: self._divide(weights[name]) for name in names}
        own = [{name: value[area] for name, value in divided.items()} for area in range(self._areas**2)]
        return list(zip(self._divide(z_NF), own, strict=True))

    def _join(
        self, errors: Callable[[int, Tensor], tuple[Tensor, dict[str, Tensor]]], gradient: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The errors and gradients of all areas, in the order of the units."""
        found = []
        for area, gradient_of_area in enumerate(gradient.unbind(1)):
            e_NK, gradients = errors(area, gradient_of_area.contiguous())
            found.append({"": e_NK.clone(), **gradients})  # e may lie in a buffer that the next area overwrites
        joined = {name: self._undivide(torch.stack([each[name] for each in found])) for name in found[0]}
        return joined.pop(""), joined

    def _divide(self, units_NF: Tensor) -> Tensor:
        """Numbers of units (N, F) by area (A, N, K), contiguous."""
        height, width, channels = self.shape
        count = self._areas
        split = units_NF.view(-1, count, height // count, count, width // count, channels)
        return split.permute(1, 3, 0, 2, 4, 5).reshape(count**2, len(units_NF), -1).contiguous()

    def _undivide(self, units_ANK: Tensor) -> Tensor:
        """The reverse."""
        height, width, channels = self.shape
        count, rows = self._areas, units_ANK.shape[1]
        split = units_ANK.view(count, count, rows, height // count, width // count, channels)
        return split.permute(2, 0, 3, 1, 4, 5).reshape(rows, -1).contiguous()


class AreaLoss:
    """An objective on the goodness of areas: every area of a row counts as a row of its own."""

    def __init__(self, objective: LossFunction) -> None:
        self._objective = objective

    @property
    def state(self) -> Mapping[str, Tensor]:
        """That of the objective."""
        return self._objective.state

    def balance(self) -> Balance | None:
        """That of the objective."""
        return self._objective.balance()

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> LossResult:
        """The loss and ∂L/∂G for G (B, A, L)."""
        areas = G_BL.shape[1]
        wrong_BA = None if wrong_B is None else wrong_B.repeat_interleave(areas)
        result = self._objective.by_label(G_BL.flatten(0, 1), own_B.repeat_interleave(areas), wrong_BA, phase)
        return result._replace(goodness_gradient=result.goodness_gradient.view(G_BL.shape))

    def by_row(self, G_N: Tensor, positives: int) -> LossResult:
        """The same for G (N, A)."""
        result = self._objective.by_row(G_N.flatten(), positives * G_N.shape[1])
        return result._replace(goodness_gradient=result.goodness_gradient.view(G_N.shape))
