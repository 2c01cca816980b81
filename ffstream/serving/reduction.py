"""Activities of a layer as few enough numbers to draw: means of neighbours.

Shapes: F units, or a map (H, W, C), its channels last; L labels.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ffstream.ff.connection import Shape

VALUES_MAX = 1024

Group = tuple[int, int]  # the first and the last unit, or channel


class Reduction:
    """Reduces the activities of a layer with outputs of `shape` to at most VALUES_MAX numbers of the shape `reduced`.

    First the places of a map are averaged in windows of P×P, then units (channels) are, in runs of neighbours. With
    `groups`, a run does not cross the border of a group.
    """

    def __init__(self, shape: Shape, groups: tuple[Group, ...] = ()) -> None:
        self._shape = shape
        self._window = _window(shape)
        places = [math.ceil(size / self._window) for size in shape[:-1]]
        self._runs = _runs(shape[-1], groups, max(1, VALUES_MAX // math.prod(places)))
        self.reduced = (*places, len(self._runs))

    def __call__(self, h_F: Tensor) -> Tensor:
        """The reduced activities, flat."""
        h = h_F.float().view(self._shape)
        if self._window > 1:
            window = self._window
            pooled = avg_pool2d(h.permute(2, 0, 1), window, ceil_mode=True, count_include_pad=False)
            h = pooled.permute(1, 2, 0)
        if len(self._runs) < self._shape[-1]:
            h = torch.stack([h[..., first : last + 1].mean(-1) for first, last in self._runs], -1)
        return h.reshape(-1)

    def group(self, group: Group) -> Group:
        """Which reduced units (channels) a group covers."""
        inside = [at for at, (first, last) in enumerate(self._runs) if group[0] <= first and last <= group[1]]
        return inside[0], inside[-1]


def _window(shape: Shape) -> int:
    """The smallest window with which the values of a map are few enough, or with which one place is left."""
    if len(shape) != 3:
        return 1
    height, width, channels = shape
    window = 1
    while window < max(height, width):
        if math.ceil(height / window) * math.ceil(width / window) * channels <= VALUES_MAX:
            break
        window += 1
    return window


def _runs(units: int, groups: tuple[Group, ...], most: int) -> list[Group]:
    """The runs of units, of equal length within a group. More groups than `most` make as many runs as groups."""
    bounds = [*groups]
    if not groups or groups[-1][1] < units - 1:
        bounds.append((groups[-1][1] + 1 if groups else 0, units - 1))  # those that belong to no group
    length = 1
    while (count := sum(math.ceil((last - first + 1) / length) for first, last in bounds)) > most:
        if count == len(bounds):
            break
        length += 1
    return [(first, min(first + length - 1, end)) for begin, end in bounds for first in range(begin, end + 1, length)]
