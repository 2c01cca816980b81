"""Image negatives: rows that should have low goodness, made from images instead of wrong labels.

Layers then learn without labels, and a readout predicts them. Random choices depend on the seed and the number of the
microbatch only, so recovery makes the same rows again.

Shapes: B samples, I inputs, H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ffstream.ff.connection import Shape
from ffstream.ff.negatives import Negatives
from ffstream.ff.part import register

if TYPE_CHECKING:
    from torch import Tensor

Noise = Callable[[tuple[int, ...]], "Tensor"]  # (shape): independent uniform numbers from 0 to 1, on the CPU


class ImageNegatives(Negatives):
    """Makes a negative row for each image of a microbatch."""

    must_define: ClassVar[tuple[str, ...]] = ("make",)
    takes_labels: ClassVar[bool] = False  # whether, in layers that know labels, it makes negatives with wrong ones

    def incompatibility(self, shape: Shape) -> str:
        """Why it cannot use images of this shape; empty if it can."""
        return ""

    def make(self, x_BI: Tensor, shape: Shape, noise: Noise) -> Tensor:
        """Negative rows (B, I), in a new tensor, from the preprocessed images (B, I) of a microbatch."""
        raise NotImplementedError


@register
class Hybrid(ImageNegatives):
    """m · x_i + (1 − m) · x_j, where x_j is the image before x_i in the microbatch (Hinton 2022, section 3.2).

    The mask m is uniform noise, blurred with [¼ ½ ¼] along both axes several times, and 1 where that exceeds ½. It
    has large areas of ones and of zeros, so a hybrid has the short-range structure of images, but not their
    long-range structure. All channels of a pixel have the same mask. The blur is cyclic.
    """

    kind: Literal["hybrid"] = "hybrid"
    blurs: int = Field(6, ge=0, le=1000, description="how often the noise is blurred: more makes larger areas")

    def incompatibility(self, shape: Shape) -> str:
        """Masks need to know which pixels are neighbours."""
        if len(shape) in (2, 3):
            return ""
        return (
            f"needs images with a height and a width: network.image_shape = {list(shape)} must be [H, W] or [H, W, C]"
        )

    def make(self, x_BI: Tensor, shape: Shape, noise: Noise) -> Tensor:
        """Hybrids (B, I)."""
        height, width, *channels = shape
        mask_BHW1 = self.masks(len(x_BI), height, width, noise).to(x_BI.device)[..., None]
        x_BHWC = x_BI.view(-1, height, width, math.prod(channels))
        # Exact for masks of zeros and ones, and four times as fast as `where` on the CPU.
        return x_BHWC.roll(1, 0).lerp_(x_BHWC, mask_BHW1).view(len(x_BI), -1)

    def masks(self, count: int, height: int, width: int, noise: Noise) -> Tensor:
        """Masks (count, H, W): 0.0 or 1.0."""
        noise_BHW = noise((count, height, width))
        # All blurs along an axis are one product with a matrix.
        across_WW = noise_BHW.new_tensor(_blur(width, self.blurs))
        down_HH = noise_BHW.new_tensor(_blur(height, self.blurs))
        return (down_HH @ (noise_BHW @ across_WW)).gt_(0.5)


@cache
def _blur(size: int, times: int) -> tuple[tuple[float, ...], ...]:
    """The symmetric matrix that blurs a cyclic row of that size so many times.

    Blurring n times is a convolution with the binomial coefficients of 2n, divided by 4ⁿ.
    """
    kernel = [0.0] * size
    for k in range(2 * times + 1):
        kernel[(k - times) % size] += math.comb(2 * times, k) / 4**times
    return tuple(tuple(kernel[(column - row) % size] for column in range(size)) for row in range(size))
