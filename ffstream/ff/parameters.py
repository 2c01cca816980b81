"""The parameters of a layer, or of the readout, in one flat vector, with the optimiser and the exponential moving
average (EMA).

With one vector, an optimiser step, the EMA, a copy for a snapshot and a copy for a checkpoint are one memory-bound
pass each. `views` gives the parameters by name.

The state is `parameters`, `ema` (absent if `ema_samples` is 0), `samples` and what the optimiser and the opponent
keep. It is valid if and only if all of it was taken after the same update.
"""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ffstream.ff.buffers import BufferPool
from ffstream.ff.connection import Shape, size_of
from ffstream.ff.constraint import Constraint, Unconstrained
from ffstream.ff.maps import WEIGHT
from ffstream.ff.objective import Phase
from ffstream.ff.opponent import NoOpponent, Opponent
from ffstream.ff.optimizer import Optimizer, Schedule
from ffstream.ff.recipe import Recipe
from ffstream.ff.steps import Stepper


class LearningOptions(Protocol):
    """The options that steps depend on, of a layer or of the readout."""

    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def min_learning_rate_ratio(self) -> float: ...


_NO_OPPONENT, _UNCONSTRAINED = NoOpponent(), Unconstrained()


class Parameters:
    """Parameters of the given shapes. They are 0 at the start, unless `initialize` sets other values."""

    def __init__(
        self,
        recipe: Recipe,
        options: LearningOptions,
        shapes: Mapping[str, Shape],
        device: torch.device,
        initialize: Callable[[Mapping[str, Tensor]], None] = lambda views: None,
        opponent: Opponent = _NO_OPPONENT,
        constraint: Constraint = _UNCONSTRAINED,
    ) -> None:
        self._shapes = shapes
        flat = torch.zeros(sum(math.prod(shape) for shape in shapes.values()))
        initialize(self._split(flat))
        self.flat = flat.to(device)
        self.gradient = torch.zeros_like(self.flat)
        self.views = self._split(self.flat)
        self.gradients = self._split(self.gradient)
        self.samples = 0.0
        self._options, self._recipe = options, recipe
        self._ema = self.flat.clone() if recipe.ema_samples else self.flat
        self._stepper: Stepper = options.optimizer.build(self.flat)
        self._opponent = opponent.build(self.flat)
        self._constraint = constraint
        self._buffer_pool = BufferPool()

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), flat.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def update(self, rows: int, phase: Phase = "interleaved", replicas: int = 1) -> None:
        """One optimiser step along `gradients`, which are means over `rows` rows. One of several replicas counts the
        samples of all (`ff/merging.py`)."""
        recipe = self._recipe
        share = rows / recipe.rows
        # The mean of fewer rows is noisier, so the step size is proportional to the square root of their number.
        gradient, rate = self._opponent.apply(self.gradient, phase)
        self._stepper.step(self.flat, gradient, self.learning_rate * rate * math.sqrt(share))
        self._constraint.apply_(self.views)
        fresh = replicas * share * recipe.batch_size
        self.samples += fresh
        if recipe.ema_samples:
            # At first the EMA reaches back over a fifth of the samples, so that the random initialisation does not
            # dominate.
            reach = min(recipe.ema_samples, self.samples / 5)
            self._ema.lerp_(self.flat, fresh / (fresh + reach))

    def restart(self) -> None:
        """Restarts the EMA from the newest parameters, and the learning rate schedule. The optimiser continues."""
        self._ema.copy_(self.flat)
        self.samples = 0.0

    @property
    def learning_rate(self) -> float:
        """The current learning rate of a whole microbatch."""
        options = self._options
        return options.learning_rate * max(options.min_learning_rate_ratio, options.schedule.factor(self.samples))

    @property
    def ema(self) -> dict[str, Tensor]:
        """The EMA of the parameters, by name. These are views, which the next update changes."""
        return self._split(self._ema)

    @property
    def _kept(self) -> dict[str, Tensor]:
        """What optimiser and opponent keep, by name."""
        kept = {f"optimizer.{name}": value for name, value in self._stepper.state.items()}
        return kept | {f"opponent.{name}": value for name, value in self._opponent.state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that the next update depends on."""
        vectors = {"parameters": self.flat}
        if self._recipe.ema_samples:
            vectors["ema"] = self._ema
        state = {name: self._buffer_pool.copy(name, vector) for name, vector in (vectors | self._kept).items()}
        return state | {"samples": torch.tensor(self.samples, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned. Raises KeyError or RuntimeError if it is of another
        layer."""
        self.flat.copy_(state["parameters"])
        self.samples = float(state["samples"])
        if self._recipe.ema_samples:
            self._ema.copy_(state["ema"])
        for name, value in self._kept.items():
            value.copy_(state[name])

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Makes these the parameters and the EMA. Optimiser, opponent, schedule and the EMA's reach start over."""
        for name, view in self.views.items():
            view.copy_(weights[name])
        self._ema.copy_(self.flat)
        self.samples = 0.0
        for value in self._kept.values():
            value.zero_()


def parameters_of_layer(recipe: Recipe, index: int, input_shape: Shape, device: torch.device) -> Parameters:
    """The parameters of one layer's connection and label scheme, and those that recurrence adds.

    The weight is initialised uniformly in ±1/√fan_in, everything else with zeros unless the label scheme,
    the constraint or the recurrence say otherwise.
    """
    options = recipe.layers[index]
    connection, scheme = options.connection, options.label_scheme
    units = size_of(connection.output_shape(input_shape))
    limit = connection.fan_in(input_shape) ** -0.5

    def initialize(views: Mapping[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed((recipe.seed << 8) ^ index)
        views[WEIGHT].uniform_(-limit, limit, generator=generator)
        scheme.initialize_(views)
        options.constraint.initialize_(views, lambda tensor: tensor.normal_(generator=generator))
        recipe.recurrence.initialize_(views, generator)

    shapes = connection.parameters(input_shape) | scheme.parameters(recipe.labels, units)
    shapes |= recipe.recurrence.parameters(units, recipe.units_above(index))
    return Parameters(recipe, options, shapes, device, initialize, options.opponent, options.constraint)
