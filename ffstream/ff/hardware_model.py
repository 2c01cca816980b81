"""Devices: how a layer's products are read from hardware, and what its learner finds out about the hardware.

A device is read in learning and in prediction, with the same formulas. It is drawn from its options, so its state is
only how long it has been used, and what was found out from its readings:

    samples     fresh samples that were learned: says how often the device has changed
    reads       microbatches that were learned: the noise of the next reading is drawn from it
    range       at which the converter saturates
    activity    running mean of each unit's max(z, 0)
    response    running covariance of each unit's reading with what an ideal device would compute
    usual       running mean of the distance of a microbatch's activities from the running mean, as a share of it
    excess      S: see below
    since       microbatches since the running means began
    changes     how many changes were found

A change is found by a cumulative sum, S ← max(0, S + distance / usual − 1.25), once S > 0.35. It is looked for in
microbatches of at least 64 rows, and on the first 64 of them, so that the distance does not depend on their number.

The state is valid if and only if all of it was taken after the same update. The first three are also part of the
weights that predict. All of it is floating-point, so that replicas can be merged to their mean.

Shapes: N rows, K rows that are observed, I inputs, F units.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.hardware import Analog, Ideal
from ffstream.ff.label_formulas import Weights
from ffstream.ff.label_scheme import VECTORS
from ffstream.ff.maps import WEIGHT, Map
from ffstream.ff.randomness import generator_for

_SQUARES = "hardware.squares"  # of the weights, beside them
_RANGE_RMS = 4.0  # the converter's range, in root mean squares of max(z, 0)
_FIRST_RMS = 0.41  # of the initial weights, which are uniform in ±1/√fan_in, with inputs of mean square 1
_STUCK_LIMIT = 2.5  # of a stuck weight, in 1/√fan_in
_IDEAL_ROWS = 32  # compared with an ideal device
_ROWS = 64  # observed
_NOISE_ROWS = 16  # noise is drawn for a multiple of so many rows, and is then the same for fewer rows
_RATE = 1 / 64  # of running means, except at their start
_ACTIVITY_RATE = 1 / 16  # of that of activities, which learning changes
_SETTLED = 64  # microbatches before changes are looked for
_ALLOWED, _THRESHOLD = 1.25, 0.35  # of the cumulative sum


class Array(NamedTuple):
    """The array of weights of one layer: its map and shapes, the index of the layer, and where tensors are."""

    map: Map
    weight_shape: tuple[int, ...]
    fan_in: int
    units: int
    layer: int
    device: torch.device


class Observation(NamedTuple):
    """What the first `rows` of a reading showed: mean of max(z, 0) and covariance with an ideal device of each unit
    (F), and the mean square of max(z, 0)."""

    rows: int
    activity_F: Tensor
    covariance_F: Tensor | None
    mean_square: Tensor


class Device(Protocol):
    """The device of one layer."""

    def program(self, weights: Weights) -> Weights:
        """What the device has in place of these parameters."""
        ...

    def read(self, z_NF: Tensor, x_NI: Tensor, inverse_norm_N: Tensor, weights: Weights) -> Tensor:
        """What is read in place of the preactivations z (N, F) of `weights` that `program` returned. May change z."""
        ...

    def observe(self, z_NF: Tensor, x_NI: Tensor, inverse_norm_N: Tensor, programmed: Weights) -> Observation | None:
        """What the reading z (N, F) shows, given the parameters that were programmed."""
        ...

    def direct_(self, e_NF: Tensor) -> Tensor:
        """Changes ∂L/∂z (N, F) of the reading into that of the programmed preactivation, as far as that is known."""
        ...

    @property
    def changes(self) -> int:
        """How many changes were found."""
        ...

    def learned(self, observation: Observation | None, fresh: int, *, looks: bool = True) -> bool:
        """A microbatch with so many fresh samples was read and learned. True if the device seems to have changed,
        which is looked for if `looks`."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The part of the state that predictions need. A copy."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later updates depend on."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Predicts as with weights that `weights` returned. What was found out starts over."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        ...


