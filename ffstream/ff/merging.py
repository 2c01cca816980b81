"""Replicas of a network: how the states of N networks become one.

At the start of the stream every replica learns every microbatch (`Recipe.replicas_after`; compare post-local SGD, Lin
et al. 2020). From then on replica s mod N learns the microbatch with step s. After every K·N microbatches of the
stream the states are merged, and every replica goes on from the merged state. With θ the parameters of the last
merge:

    m = 1/N Σ_r θ_r                       the mean (local SGD, Stich 2019; federated averaging, McMahan et al. 2017)
    v ← μ v + m − θ                       what merges have changed, with momentum
    θ ← m + μ v                           the merged parameters (Nesterov; DiLoCo, Douillard et al. 2023)

A replica counts the samples of each microbatch N times, because it stands for those of the others
(`Activities.replicas`). So counts, learning rates, running means and the EMA are those of one network that learns the
whole stream, and merging needs no more than a mean:

    tensor                                merged
    parameters                            as above
    every other floating-point tensor     the mean: EMA, moments and steps of the optimiser, opponent, threshold
    samples, seen                         the mean; `seen` is rounded down
    drift.*                               those of replica 0, the only one that tests for a drift
    hardware: usual, excess, since,       those of replica 0, the only one that looks for a change of the device
        changes
    filters, products, fitted             those of replica 0: fitted while every replica learns every microbatch
    memory.*                              those of replica 0: the mean of two samples is not a sample
    another tensor of integers            is equal in all replicas, or cannot be merged

A replica whose count of samples is less than at the last merge has restarted the EMA and the learning rate
(`ff/drift.py`). Then both are restarted in all replicas: the EMA begins at m.

Replicas are added in their order, so that the result is the same bit for bit on every machine of a kind. Equal states
are merged to that state, bit for bit. A merged state has the tensors of a single network's state: any number of
replicas can continue from it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from ffstream.ff.member import copied

State = Mapping[str, Tensor]

MOMENTUM: Final = 0.5
_PARAMETERS, _EMA, _SAMPLES = "parameters", "ema", "samples"  # of a member
_LAST, _VELOCITY = "last", "velocity"  # of a Merger, for each member
_SEEN: Final = "seen"
_HARDWARE: Final = tuple(f"hardware.{name}" for name in ("usual", "excess", "since", "changes"))
_OF_FIRST: Final = ("drift.", *_HARDWARE, "memory.", "filters", "products", "fitted")

_NOTHING: Final[State] = {}


def averaged(states: Sequence[State], last: State = _NOTHING) -> dict[str, Tensor]:
    """One state from those of N replicas of a member, of a network, or from their weights. Copies.

    This is a merge without momentum. It also turns the state of N replicas into that of one network, or of another
    number of replicas. `last` is the state of the Merger, if there is one. Raises ValueError for states with
    different tensors, and for tensors that have no rule.
    """
    first = states[0]
    if any(state.keys() != first.keys() for state in states):
        raise ValueError("replicas of different networks cannot be merged: they have different tensors")
    merged = {name: _merge(name, [state[name] for state in states]) for name in first}
    for name in last.keys() & first.keys():
        _restart(merged, name, [state[name] for state in states if state[name] < last[name]], len(states))
    return merged


def _merge(name: str, replicas: Sequence[Tensor]) -> Tensor:
    if any(f".{part}" in f".{name}" for part in _OF_FIRST):
        return replicas[0].clone()
    if replicas[0].is_floating_point():
        return _mean(replicas)
    if _ends_with(name, _SEEN):
        return replicas[0] + _differences(replicas).neg_().div_(len(replicas), rounding_mode="floor")
    if all(torch.equal(each, replicas[0]) for each in replicas):
        return replicas[0].clone()
    raise ValueError(f"{name!r} differs between replicas, and integers cannot be averaged: see ff/merging.py")


def _ends_with(name: str, part: str) -> bool:
    return name.rpartition(".")[2] == part


def _differences(replicas: Sequence[Tensor]) -> Tensor:
    """Σ_r x_0 − x_r."""
    total = torch.zeros_like(replicas[0])
    for each in replicas[1:]:
        total += replicas[0] - each
    return total


def _mean(replicas: Sequence[Tensor]) -> Tensor:
    """x_0 − 1/N Σ_r (x_0 − x_r). For equal x_r this is x_0 − 0, which is x_0 bit for bit."""
    return replicas[0] - _differences(replicas).div_(len(replicas))


def _restart(merged: dict[str, Tensor], name: str, restarted: Sequence[Tensor], replicas: int) -> None:
    """Restarts the EMA and the count of samples if some of the replicas have, but not all."""
    if not 0 < len(restarted) < replicas:
        return
    merged[name] = _mean(restarted)
    prefix = name.removesuffix(_SAMPLES)
    if prefix + _EMA in merged:
        merged[prefix + _EMA] = merged[prefix + _PARAMETERS].clone()


class Merger:
    """Merges the states of one member, or of several, again and again, with momentum.

    Its state is part of the resume state: for each member that has parameters `last` and `samples`, those of the last
    merge, and `velocity`. It is empty before the first merge, which therefore has no momentum. So it is after the
    number of replicas has changed: then a new Merger begins from the `averaged` state.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def merge(self, states: Sequence[State]) -> dict[str, Tensor]:
        """The state that all replicas go on from. Raises ValueError as `averaged` does.

        Parameters that are equal in all replicas stay as they are, and have no momentum: the replicas have learned
        the same microbatches.
        """
        merged = averaged(states, self._kept)
        for name in [name for name in merged if _ends_with(name, _PARAMETERS)]:
            prefix = name.removesuffix(_PARAMETERS)
            velocity = self._velocity(prefix, merged[name], [state[name] for state in states])
            if velocity is None:
                velocity = torch.zeros_like(merged[name])
            else:
                merged[name] += velocity * MOMENTUM
            self._kept[prefix + _LAST], self._kept[prefix + _VELOCITY] = merged[name].clone(), velocity
            self._kept[prefix + _SAMPLES] = merged[prefix + _SAMPLES].clone()
        return merged

    def _velocity(self, prefix: str, mean: Tensor, replicas: Sequence[Tensor]) -> Tensor | None:
        """v ← μ v + m − θ; None without momentum."""
        if prefix + _LAST not in self._kept or all(torch.equal(each, mean) for each in replicas):
            return None
        return self._kept[prefix + _VELOCITY] * MOMENTUM + (mean - self._kept[prefix + _LAST])

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of what later merges depend on."""
        return copied(self._kept)

    def load_state_dict(self, state: State) -> None:
        """Continues from a state that `state_dict` returned."""
        self._kept = copied(state)
