"""Options of recurrence: whether a layer also sees the layer above it. `ff/rounds.py` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Generator, Tensor

FROM_ABOVE: Final = "from_above"  # the parameter V (units, units of the layer above)

Group = tuple[int, ...]


class Recurrence(Part):
    """What of the other layers a layer sees, and how often it computes its activities for one microbatch."""

    family: ClassVar[str] = "recurrence"
    must_define: ClassVar[tuple[str, ...]] = ("is_recurrent",)
    is_recurrent: ClassVar[bool]

    def parameters(self, units: int, units_above: int | None) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the parameters that it adds to a layer. `units_above`: None for the last layer."""
        return {}

    def initialize_(self, parameters: Mapping[str, Tensor], generator: Generator) -> None:
        """Sets their initial values."""


@register
class NoRecurrence(Recurrence):
    """A layer sees the layer below only, and computes its activities once."""

    kind: Literal["none"] = "none"
    is_recurrent: ClassVar[bool] = False


@register
class TopDown(Recurrence):
    """A layer sees the layers below and above it, and the label is on top (Hinton 2022, section 3.4).

    After a pass from the image up, the layers compute their activities again in some rounds, from those of their
    neighbours. Weights do not change meanwhile. What is learned and predicted comes from the last round.
    """

    kind: Literal["top_down"] = "top_down"
    is_recurrent: ClassVar[bool] = True
    rounds: int = Field(
        2, ge=1, le=64, description="how often each layer computes its activities again, from those of its neighbours"
    )
    order: Literal["alternating", "synchronous"] = Field(
        "alternating",
        description="in a round, first every other layer, beginning below the last one, then the others, which see "
        "the new activities of the first (alternating); or all layers at once (synchronous)",
    )

    def parameters(self, units: int, units_above: int | None) -> dict[str, tuple[int, ...]]:
        """V (units, units above). The last layer has none."""
        return {} if units_above is None else {FROM_ABOVE: (units, units_above)}

    def initialize_(self, parameters: Mapping[str, Tensor], generator: Generator) -> None:
        """V uniformly in ±1/√units_above, like the weight."""
        if FROM_ABOVE in parameters:
            limit = parameters[FROM_ABOVE].shape[1] ** -0.5
            parameters[FROM_ABOVE].uniform_(-limit, limit, generator=generator)

    def groups(self, layers: int) -> tuple[Group, ...]:
        """The layers that compute at once, in the order of a round."""
        if self.order == "synchronous":
            return (tuple(range(layers)),)
        return tuple(range(layers - 2, -1, -2)), tuple(range(layers - 1, -1, -2))

    def rounds_needed(self, layers: int) -> int:
        """After how many rounds the first of so many layers has seen the label: it comes down one layer for each
        group."""
        return -(-(layers - 1) // len(self.groups(layers)))
