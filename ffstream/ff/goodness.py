"""Goodness of a layer: one number a row, from its activities. The two are not interchangeable.

Shapes: N rows, O outputs.
"""

import torch
from torch import Tensor

from ffstream.ff.presets import GoodnessName


class SumSquares:
    """G = Σ_o h_o².

    >>> SumSquares()(torch.tensor([[3., 4.]]))
    tensor([25.])
    """

    def __call__(self, h_NO: Tensor) -> Tensor:
        """Goodness of each row in float32, whatever the activities' own precision."""
        norm_N: Tensor = torch.linalg.vector_norm(h_NO, dim=-1, dtype=torch.float32)
        return norm_N.square_()

    def of_squares(self, squares: Tensor, width: int) -> Tensor:
        """Goodness of a layer that is `width` wide, from Σ_o h_o²."""
        return squares

    def slope(self, width: int) -> float:
        """The c in ∂G/∂h = c·h."""
        return 2.0


class MeanSquares(SumSquares):
    """G = (1/O) Σ_o h_o².

    >>> MeanSquares()(torch.tensor([[3., 4.]]))
    tensor([12.5000])
    """

    def __call__(self, h_NO: Tensor) -> Tensor:
        return self.of_squares(super().__call__(h_NO), h_NO.shape[-1])

    def of_squares(self, squares: Tensor, width: int) -> Tensor:
        return squares.div_(width)

    def slope(self, width: int) -> float:
        return 2.0 / width


def make_goodness(name: GoodnessName) -> SumSquares:
    """The goodness of that name."""
    return {"sum_squares": SumSquares, "mean_squares": MeanSquares}[name]()
