"""Augmentation: replayed images are shifted, and some of them mirrored, so that a repeated image is never the same.

Shapes: B samples, I numbers in an image of height H and width W.
"""

import torch
from torch import Tensor

from ffstream.ff.recipe import Recipe


class Augmentation:
    """Shifts each image by up to `replay_jitter` pixels each way, and mirrors half of them with `replay_flip`."""

    def __init__(self, recipe: Recipe) -> None:
        self._shape = recipe.image_shape
        self._reach = recipe.replay_jitter if len(self._shape) in (2, 3) else 0
        self._flips = recipe.replay_flip
        self._repeats = recipe.replay_edges == "repeat"

    def apply(self, images_BI: Tensor, generator: torch.Generator) -> Tensor:
        """Changed images, on the CPU, in a new tensor; the given ones if there is nothing to change."""
        if not (self._reach or self._flips):
            return images_BI
        height, width = self._shape[:2]
        y_B, x_B = torch.randint(-self._reach, self._reach + 1, (2, len(images_BI)), generator=generator)
        rows_BH = y_B[:, None] + torch.arange(height)
        columns_BW = x_B[:, None] + torch.arange(width)
        if self._flips:
            mirrored_B = torch.randint(0, 2, (len(images_BI),), generator=generator).bool()
            columns_BW = torch.where(mirrored_B[:, None], width - 1 - columns_BW, columns_BW)
        return self._gather(images_BI, rows_BH, columns_BW)

    def _gather(self, images_BI: Tensor, rows_BH: Tensor, columns_BW: Tensor) -> Tensor:
        """The pixels at these rows and columns of each image. Outside are zeros, or the pixels of the edge."""
        height, width, *channels = self._shape
        images_BHWC = images_BI.view(-1, height, width, *(channels or [1]))
        if self._repeats:
            rows_BH, columns_BW = rows_BH.clamp(0, height - 1), columns_BW.clamp(0, width - 1)
        else:
            reach = self._reach
            images_BHWC = torch.nn.functional.pad(images_BHWC, (0, 0, reach, reach, reach, reach))
            rows_BH, columns_BW = rows_BH + reach, columns_BW + reach
        which_B11 = torch.arange(len(images_BI))[:, None, None]
        return images_BHWC[which_B11, rows_BH[:, :, None], columns_BW[:, None, :]].view(len(images_BI), -1)
