"""Options of the optimisers and of the schedule of their step sizes. The steps themselves are in `ff/steps.py`."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register, resolve


class Optimizer(Part):
    """One fused step for all parameters of a layer. `implementation` names its class, which imports torch."""

    family: ClassVar[str] = "optimizer"
    must_define: ClassVar[tuple[str, ...]] = ("implementation",)
    implementation: ClassVar[str]

    def build(self, vector: Any) -> Any:
        """An `ff.steps.Stepper` for a flat vector."""
        make: Callable[..., Any] = resolve(self.implementation)
        return make(vector, self)


@register
class Adam(Optimizer):
    """Adam, Kingma and Ba 2015, without weight decay."""

    kind: Literal["adam"] = "adam"
    implementation: ClassVar[str] = "ffstream.ff.steps:AdamStepper"
    beta1: float = Field(0.5, ge=0, lt=1, description="decay of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the mean squared gradient")


@register
class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    implementation: ClassVar[str] = "ffstream.ff.steps:SgdStepper"
    momentum: float = Field(0.0, ge=0, lt=1, description="decay of the summed gradient")


class Schedule(Part):
    """The share of a layer's learning rate that remains after some samples."""

    family: ClassVar[str] = "schedule"
    must_define: ClassVar[tuple[str, ...]] = ("factor",)

    def factor(self, samples: float) -> float:
        """1 at the start."""
        raise NotImplementedError


@register
class Constant(Schedule):
    """Steps stay as large as they are."""

    kind: Literal["constant"] = "constant"

    def factor(self, samples: float) -> float:
        """1."""
        return 1.0


@register
class InverseSqrt(Schedule):
    """1 / √(1 + n/samples): large steps while everything is new. A stream has no end, so steps never reach zero:
    see the layer's `min_learning_rate_ratio`."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    samples: float = Field(6400.0, gt=0, allow_inf_nan=False, description="samples after which 1/√2 is left")

    def factor(self, samples: float) -> float:
        """1 / √(1 + n/samples)."""
        return 1 / math.sqrt(1 + samples / self.samples)
