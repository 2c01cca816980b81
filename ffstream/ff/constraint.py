"""Constraints: what is enforced on the parameters after each step of the optimiser.

Shapes: L labels, F units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ffstream.ff.label_scheme import VECTORS
from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor


class Constraint(Part):
    """Changes a layer's parameters after each step, in place."""

    family: ClassVar[str] = "constraint"
    must_define: ClassVar[tuple[str, ...]] = ("apply_",)

    def incompatibility(self, *, has_label_vectors: bool) -> str:
        """Why a layer with such a label scheme cannot use it; empty if it can."""
        return ""

    def initialize_(self, parameters: Mapping[str, Tensor], randomize_: Callable[[Tensor], object]) -> None:
        """Changes initial values. `randomize_` fills a tensor with numbers from the standard normal distribution."""

    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Called after each step, before the EMA follows."""
        raise NotImplementedError


@register
class Unconstrained(Constraint):
    """Nothing is enforced."""

    kind: Literal["none"] = "none"

    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Does nothing."""


@register
class CentredLabels(Constraint):
    """E[l] ← E[l] − mean over labels, then E[l] ← rms · E[l] / √(mean of E[l]²): no label is the mean label, and none
    grows at the expense of the others. Label vectors begin at random."""

    kind: Literal["centred_labels"] = "centred_labels"
    rms: float = Field(0.5, gt=0, allow_inf_nan=False, description="root mean square of each label vector")

    def incompatibility(self, *, has_label_vectors: bool) -> str:
        """Only layers with label vectors can use it."""
        return "" if has_label_vectors else 'the layer has no label vectors; set label_scheme = "vectors"'

    def initialize_(self, parameters: Mapping[str, Tensor], randomize_: Callable[[Tensor], object]) -> None:
        """Random label vectors: from zeros, all of them would stay zero."""
        randomize_(parameters[VECTORS])
        self.apply_(parameters)

    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Centres and rescales E (L, F)."""
        vectors_LF = parameters[VECTORS]
        vectors_LF.sub_(vectors_LF.mean(0))
        mean_squares_L1 = vectors_LF.square().mean(1, keepdim=True)
        vectors_LF.mul_(mean_squares_L1.clamp_min_(1e-12).rsqrt_().mul_(self.rms))
