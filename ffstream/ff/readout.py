"""Options of the readout: where predictions come from. `ff/head.py` computes the softmax head."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.optimizer import Adam, InverseSqrt, Optimizer, Schedule
from ffstream.ff.part import Part, field_of, register, resolve


class Readout(Part):
    """Turns what the layers compute into one number for each label."""

    family: ClassVar[str] = "readout"
    must_define: ClassVar[tuple[str, ...]] = ("reads",)

    def reads(self, layers: int) -> tuple[int, ...]:
        """The layers whose activities it needs, of a network with that many layers."""
        raise NotImplementedError

    def build(self, recipe: Any, placement: Any) -> Any:
        """The member of the network that learns it, an `ff.head.Head`; None if there is nothing to learn."""
        return None


@register
class NoReadout(Readout):
    """The layers' goodness of each label is the score."""

    kind: Literal["none"] = "none"

    def reads(self, layers: int) -> tuple[int, ...]:
        """None."""
        return ()


@register
class SoftmaxReadout(Readout):
    """Softmax regression on the normalised activities of the layers, which learns while they do (Hinton 2022,
    sections 3.2 and 3.3). Its gradient does not reach the layers."""

    kind: Literal["softmax"] = "softmax"
    implementation: ClassVar[str] = "ffstream.ff.head:Head"
    layers: tuple[int, ...] = Field((), description="the layers that it reads, counted from 0; none: all")
    smoothing: float = Field(
        0.0, ge=0, lt=1, description="label smoothing: share of the target that is spread over all labels"
    )
    optimizer: Annotated[Optimizer, *field_of("optimizer")] = Field(Adam(), description="the optimiser")
    schedule: Annotated[Schedule, *field_of("schedule")] = Field(
        InverseSqrt(), description="how the learning rate falls"
    )
    learning_rate: float = Field(
        4e-3, ge=0, description="learning rate of a whole microbatch at the start of the stream"
    )
    min_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="the schedule never falls below this share of the learning rate"
    )

    def reads(self, layers: int) -> tuple[int, ...]:
        """Those chosen, in the order of the network."""
        return tuple(sorted(self.layers)) or tuple(range(layers))

    def build(self, recipe: Any, placement: Any) -> Any:
        """An `ff.head.Head`."""
        return resolve(self.implementation)(recipe, placement)
