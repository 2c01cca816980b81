"""Opponents: in one phase, what is remembered of the other phase's gradient is added to the gradient.

In a long phase every step goes the same way, and what the other phase learned is unlearned. The opponent stands for
the other phase. It fades with its age: without that, a network that never sleeps again would be pushed by a
gradient that is no longer true, without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field

from ffstream.ff.objective import Objective, Phase
from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor


class Step(NamedTuple):
    """What the optimiser should do: the gradient to step along, and the share of the learning rate to use."""

    gradient: Tensor
    rate: float = 1.0


class GradientFilter(Protocol):
    """Changes the optimiser's step. `state` is everything that later steps depend on, zero at first."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """By name. Not a copy."""
        ...

    def apply(self, gradient: Tensor, phase: Phase) -> Step:
        """The step to make. `gradient` itself does not change."""
        ...


class Opponent(Part):
    """Makes the filter of a layer's gradient."""

    family: ClassVar[str] = "opponent"
    must_define: ClassVar[tuple[str, ...]] = ("build",)

    def incompatibility(self, objective: Objective) -> str:
        """Why a layer with this objective cannot use it; empty if it can."""
        return "" if objective.has_phases else f'has no effect, because objective = "{objective.kind}" has no phases'

    def build(self, vector: Tensor) -> GradientFilter:
        """A filter for the flat gradient of a layer, which has the shape of `vector`."""
        raise NotImplementedError


@register
class NoOpponent(Opponent):
    """The gradient as it is."""

    kind: Literal["none"] = "none"

    def incompatibility(self, objective: Objective) -> str:
        """Every layer can do without."""
        return ""

    def build(self, vector: Tensor) -> GradientFilter:
        """Itself: there is no state."""
        return self

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Empty."""
        return {}

    def apply(self, gradient: Tensor, phase: Phase) -> Step:
        """The gradient itself."""
        return Step(gradient)


@register
class AverageGradient(Opponent):
    """In a step of phase p, M_p ← d M_p + (1 − d) g, and the step goes along g + s M_q.

    s = min(1, max(0, 2 − age/reach)). q is the other phase, and `age` counts the steps since its last one: M_q counts
    in full for `reach` steps, then less and less, and after twice as many no longer. The learning rate falls with s:
    rows of one sign alone would unlearn what the other phase has taught.
    """

    kind: Literal["average"] = "average"
    decay: float = Field(0.999, ge=0, lt=1, description="d, the decay of the running average of a phase's gradient")
    reach: int = Field(
        2048, ge=1, description="steps of one phase after which the other phase's gradient begins to fade"
    )
    min_rate: float = Field(
        0.1, ge=0, le=1, description="share of the learning rate that is left once that gradient has faded"
    )

    def build(self, vector: Tensor) -> GradientFilter:
        """The filter that holds both averages."""
        return _Averages(self, vector)


class _Averages:
    """The state: `wake`, `sleep` (vectors) and `ages` (2; on the CPU), those of `wake` and `sleep`."""

    def __init__(self, options: AverageGradient, vector: Tensor) -> None:
        self._options = options
        self.state = {name: vector.new_zeros(vector.shape) for name in ("wake", "sleep")}
        self.state["ages"] = vector.new_zeros(2, device="cpu")

    def apply(self, gradient: Tensor, phase: Phase) -> Step:
        """In the phase `interleaved` the gradient itself, because it has both signs."""
        if phase == "interleaved":
            return Step(gradient)
        own, other = (0, 1) if phase == "wake" else (1, 0)
        reach, ages = self._options.reach, self.state["ages"]
        self.state[phase].lerp_(gradient, 1 - self._options.decay)
        strength = min(1.0, 2 - float(ages[other]) / reach)
        ages[own] = 0
        ages[other] = min(float(ages[other]) + 1, 2 * reach)
        if strength <= 0:
            return Step(gradient, self._options.min_rate)
        towards = gradient.add(self.state["sleep" if phase == "wake" else "wake"], alpha=strength)
        return Step(towards, max(self._options.min_rate, strength))
