"""Rounds: how the activities of a recurrent network settle, in learning and in prediction.

C_i is the connection of layer i from below, V_i its weights from above, n the normalisation, E_i its label vectors.
For every label l:

    upward pass    z_i = C_i(n(h_{i-1}))                       from the image up, without a label
                   z_i^l = C_i(n(h_{i-1})) + E_i[l]            the last layer
    each round     z_i^l = C_i(n(h_{i-1}^l)) + V_i n(h_{i+1}^l) (+ E_i[l], if the layer has label vectors)
                   h_i^l = φ(z_i^l)

The layers of a group (`recurrence.py`) compute at once, from the activities before. There is no gradient between
layers and none through rounds: what a layer learns from is the inputs and the activities of its last computation,

    ∂L/∂C_i: that of the connection        ∂L/∂V_i = Σ ∂L/∂z_i^l n(h_{i+1}^l)ᵀ        ∂L/∂E_i[l] = Σ ∂L/∂z_i^l

The upward pass and the image have no label, so their products are computed once for all labels.

Shapes: B samples, L labels, N rows (B, or B·L: each sample with every label), I inputs, F units, A units above.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.formulas import Formulas, ForwardResult, sum_squares
from ffstream.ff.label_formulas import Weights
from ffstream.ff.label_scheme import VECTORS
from ffstream.ff.recurrence import FROM_ABOVE, TopDown


class _Above(NamedTuple):
    """The activities of the layer above, and the inverse of the norm of each row."""

    h_NA: Tensor
    inverse_norm_N: Tensor


class SettlingLayer:
    """One layer and its activities for a microbatch or a query. The buffers must be its own."""

    def __init__(self, formulas: Formulas, weights: Weights, dtype: torch.dtype, buffers: Buffers) -> None:
        self.formulas = formulas
        self._weights, self._dtype, self._buffers = weights, dtype, buffers
        self._turn = 0

    def start(self, below_NI: Tensor, *, is_last: bool) -> None:
        """The upward pass. `below_NI` has one row for each sample."""
        self._samples = len(below_NI)
        self._see_below(below_NI)
        self._above: _Above | None = None
        self._compute(with_label=is_last)

    def settle(self, below_NI: Tensor, above_NA: Tensor | None) -> None:
        """Computes z and h again, with a row for every label, if the inputs or the layer itself know labels.

        `above_NA`: None for the last layer.
        """
        if below_NI is not self._below_NI:
            self._see_below(below_NI)
        self._above = None if above_NA is None else self._see_above(above_NA)
        self._compute(with_label=True)

    def _see_below(self, below_NI: Tensor) -> None:
        self._below_NI = below_NI
        self._seen = self.formulas.forward(below_NI, self._weights, self._dtype, self._buffers)

    def _see_above(self, above_NA: Tensor) -> _Above:
        normalization = self.formulas.options.normalization
        return _Above(above_NA, normalization.inverse_norm(sum_squares(above_NA), above_NA.shape[1]))

    def _compute(self, *, with_label: bool) -> None:
        seen_NF = self._seen.z_NF
        rows = max(len(seen_NF), 0 if self._above is None else len(self._above.h_NA))
        if with_label and VECTORS in self._weights:
            rows = self._samples * self.formulas.labels
        z_NF = self._buffers.get("settled", seen_NF, rows, self.formulas.units)
        z_BLF = z_NF.view(self._samples, rows // self._samples, -1)
        self.z_NF = self._preactivation(seen_NF, self._above, self._weights, z_BLF, self._buffers)
        self._turn = 1 - self._turn  # the neighbours may still need the activities that they have seen
        like = torch.empty(0, dtype=self._dtype, device=z_NF.device)
        self.h_NF = self.formulas.activities(z_NF, self._buffers.get(f"activities {self._turn}", like, *z_NF.shape))

    @staticmethod
    def _preactivation(
        seen_NF: Tensor, above: _Above | None, weights: Weights, out_BLF: Tensor, buffers: Buffers
    ) -> Tensor:
        """z (N, F), in the memory of `out_BLF`; with one label it is z without a label."""
        seen_BLF = seen_NF.view(len(out_BLF), -1, out_BLF.shape[-1])
        if above is None:
            out_BLF.copy_(seen_BLF)
        else:
            weight_FA = weights[FROM_ABOVE]
            product_NF = buffers.get("from above", above.h_NA, len(above.h_NA), len(weight_FA))
            torch.mm(above.h_NA, weight_FA.t(), out=product_NF)
            product_BLF = product_NF.view(len(out_BLF), -1, len(weight_FA)).expand_as(out_BLF)
            torch.mul(product_BLF, above.inverse_norm_N.view(len(out_BLF), -1, 1), out=out_BLF)
            out_BLF.add_(seen_BLF)
        if out_BLF.shape[1] > 1 and VECTORS in weights:
            out_BLF.add_(weights[VECTORS])
        return out_BLF.flatten(0, 1)

    def result(self) -> ForwardResult:
        """The settled z, as the result of a forward pass."""
        return self._seen._replace(z_NF=self.z_NF)

    def goodness(self) -> Tensor:
        """The goodness (B, L) of every label."""
        return self.formulas.label_formulas.by_row(self.z_NF).view(-1, self.formulas.labels)

    def write_gradients(self, gradient_BL: Tensor, into: Mapping[str, Tensor]) -> None:
        """Writes the gradients of all parameters, from ∂L/∂G."""
        seen = self._seen
        e_BLF = self.formulas.label_formulas.error(self.z_NF.view(*gradient_BL.shape, -1), gradient_BL)
        e_NF = e_BLF.flatten(0, 1)
        if self._above is not None:
            self._write_gradient_from_above(e_NF, self._above, into[FROM_ABOVE])
        if VECTORS in self._weights:
            into[VECTORS].copy_(e_BLF.sum(0))
        if len(seen.x_NI) == self._samples:
            e_NF = e_BLF.sum(1)
        self.formulas.map.gradients(
            e_NF, seen.saved, seen.x_NI, seen.inverse_norm_N, self._weights, into, self._buffers
        )

    def _write_gradient_from_above(self, e_NF: Tensor, above: _Above, into: Tensor) -> None:
        scaled_NF = self._buffers.get("from above", above.h_NA, *e_NF.shape)
        torch.mul(e_NF, above.inverse_norm_N[:, None], out=scaled_NF)
        into.copy_(scaled_NF.t() @ above.h_NA)

    def goodness_by(self, weights: Weights, samples: int) -> Tensor:
        """The goodness (samples, L) of every label of the first samples by other weights of this layer, from the
        inputs that it has seen."""
        labels, units = self.formulas.labels, self.formulas.units
        rows = samples * (len(self._seen.x_NI) // self._samples)
        seen = self.formulas.forward(self._seen.x_NI[:rows], weights, self._dtype, Buffers())
        above = self._above and _Above(*(each[: samples * labels] for each in self._above))
        out_BLF = torch.empty(samples, labels, units, device=seen.z_NF.device)
        z_NF = self._preactivation(seen.z_NF, above, weights, out_BLF, Buffers())
        return self.formulas.label_formulas.by_row(z_NF).view(samples, labels)


def settle(recurrence: TopDown, layers: Sequence[SettlingLayer], x_BI: Tensor) -> None:
    """The upward pass from the image rows, and all rounds."""
    last = len(layers) - 1
    below_NI = x_BI
    for index, layer in enumerate(layers):
        layer.start(below_NI, is_last=index == last)
        below_NI = layer.h_NF
    for _ in range(recurrence.rounds):
        for group in recurrence.groups(len(layers)):
            seen = [
                (layers[index - 1].h_NF if index else x_BI, layers[index + 1].h_NF if index < last else None)
                for index in group
            ]
            for index, (below, above) in zip(group, seen, strict=True):
                layers[index].settle(below, above)
