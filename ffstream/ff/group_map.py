"""A dense map for units that are divided among the labels, when a sample is compared with one wrong label.

Then the error of a row is 0 except in two groups of units, those of its own and of the wrong label. The gradient of a
group's weights needs only the rows with an error there, so the second matrix product takes 2/L of the work.

Shapes: N rows, I inputs, O units, L labels, K units of a group, C rows with an error in a group, over all groups;
P of them in one group.
"""

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Dense, Shape
from ffstream.ff.label_scheme import Groups
from ffstream.ff.maps import DenseMap, Map
from ffstream.ff.recipe import LayerOptions

# N · O · I. Below this, one product of all rows is faster than a small one for each group.
_PAYS_FROM = 2e7
_FEWEST_LABELS = 3  # with two, every row has an error in both groups


def map_of(options: LayerOptions, input_shape: Shape, labels: int) -> Map:
    """The map of a layer's connection: a `GroupMap` where rows can be skipped."""
    connection = options.connection
    two_groups = type(options.label_scheme) is Groups and options.objective.needs_wrong_labels
    # Exactly this class: a subclass may compute something else.
    if two_groups and labels >= _FEWEST_LABELS and type(connection) is Dense:
        return GroupMap(connection, input_shape, labels)
    built: Map = connection.build(input_shape)
    return built


class GroupMap(DenseMap):
    """The product of each group with the rows that have an error in that group. Units that are left over have none.

    Only in float32 on the CPU: for bfloat16, oneDNN compiles and keeps a product for every number of rows, and there
    is a new number in almost every step.
    """

    def __init__(self, options: Dense, input_shape: Shape, labels: int) -> None:
        super().__init__(options, input_shape)
        self._labels, self._units = labels, self.outputs // labels

    def product(self, scaled_NO: Tensor, x_NI: Tensor, out_OI: Tensor, buffers: Buffers) -> None:
        """Writes (r·e)ᵀ x (O, I), in which the rows of left-over units are 0."""
        skips = x_NI.dtype is torch.float32 and x_NI.device.type == "cpu"
        if not skips or scaled_NO.numel() * self.inputs < _PAYS_FROM:
            super().product(scaled_NO, x_NI, out_OI, buffers)
            return
        used = self._labels * self._units
        e_NLK = scaled_NO[:, :used].unflatten(1, (self._labels, self._units))
        compared_LN = e_NLK.any(2).t()
        label_C, row_C = compared_LN.nonzero(as_tuple=True)
        x_CI = buffers.get("compared inputs", x_NI, len(row_C), self.inputs)
        torch.index_select(x_NI, 0, row_C, out=x_CI)
        rows = compared_LN.sum(1).tolist()
        for e_PK, x_PI, group_KI in zip(
            e_NLK[row_C, label_C].split(rows), x_CI.split(rows), out_OI[:used].split(self._units), strict=True
        ):
            torch.mm(e_PK.t(), x_PI, out=group_KI)
        out_OI[used:].zero_()
