"""Negatives: which wrong label makes the negative row of a sample. `image_negatives.py` has negatives without labels.

Random choices depend on the seed and the number of the microbatch only, so recovery draws the same labels again.
Shapes: B samples, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor

Draw = Callable[
    [int, int, tuple[int, ...]], "Tensor"
]  # (low, high, shape): whole numbers from low to high − 1, on the CPU


class Negatives(Part):
    """Chooses a wrong label for each sample."""

    family: ClassVar[str] = "negatives"
    must_define: ClassVar[tuple[str, ...]] = ("choose",)
    needs_logits: ClassVar[bool] = False  # whether goodness is multiplied by the steepness of the layer's objective

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """Wrong labels (B; int64). `goodness_BL` computes the layer's goodness (B, L) of every label."""
        raise NotImplementedError


@register
class RandomLabel(Negatives):
    """A label other than the sample's own, uniformly at random."""

    kind: Literal["random"] = "random"

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """Wrong labels (B; int64)."""
        return (own_B + draw(1, labels, tuple(own_B.shape)).to(own_B.device)).remainder_(labels)


@register
class HardestLabel(Negatives):
    """The wrong label with the highest goodness, which is the one most easily mistaken for the right one."""

    kind: Literal["hardest"] = "hardest"

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """Wrong labels (B; int64)."""
        return goodness_BL().scatter(1, own_B[:, None], -math.inf).argmax(1)


@register
class SampledLabel(Negatives):
    """A wrong label drawn from the layer's own prediction, softmax(α G / temperature), without the own label.

    α is the steepness of the layer's objective. Hinton (2022, section 3.3) draws wrong labels from what the network
    predicts. Always taking the most probable one is `hardest`. A label is drawn as the largest logit with Gumbel
    noise (Gumbel 1954).
    """

    kind: Literal["sampled"] = "sampled"
    needs_logits: ClassVar[bool] = True
    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="what logits are divided by: low is hardest, high is random"
    )

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """Wrong labels (B; int64)."""
        logits_BL = goodness_BL().div(self.temperature).scatter_(1, own_B[:, None], -math.inf)
        uniform_BL = draw(1, _FINE, tuple(logits_BL.shape)).to(logits_BL).div_(_FINE)
        return logits_BL.sub_(uniform_BL.log_().neg_().log_()).argmax(1)


_FINE = 2**23  # between 0 and 1 there are as many float32 numbers at this distance
