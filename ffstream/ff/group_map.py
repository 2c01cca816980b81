"""A dense map for units that are divided among the labels, when a sample is compared with one wrong label.

Then the error of a sample is 0 except in two groups of units, those of its own and of the wrong label. The gradient
of a group's weights needs only the samples with an error there, so the second matrix product takes 2/L of the work.

Shapes: N rows, I inputs, O units, L labels, K units of a group, C rows with an error in a group, over all groups.
"""

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Dense, Shape
from ffstream.ff.label_scheme import Groups
from ffstream.ff.maps import DenseMap, Map
from ffstream.ff.recipe import LayerOptions

# Rows · inputs · units of a product. Below these, one product of all rows is faster than a small one for each group.
_PAYS = {torch.float32: 2e7, torch.bfloat16: 1e8}


def map_of(options: LayerOptions, input_shape: Shape, labels: int) -> Map:
    """The map of a layer's connection: the one that skips samples where that is known to pay."""
    connection = options.connection
    two_groups = type(options.label_scheme) is Groups and options.objective.needs_wrong_labels
    if two_groups and type(connection) is Dense:  # exactly this class: a subclass may compute something else
        return GroupMap(connection, input_shape, labels)
    built: Map = connection.build(input_shape)
    return built


class GroupMap(DenseMap):
    """The product of each group with the rows that have an error in that group."""

    def __init__(self, options: Dense, input_shape: Shape, labels: int) -> None:
        super().__init__(options, input_shape)
        self._labels, self._units = labels, self.outputs // labels

    def product(self, e_NO: Tensor, x_NI: Tensor, out_OI: Tensor, buffers: Buffers) -> None:
        """Writes eᵀx; on CUDA, and where that does not pay, with all rows."""
        if x_NI.device.type != "cpu" or e_NO.numel() * self.inputs < _PAYS[x_NI.dtype]:
            return super().product(e_NO, x_NI, out_OI, buffers)
        used = self._labels * self._units
        e_NLK = e_NO[:, :used].unflatten(1, (self._labels, self._units))
        compared_LN = e_NLK.any(2).t()
        label_C, row_C = compared_LN.nonzero(as_tuple=True)
        x_CI = buffers.get("compared inputs", x_NI, len(row_C), self.inputs)
        torch.index_select(x_NI, 0, row_C, out=x_CI)
        rows = compared_LN.sum(1).tolist()
        for e_RK, x_RI, group_KI in zip(
            e_NLK[row_C, label_C].split(rows), x_CI.split(rows), out_OI[:used].split(self._units), strict=True
        ):
            torch.mm(e_RK.t(), x_RI, out=group_KI)
        out_OI[used:].zero_()
        return None
