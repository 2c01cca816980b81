"""Negatives: which wrong label makes the negative row of a sample. `image_negatives.py` has negatives without labels.

Random choices depend on the seed and the number of the microbatch only, so recovery draws the same labels again.
Shapes: B samples, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

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
