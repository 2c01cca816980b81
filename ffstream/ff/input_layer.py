"""The layer that sees the image.

The image is shifted by the running mean of all images seen, so that a pixel which is always bright tells nothing;
then its first L pixels make room for the label's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.label_layer import LabelLayer
from ffstream.ff.labels import clear_label_pixels
from ffstream.ff.layer import Activities, LayerWeights, Placement, Polarity
from ffstream.ff.normalization import Normalization, sum_squares
from ffstream.ff.presets import Recipe

_MEMORY_OF_MEAN = 1e-3  # the least weight of a microbatch in the mean: it follows a drift within some thousand


class ImageRows(NamedTuple):
    """Images made ready for the first layer: x (B, I) in the products' precision, x̂ = factor·x, gain of a label."""

    x_BI: Tensor
    factor_B: Tensor
    gain_B: Tensor


def to_unit(images_BI: Tensor, out_BI: Tensor) -> Tensor:
    """float32 pixels between 0 and 1, whatever they came as."""
    out_BI.copy_(images_BI)
    return out_BI.mul_(1 / 255) if images_BI.dtype == torch.uint8 else out_BI


def prepare(
    pixels_BI: Tensor, mean_I: Tensor, recipe: Recipe, normalization: Normalization, dtype: torch.dtype
) -> ImageRows:
    """Centres rows in place, darkens label pixels, and finds the factors that their length and the label's give."""
    x_BI = clear_label_pixels(pixels_BI.sub_(mean_I), recipe.labels)
    squares_B = sum_squares(x_BI).add_(recipe.label_strength**2)
    factor_B = normalization.factor(squares_B, recipe.inputs)
    return ImageRows(x_BI.to(dtype), factor_B, factor_B * recipe.label_strength)


class InputLayer(LabelLayer):
    """The layer of index 0."""

    def __init__(self, recipe: Recipe, placement: Placement) -> None:
        super().__init__(recipe, 0, placement)
        self._mean_I = torch.zeros(self.inputs, device=self.device)
        self._pixels_BI = torch.empty(recipe.rows, self.inputs, device=self.device)
        self._seen = 0

    def forward(self, images_BI: Tensor, labels_B: Tensor, step: int, polarity: Polarity) -> Activities:
        """What to hand on for images (B, I; uint8, or float32 in 0 to 1).

        `step` numbers the microbatch: random wrong labels depend on it and the seed alone.
        """
        pixels_BI = to_unit(images_BI, self._pixels_BI[: len(images_BI)])
        if self.recipe.centering:
            self._seen += len(pixels_BI)
            self._mean_I.lerp_(pixels_BI.mean(0), max(len(pixels_BI) / self._seen, _MEMORY_OF_MEAN))
        x_BI, factor_B, gain_B = prepare(pixels_BI, self._mean_I, self.recipe, self.normalization, self.product_dtype)
        return self._step(x_BI, factor_B, gain_B, labels_B.to(self.device), step, polarity)

    def averaged(self) -> LayerWeights:
        return super().averaged()._replace(mean_I=self._mean_I.clone())

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"mean": self._mean_I.clone(), "seen": torch.tensor(self._seen)}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self._mean_I.copy_(state["mean"])
        self._seen = int(state["seen"])
