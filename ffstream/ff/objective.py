"""What a layer minimises: a loss on goodness, with its gradient.

Contrasts compare positive rows with negative rows; the softmax compares all labels of a sample at once.
Shapes: B samples, L labels. Each loss is the mean over samples, so a learning rate does not depend on B.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ffstream.ff.kernels import softmax_slopes
from ffstream.ff.presets import Recipe


class Slopes(NamedTuple):
    """∂L/∂G of the positive and of the negative rows, and the loss itself (a scalar on the device)."""

    positive_B: Tensor | None
    negative_B: Tensor | None
    loss: Tensor


class Paired:
    """L = mean softplus(−α (G⁺ − G⁻)): a sample's own label must beat its wrong one."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def slopes(self, positive_B: Tensor | None, negative_B: Tensor | None) -> Slopes:
        """Loss and slopes; both polarities are needed."""
        assert positive_B is not None, "configuration admits no phase without a pair"
        assert negative_B is not None
        lag_B = (negative_B - positive_B).mul_(self.alpha)
        slope_B = lag_B.sigmoid().mul_(self.alpha / len(lag_B))  # ∂L/∂G⁻ = −∂L/∂G⁺ = α σ(α(G⁻−G⁺)) / B
        return Slopes(-slope_B, slope_B, softplus(lag_B).mean())


class Threshold:
    """L = mean softplus(−α (G⁺ − θ)) + mean softplus(α (G⁻ − θ)), Hinton 2022, with the slope α.

    Separable: one polarity may come without the other.
    """

    def __init__(self, alpha: float, theta: float) -> None:
        self.alpha = alpha
        self.theta = theta

    def slopes(self, positive_B: Tensor | None, negative_B: Tensor | None) -> Slopes:
        """Loss and slopes of the polarities given."""
        slopes: list[Tensor | None] = []
        losses: list[Tensor] = []
        for goodness_B, sign in ((positive_B, -1.0), (negative_B, 1.0)):
            if goodness_B is None:
                slopes.append(None)
                continue
            excess_B = (goodness_B - self.theta).mul_(sign * self.alpha)
            slopes.append(excess_B.sigmoid().mul_(sign * self.alpha / len(excess_B)))
            losses.append(softplus(excess_B).mean())
        return Slopes(slopes[0], slopes[1], torch.stack(losses).sum())


Contrast = Paired | Threshold


def make_contrast(recipe: Recipe) -> Contrast:
    """The recipe's objective on positive and negative rows."""
    return Threshold(recipe.alpha, recipe.theta) if recipe.objective == "threshold" else Paired(recipe.alpha)


class Softmax:
    """L = mean cross-entropy of softmax(α G) against the label, smoothed by ε.

    Every wrong label is a negative, weighted by how well the layer likes it: the contrast with the hardest
    label is its limit for large α. Smoothing ends the growth of goodness once a sample is well known.
    """

    def __init__(self, alpha: float, smoothing: float) -> None:
        self.alpha = alpha
        self.smoothing = smoothing

    def slopes(self, goodness_BL: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂G (B, L) = α (softmax(αG) − target) / B, and the loss."""
        if goodness_BL.device.type == "cpu" and goodness_BL.dtype == torch.float32:
            return softmax_slopes(goodness_BL, labels_B, self.alpha, self.smoothing)
        size, labels = goodness_BL.shape
        log_BL = (goodness_BL * self.alpha).log_softmax(1)
        own_B1 = labels_B[:, None]
        own_loss = log_BL.gather(1, own_B1).mean().mul_(self.smoothing - 1)
        loss = own_loss - self.smoothing * log_BL.mean()
        slope_BL = log_BL.exp_().sub_(self.smoothing / labels)
        slope_BL.scatter_add_(1, own_B1, slope_BL.new_full((size, 1), self.smoothing - 1))
        return slope_BL.mul_(self.alpha / size), loss
