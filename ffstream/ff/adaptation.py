"""Tests for concept drift. Each layer has one of its own, and compares its own errors: nothing is communicated.

On some rows of some microbatches, a layer counts its errors with the newest weights, which costs nothing. Counting
those of the EMA weights costs a matrix product. So it is done on a quarter of these microbatches, and on the others
only if the newest weights err more than usual or the cumulative sum of the differences is not 0. The sum is (Page
1954, "Continuous inspection schemes"):

    S ← max(0, S + errors of the EMA weights − errors of the newest weights)

Once S > threshold, the EMA weights are behind, and begin again from the newest. The reason may be that the layer, or
the one below it, learns faster than the EMA follows, as at the start of a stream. But if the EMA weights err far more
than what was usual, the concept has changed: a drift.

The concept is taken to have changed when S was last low: at most a quarter of the threshold. (The last time at which
S was 0 would be the maximum likelihood estimate, but a small S may last for thousands of samples.) From then on,
replayed samples from before the change are left out.

The state depends on the microbatches and their numbers only.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.drift import NoDrift, Restart
from ffstream.ff.parameters import Parameters

_LOW_SHARE = 0.25  # of the threshold
_SELDOM = 4  # while there is no reason to compare, only on every so many of the microbatches that are due
_USUAL_RATE = 1 / 64  # of the running mean of the newest weights' error
_EXCESS = 1 / 8  # share of wrong rows beyond the usual one that is a reason to compare
# EMA weights that err more than 1.5 times the usual share, and a sixteenth, have learned another concept.
_MULTIPLE, _MARGIN = 1.5, 1 / 16


class DriftTest(Protocol):
    """The drift test of one layer. R is the number of replayed samples in a microbatch."""

    restarts: int  # how many drifts were found

    def rows_due(self, step: int, fresh: int, replicas: int = 1) -> int:
        """How many of the `fresh` samples of the microbatch `step` to compare. 0: none. Only the first one of several
        replicas compares, because its state is the one that a merge keeps."""
        ...

    def needs_ema(self, step: int, newest_wrong: int, rows: int) -> bool:
        """Takes the errors of the newest weights on the rows that are due. Whether to compare the EMA weights."""
        ...

    def compare(self, ema_wrong: int, newest_wrong: int, rows: int) -> bool:
        """Takes the errors of both on the rows that are due. True if the EMA weights are behind."""
        ...

    def outdated(self, ages_R: Tensor) -> Tensor | None:
        """Which replayed samples (R; bool) are from before the last change; None if none can be. `ages_R` says how
        many samples of the stream ago each one came; 1: the last one before this microbatch."""
        ...

    def passed(self, fresh: int) -> None:
        """A microbatch with so many fresh samples was learned."""
        ...

    def reset(self) -> None:
        """Starts over."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later decisions depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        ...


