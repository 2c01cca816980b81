"""A layer's parameters in one flat vector, with the optimiser and the running average.

One vector, because then an update, the average, a copy for a snapshot and a copy for a checkpoint are one
memory-bound pass each. `views` are its weight (O, I), bias (O) and label vectors (L, O).

State, valid if and only if all of it comes from after the same update:
`parameters`, `average` (absent without averaging), `samples`, and the optimiser's own vectors.
"""

import math

import torch
from torch import Tensor

from ffstream.ff.copies import Copies
from ffstream.ff.optimizer import make_optimizer
from ffstream.ff.presets import Recipe


class Parameters:
    """The learnt numbers of one layer: O outputs, I inputs, L labels (0 without label vectors)."""

    def __init__(self, outputs: int, inputs: int, labels: int, recipe: Recipe, index: int, device: torch.device):
        self._shapes = ((outputs, inputs), (outputs,), (labels, outputs))
        generator = torch.Generator().manual_seed((recipe.seed << 8) ^ index)
        flat = torch.empty(sum(math.prod(shape) for shape in self._shapes))
        limit = inputs**-0.5
        flat.uniform_(-limit, limit, generator=generator)
        flat[outputs * inputs :] = 0
        self.flat = flat.to(device)
        self.gradient = torch.zeros_like(self.flat)
        self.views = self._split(self.flat)
        self.gradient_views = self._split(self.gradient)
        self.weight_OI, self.bias_O, _ = self.views
        self.weight_gradient_OI, self.bias_gradient_O, _ = self.gradient_views
        self.samples = 0.0
        self._recipe = recipe
        self._average = self.flat.clone() if recipe.averaging_samples else self.flat
        self._optimizer = make_optimizer(self.flat, recipe)
        self._copies = Copies()

    def _split(self, flat: Tensor) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in self._shapes]
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self._shapes, strict=True)]

    def update(self, rows: int) -> None:
        """One step of the optimiser along the gradient that stands in the gradient's views.

        `rows` is how many of the recipe's rows the gradient is the mean of.
        """
        recipe = self._recipe
        share = rows / recipe.rows
        # The fewer rows, the noisier their mean: the step goes with the root of their number.
        learning_rate = recipe.learning_rate * math.sqrt(share) * self._fall()
        self._optimizer.step(self.flat, self.gradient, learning_rate)
        fresh = share * recipe.batch_size
        self.samples += fresh
        if recipe.averaging_samples:
            # A young average reaches back over a fifth of what was learned, lest the random start predict.
            reach = min(recipe.averaging_samples, self.samples / 5)
            self._average.lerp_(self.flat, fresh / (fresh + reach))

    def _fall(self) -> float:
        """Steps are large while everything is new, then fall as 1/√n to a floor: a stream has no end."""
        recipe = self._recipe
        if not recipe.learning_rate_samples:
            return 1.0
        return max(recipe.learning_rate_floor, 1 / math.sqrt(1 + self.samples / recipe.learning_rate_samples))

    def averaged(self) -> list[Tensor]:
        """Weight (O, I), bias (O), label vectors (L, O) for predictions: views, to copy before the next update."""
        return self._split(self._average)

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that the next update depends on."""
        vectors = {"parameters": self.flat}
        if self._recipe.averaging_samples:
            vectors["average"] = self._average
        vectors |= {f"optimizer.{name}": value for name, value in self._optimizer.state.items()}
        state = {name: self._copies.copy(name, vector) for name, vector in vectors.items()}
        return state | {"samples": torch.tensor(self.samples, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continues from a state as if the updates since had happened here. Raises KeyError or RuntimeError."""
        self.flat.copy_(state["parameters"])
        self.samples = float(state["samples"])
        if self._recipe.averaging_samples:
            self._average.copy_(state["average"])
        for name, value in self._optimizer.state.items():
            value.copy_(state[f"optimizer.{name}"])
