"""Negative data: which wrong label stands for what a sample is not.

Random choices come from the seed and the microbatch's number, so a replay draws the same.
Shapes: B samples, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor

Draw = Callable[[int, int, tuple[int, ...]], "Tensor"]  # whole numbers from low to high − 1, in a shape, on the CPU


class Negatives(Part):
    """Chooses a wrong label for each sample."""

    family: ClassVar[str] = "negatives"
    must_define: ClassVar[tuple[str, ...]] = ("choose",)

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """Wrong labels (B). `goodness_BL` computes the layer's goodness for every label."""
        raise NotImplementedError


@register
class RandomLabel(Negatives):
    """A label other than the sample's own, uniformly."""

    kind: Literal["random"] = "random"

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """(B)."""
        return (own_B + draw(1, labels, tuple(own_B.shape)).to(own_B.device)).remainder_(labels)


@register
class HardestLabel(Negatives):
    """The wrong label with the highest goodness: the one most easily mistaken for the right one."""

    kind: Literal["hardest"] = "hardest"

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """(B)."""
        return goodness_BL().scatter(1, own_B[:, None], -math.inf).argmax(1)
