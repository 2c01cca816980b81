"""torch's fused Adam and SGD on one flat vector.

The functional versions are used because for a small layer the optimiser classes spend as much time on their parameter
groups as the step itself takes.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ffstream.ff.optimizer import Adam, Sgd


class Stepper(Protocol):
    """Changes a vector along its gradient. `state` holds, by name, everything that later steps depend on. It is zero
    before the first step."""

    state: dict[str, Tensor]

    def step(self, vector: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """One step, which changes `vector` in place."""
        ...


class AdamStepper:
    """θ ← θ − η m̂ / (√v̂ + 10⁻⁸)."""

    def __init__(self, vector: Tensor, options: Adam) -> None:
        self._options = options
        self.state = {
            "exp_avg": torch.zeros_like(vector),
            "exp_avg_sq": torch.zeros_like(vector),
            "step": torch.zeros((), device=vector.device),
        }

    def step(self, vector: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """One step, which changes `vector` in place."""
        state = self.state
        adam(
            [vector],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=self._options.beta1,
            beta2=self._options.beta2,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


class SgdStepper:
    """u ← μu + g, θ ← θ − ηu."""

    def __init__(self, vector: Tensor, options: Sgd) -> None:
        self._momentum = options.momentum
        self.state = {"momentum_buffer": torch.zeros_like(vector)}

    def step(self, vector: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """One step, which changes `vector` in place."""
        sgd(
            [vector],
            [gradient],
            [self.state["momentum_buffer"]],
            fused=True,
            weight_decay=0.0,
            momentum=self._momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
