"""Options for concept drift: what a layer does when the concept has changed. `ff/adaptation.py` does it."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register, resolve


class Drift(Part):
    """Whether and how a layer notices that the concept has changed."""

    family: ClassVar[str] = "drift"
    must_define: ClassVar[tuple[str, ...]] = ("implementation",)
    implementation: ClassVar[str]

    def incompatibility(self, *, has_ema: bool, has_phases: bool) -> str:
        """Why it does nothing in such a network; empty if it does something."""
        return ""

    def build(self, replay_buffer: int) -> Any:
        """An `ff.adaptation.DriftTest` for a layer that learns from a replay buffer of that many samples."""
        return resolve(self.implementation)(self, replay_buffer)


@register
class NoDrift(Drift):
    """The concept is assumed to stay the same."""

    kind: Literal["none"] = "none"
    implementation: ClassVar[str] = "ffstream.ff.adaptation:NoTest"


@register
class Restart(Drift):
    """The EMA and the learning rate schedule restart once the newest weights predict better than the EMA weights.

    On a stationary stream the EMA weights predict better, unless a layer learns faster than they follow. If they err
    far more than is usual, the concept has changed: that counts as a drift, and replayed samples from before the
    change are no longer learned. It needs EMA weights: with `ema_samples = 0`, and in separate phases, nothing is
    compared.
    """

    kind: Literal["restart"] = "restart"
    implementation: ClassVar[str] = "ffstream.ff.adaptation:CumulativeSum"
    threshold: float = Field(
        20.0, gt=0, description="errors that the EMA weights must make beyond those of the newest weights"
    )
    every: int = Field(4, ge=1, description="look at every so many microbatches")
    rows: int = Field(32, ge=1, description="fresh samples of such a microbatch that are compared")

    def incompatibility(self, *, has_ema: bool, has_phases: bool) -> str:
        """There must be EMA weights to compare with, and rows of both signs to compare on."""
        if not has_ema:
            return "there are no EMA weights to compare with: network.ema_samples = 0"
        return "rows of both signs are never compared: network.wake separates the phases" if has_phases else ""