class IdealDevice:
    """Computes exactly what it is told to, and costs nothing."""

    changes = 0

    def __init__(self, options: Ideal, array: Array) -> None:
        pass

    def program(self, weights: Weights) -> Weights:
        """The parameters themselves."""
        return weights

    def read(self, z_NF: Tensor, x_NI: Tensor, inverse_norm_N: Tensor, weights: Weights) -> Tensor:
        """z itself."""
        return z_NF

    def observe(self, z_NF: Tensor, x_NI: Tensor, inverse_norm_N: Tensor, programmed: Weights) -> None:
        """Nothing to find out."""

    def direct_(self, e_NF: Tensor) -> Tensor:
        """e itself."""
        return e_NF

    def learned(self, observation: Observation | None, fresh: int, *, looks: bool = True) -> bool:
        """It never changes."""
        return False

    def weights(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Does nothing: there is no state."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing: there is no state."""


class Drawn(NamedTuple):
    """W′ = weight_gain · W + weight_offset. The gain of a unit (F) is 0 if it is dead."""

    weight_gain: Tensor
    weight_offset: Tensor
    unit_gain_F: Tensor


class AnalogDevice:
    """The device that `Analog` describes."""

    def __init__(self, options: Analog, array: Array) -> None:
        self._options, self._array = options, array
        self._samples = self._reads = self._usual = self._excess = self._since = self._changes = 0.0
        self._range = torch.tensor(_RANGE_RMS * _FIRST_RMS, device=array.device)
        self._activity_F = torch.zeros(array.units, device=array.device)
        self._response_F = torch.zeros_like(self._activity_F)

    # --- the device ----------------------------------------------------------------------------------------------

    @property
    def drawn(self) -> Drawn:
        """The device as it is now."""
        changes = sum(self._samples >= at for at in self._options.changes_at)
        array = self._array
        return _draw(self._options, array.layer, changes, array.weight_shape, array.fan_in, array.units, array.device)

    def program(self, weights: Weights) -> Weights:
        """W′, and label vectors that leave out dead units."""
        drawn, programmed = self.drawn, weights[WEIGHT]
        weight = torch.addcmul(drawn.weight_offset, programmed, drawn.weight_gain).to(programmed.dtype)
        made = {**weights, WEIGHT: weight}
        if VECTORS in weights:
            made[VECTORS] = weights[VECTORS] * (drawn.unit_gain_F != 0)
        if self._options.noise:
            made[_SQUARES] = weight.square()
        return made

    def read(self, z_NF: Tensor, x_NI: Tensor, inverse_norm_N: Tensor, weights: Weights) -> Tensor:
        """z with noise, times the gains of the units, as the converter reads it; in place."""
        if self._options.noise:
            z_NF.add_(self._noise(x_NI, inverse_norm_N, weights))
        z_NF.mul_(self.drawn.unit_gain_F)
        if not self._options.bits:
            return z_NF
        levels = 2**self._options.bits - 1
        return z_NF.mul_(levels / self._range).round_().clamp_(-levels, levels).mul_(self._range / levels)

    def _noise(self, x_NI: Tensor, inverse_norm_N: Tensor, weights: Weights) -> Tensor:
        """The standard deviation comes from the same map: x̂² and W′² instead of x̂ and W′."""
        squares = {name: torch.zeros_like(value) for name, value in weights.items() if name != _SQUARES}
        squares[WEIGHT] = weights[_SQUARES]
        variance_NF = self._array.map.forward(x_NI.square(), inverse_norm_N.square(), squares, Buffers()).z_NO
        rows = -(-len(x_NI) // _NOISE_ROWS) * _NOISE_ROWS
        generator = generator_for(f"noise of layer {self._array.layer}", self._options.seed, int(self._reads))
        normal_NF = torch.randn(rows, self._array.units, generator=generator)[: len(x_NI)].to(variance_NF.device)
        return variance_NF.clamp_min_(0).sqrt_().mul_(normal_NF).mul_(self._options.noise)

    # --- its learner ---------------------------------------------------------------------------------------------

    def observe(self, z_NF: Tensor, x_NI: Tensor, inverse_norm_N: Tensor, programmed: Weights) -> Observation:
        """Compares the first rows with what an ideal device would compute."""
        h_NF = z_NF[:_ROWS].clamp_min(0)
        covariance_F = None
        if self._options.finds_signs:
            x_KI, inverse_norm_K, h_KF = x_NI[:_IDEAL_ROWS], inverse_norm_N[:_IDEAL_ROWS], h_NF[:_IDEAL_ROWS]
            ideal_KF = self._array.map.forward(x_KI, inverse_norm_K, programmed, Buffers()).z_NO
            covariance_F = (ideal_KF * h_KF).mean(0) - ideal_KF.mean(0) * h_KF.mean(0)
        return Observation(len(h_NF), h_NF.mean(0), covariance_F, h_NF.square().mean())

    def signs(self) -> Tensor:
        """1 (F), or −1 for units that respond less when they should respond more."""
        return 1 - 2 * (self._response_F < 0).float()

    def direct_(self, e_NF: Tensor) -> Tensor:
        """Reverses the steps of units whose gain seems to be negative."""
        return e_NF.mul_(self.signs()) if self._options.finds_signs else e_NF

    @property
    def changes(self) -> int:
        """How many changes were found."""
        return int(self._changes)

    def learned(self, observation: Observation | None, fresh: int, *, looks: bool = True) -> bool:
        """Updates the running means. If the units' activities changed abruptly, they start over."""
        assert observation is not None
        self._samples += fresh
        self._reads += 1
        changed = looks and self._options.finds_changes and self._has_changed(observation)
        if changed:
            self._changes += 1
            self._since = self._usual = self._excess = 0.0
        rate = max(_RATE, 1 / (self._since + 1))
        self._since += 1
        self._activity_F.lerp_(observation.activity_F, max(rate, _ACTIVITY_RATE))
        if observation.covariance_F is not None:
            self._response_F.lerp_(observation.covariance_F, rate)
        aim = observation.mean_square.sqrt() * _RANGE_RMS
        self._range = (self._range + rate * (aim - self._range)).clamp_min(1e-6)
        return changed

    def _has_changed(self, observation: Observation) -> bool:
        if observation.rows < _ROWS or not self._since:
            return False
        mean_F = self._activity_F
        distance = float((observation.activity_F - mean_F).abs().mean() / (mean_F.mean() + 1e-8))
        if self._since >= _SETTLED:
            self._excess = max(0.0, self._excess + distance / max(self._usual, 1e-8) - _ALLOWED)
        self._usual += max(_RATE, 1 / self._since) * (distance - self._usual)
        return self._excess > _THRESHOLD

    # --- state ---------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """`samples`, `reads` and `range`."""
        counts = {"samples": self._samples, "reads": self._reads}
        return {"range": self._range.clone(), **{name: _number(value) for name, value in counts.items()}}

    def state_dict(self) -> dict[str, Tensor]:
        """All that this module lists."""
        numbers = {"usual": self._usual, "excess": self._excess, "since": self._since, "changes": self._changes}
        vectors = {"activity": self._activity_F.clone(), "response": self._response_F.clone()}
        return self.weights() | vectors | {name: _number(value) for name, value in numbers.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes `samples`, `reads` and `range`. What was found out starts over."""
        self._samples, self._reads = float(weights["samples"]), float(weights["reads"])
        self._range = weights["range"].float().to(self._array.device).clone()
        self._activity_F.zero_()
        self._response_F.zero_()
        self._usual = self._excess = self._since = self._changes = 0.0

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.load_weights(state)
        self._activity_F.copy_(state["activity"])
        self._response_F.copy_(state["response"])
        self._usual, self._excess = float(state["usual"]), float(state["excess"])
        self._since, self._changes = float(state["since"]), float(state["changes"])


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@lru_cache(maxsize=32)  # a classifier is made for each snapshot
def _draw(
    options: Analog,
    layer: int,
    changes: int,
    shape: tuple[int, ...],
    fan_in: int,
    units: int,
    device: torch.device,
) -> Drawn:
    """The device after so many changes."""
    generator = generator_for(f"device of layer {layer}", options.seed, changes)
    gain = 1 + options.mismatch * torch.randn(shape, generator=generator)
    gain_F = 1 + options.mismatch * torch.randn(units, generator=generator)
    stuck = torch.rand(shape, generator=generator) < options.stuck
    value = (torch.rand(shape, generator=generator) * 2 - 1) * (_STUCK_LIMIT * fan_in**-0.5)
    dead_F = torch.rand(units, generator=generator) < options.dead
    drawn = Drawn(gain.masked_fill_(stuck, 0), value.masked_fill_(~stuck, 0), gain_F.masked_fill_(dead_F, 0))
    return Drawn(*(each.to(device) for each in drawn))