class NoTest:
    """Never finds a drift."""

    def __init__(self, options: NoDrift, replay_buffer: int) -> None:
        self.restarts = 0

    def rows_due(self, step: int, fresh: int, replicas: int = 1) -> int:
        """None."""
        return 0

    def needs_ema(self, step: int, newest_wrong: int, rows: int) -> bool:
        """Never."""
        return False

    def compare(self, ema_wrong: int, newest_wrong: int, rows: int) -> bool:
        """Never."""
        return False

    def outdated(self, ages_R: Tensor) -> Tensor | None:
        """None are."""
        return None

    def passed(self, fresh: int) -> None:
        """Does nothing."""

    def reset(self) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing: there is no state."""


class CumulativeSum:
    """The test that this module describes."""

    def __init__(self, options: Restart, replay_buffer: int) -> None:
        self._options = options
        self._replay_buffer = replay_buffer
        self.reset()

    def reset(self) -> None:
        """Starts over: no drift was found, and no replayed sample is outdated."""
        self.restarts = 0
        self._sum = 0.0
        self._usual = 0.0  # error of the newest weights
        self._since_low = 0  # fresh samples since the sum was last low
        self._since_change = self._replay_buffer  # fresh samples since the last change, counted this far

    def rows_due(self, step: int, fresh: int, replicas: int = 1) -> int:
        """The first rows of every so many microbatches. Replica 0 learns every `replicas`-th microbatch."""
        every = replicas * max(1, self._options.every // replicas)
        return 0 if step % every else min(fresh, self._options.rows)

    def needs_ema(self, step: int, newest_wrong: int, rows: int) -> bool:
        """If S is not 0, if more rows than usual are wrong, and on every fourth such microbatch."""
        excess = newest_wrong / rows - self._usual
        # At first the mean of all looks, so that errors at the start of a stream are usual then.
        self._usual += excess * max(_USUAL_RATE, 1 / (1 + step // self._options.every))
        return self._sum > 0 or excess > _EXCESS or step % (_SELDOM * self._options.every) == 0

    def compare(self, ema_wrong: int, newest_wrong: int, rows: int) -> bool:
        """S > threshold. Then S is 0 again."""
        if self._sum <= _LOW_SHARE * self._options.threshold:
            self._since_low = 0
        self._sum = max(0.0, self._sum + ema_wrong - newest_wrong)
        if self._sum <= self._options.threshold:
            return False
        self._sum = 0.0
        if ema_wrong / rows > _MULTIPLE * self._usual + _MARGIN:
            self._since_change = min(self._since_change, self._since_low)
            self.restarts += 1
        return True

    def outdated(self, ages_R: Tensor) -> Tensor | None:
        """Those older than the last change."""
        return None if self._since_change >= self._replay_buffer else ages_R > self._since_change

    def passed(self, fresh: int) -> None:
        """Counts the samples."""
        self._since_low += fresh
        self._since_change = min(self._since_change + fresh, self._replay_buffer)

    def state_dict(self) -> dict[str, Tensor]:
        """S and the counts."""
        return {
            "sum": torch.tensor(self._sum, dtype=torch.float64),
            "usual": torch.tensor(self._usual, dtype=torch.float64),
            "since_low": torch.tensor(self._since_low),
            "since_change": torch.tensor(self._since_change),
            "restarts": torch.tensor(self.restarts),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._sum = float(state["sum"])
        self._usual = float(state["usual"])
        self._since_low = int(state["since_low"])
        self._since_change = int(state["since_change"])
        self.restarts = int(state["restarts"])


def restart_if_changed(
    test: DriftTest,
    parameters: Parameters,
    input: Activities,
    fresh: int,
    newest_wrong: Callable[[int], int],
    ema_wrong: Callable[[int], int],
) -> None:
    """Restarts EMA and schedule if the newest weights have come to predict better than the EMA weights.

    `newest_wrong` and `ema_wrong` count the errors of these weights on the first so many of the `fresh` samples.
    """
    rows = test.rows_due(input.step, fresh, input.replicas)
    if not rows:
        return
    newest = newest_wrong(rows)
    if test.needs_ema(input.step, newest, rows) and test.compare(ema_wrong(rows), newest, rows):
        parameters.restart()


def without_outdated(test: DriftTest, gradient: Tensor, ages_R: Tensor | None, samples: int) -> Tensor:
    """∂L/∂G of the mean loss over the samples that are not outdated: G (B, L), or (N) with rows of each sign.

    `ages_R` are the ages of the last R samples, if these are replayed.
    """
    outdated_R = None if ages_R is None else test.outdated(ages_R)
    if outdated_R is None:
        return gradient
    kept_B = torch.cat((outdated_R.new_ones(samples - len(outdated_R)), ~outdated_R)).to(gradient.dtype)
    kept_B.mul_(samples / kept_B.sum().clamp_min_(1))
    kept_N = kept_B.repeat(len(gradient) // samples)
    return gradient * kept_N.view(-1, *[1] * (gradient.dim() - 1))
