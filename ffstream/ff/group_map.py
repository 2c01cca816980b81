"""A dense map for units that are divided among the labels, when a sample is compared with one wrong label.

Then the error of a sample is 0 except in two groups of units, those of its own and of the wrong label. The gradient
of a group's weights needs only the samples with an error there, so the second matrix product takes 2/L of the work.

Shapes: N rows, I inputs, O units, L labels, K units of a group, C rows with an error in a group, over all groups.
"""

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Dense, Shape, size_of
from ffstream.ff.label_scheme import Groups
from ffstream.ff.maps import DenseMap, Map
from ffstream.ff.recipe import LayerOptions

# Below these, one product of all rows is faster than a small one for each group.
_FEWEST_ROWS, _FEWEST_WEIGHTS = 96, 100_000


def map_of(options: LayerOptions, input_shape: Shape, labels: int) -> Map:
    """The map of a layer's connection: the one that skips samples where that is known to pay."""
    connection = options.connection
    two_groups = type(options.label_scheme) is Groups and options.objective.needs_wrong_labels
    # Exactly this class: a subclass may compute something else.
    if two_groups and type(connection) is Dense and connection.units * size_of(input_shape) >= _FEWEST_WEIGHTS:
        return GroupMap(connection, input_shape, labels)
    built: Map = connection.build(input_shape)
    return built


class GroupMap(DenseMap):
    """∂L/∂W of each group from the rows with an error in that group. In bfloat16 and on CUDA, where small products
    are slower than they should be, from all rows."""

    def __init__(self, options: Dense, input_shape: Shape, labels: int) -> None:
        super().__init__(options, input_shape)
        self._labels, self._units = labels, self.outputs // labels

    def weight_gradient(self, scaled_NO: Tensor, x_NI: Tensor, into_OI: Tensor, buffers: Buffers) -> None:
        """∂L/∂W, from e·r."""
        if x_NI.dtype != into_OI.dtype or x_NI.device.type != "cpu" or len(x_NI) < _FEWEST_ROWS:
            return super().weight_gradient(scaled_NO, x_NI, into_OI, buffers)
        used = self._labels * self._units
        e_NLK = scaled_NO[:, :used].unflatten(1, (self._labels, self._units))
        compared_LN = e_NLK.any(2).t()
        label_C, row_C = compared_LN.nonzero(as_tuple=True)
        x_CI = buffers.get("compared inputs", x_NI, len(row_C), self.inputs)
        torch.index_select(x_NI, 0, row_C, out=x_CI)
        rows = compared_LN.sum(1).tolist()
        for x_RI, e_RK, group_KI in zip(
            x_CI.split(rows), e_NLK[row_C, label_C].split(rows), into_OI[:used].split(self._units), strict=True
        ):
            torch.mm(e_RK.t(), x_RI, out=group_KI)
        into_OI[used:].zero_()
        return None
