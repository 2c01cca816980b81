"""Options of the optimisers and learning rate schedules. `ff/steps.py` computes the optimiser steps."""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register, resolve


class Optimizer(Part):
    """One fused step for all parameters of a layer. `implementation` names the class that computes it with torch."""

    family: ClassVar[str] = "optimizer"
    must_define: ClassVar[tuple[str, ...]] = ("implementation",)
    implementation: ClassVar[str]

    def build(self, vector: Any) -> Any:
        """An `ff.steps.Stepper` for the flat vector of a layer's parameters."""
        return resolve(self.implementation)(vector, self)


@register
class Adam(Optimizer):
    """Adam without weight decay (Kingma and Ba 2015)."""

    kind: Literal["adam"] = "adam"
    implementation: ClassVar[str] = "ffstream.ff.steps:AdamStepper"
    beta1: float = Field(0.5, ge=0, lt=1, description="decay of the moving average of the gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the moving average of the squared gradient")


@register
class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    implementation: ClassVar[str] = "ffstream.ff.steps:SgdStepper"
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum: decay of the sum of gradients")


class Schedule(Part):
    """How a layer's learning rate falls with the number of samples learned."""

    family: ClassVar[str] = "schedule"
    must_define: ClassVar[tuple[str, ...]] = ("factor",)

    def factor(self, samples: float) -> float:
        """What the learning rate is multiplied by after that many samples. 1 at the start."""
        raise NotImplementedError


@register
class Constant(Schedule):
    """The learning rate does not change."""

    kind: Literal["constant"] = "constant"

    def factor(self, samples: float) -> float:
        """Always 1."""
        return 1.0


@register
class InverseSqrt(Schedule):
    """1 / √(1 + n/samples) after n samples. A stream has no end, so the layer's `min_learning_rate_ratio` keeps the
    learning rate above zero."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    samples: float = Field(
        6400.0,
        gt=0,
        allow_inf_nan=False,
        description="samples after which the learning rate is 1/√2 of its initial value",
    )

    def factor(self, samples: float) -> float:
        """1 / √(1 + n/samples)."""
        return 1 / math.sqrt(1 + samples / self.samples)
