"""Objectives: what a layer minimises, a loss on goodness, with its gradient.

An objective either compares all labels of a sample at once (`softmax`) or positive rows with negative rows
(`paired`, `threshold`). Losses are means over samples, so a learning rate does not depend on the batch size.

Shapes: B samples, L labels, N rows (the positive ones first).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor

Phase = Literal["interleaved", "wake", "sleep"]


class Outcome(NamedTuple):
    """Goodness of a microbatch's positive and negative rows, and its loss (a scalar)."""

    positive_B: Tensor | None
    negative_B: Tensor | None
    loss: Tensor


class Judgement(NamedTuple):
    """∂L/∂G in the shape of G, and the outcome for whoever asks: reading it costs the step nothing."""

    gradient: Tensor
    outcome: Callable[[], Outcome]


class Objective(Part):
    """L(G) and ∂L/∂G."""

    family: ClassVar[str] = "objective"
    must_define: ClassVar[tuple[str, ...]] = ("by_label", "needs_wrong_labels", "has_phases")
    needs_wrong_labels: ClassVar[bool]  # whether it looks at one wrong label of each sample
    has_phases: ClassVar[bool]  # whether positive rows may come without negative ones, and the reverse

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> Judgement:
        """For the goodness of every label. `wrong_B` is given when `needs_wrong_labels`."""
        raise NotImplementedError

    def by_row(self, G_N: Tensor, positives: int) -> Judgement:
        """For one goodness a row. Only for objectives on positive and negative rows."""
        raise NotImplementedError


@register
class Softmax(Objective):
    """L = mean cross-entropy of softmax(α G) against the label, smoothed by ε.

    Every wrong label is a negative, weighted by how good the layer finds it; for large α only the best one counts.
    Smoothing ends the growth of goodness once a sample is well known.
    ∂L/∂G = α (softmax(α G) − target) / B.
    """

    kind: Literal["softmax"] = "softmax"
    needs_wrong_labels: ClassVar[bool] = False
    has_phases: ClassVar[bool] = False
    alpha: float = Field(0.05, ge=0, allow_inf_nan=False, description="slope, per unit of goodness")
    smoothing: float = Field(0.2, ge=0, lt=1, description="share of the target that is spread over all labels")

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> Judgement:
        """∂L/∂G (B, L)."""
        gradient_BL, loss = self.loss(G_BL, own_B)

        def outcome() -> Outcome:
            positive_B = G_BL.gather(1, own_B[:, None])[:, 0]
            negative_B = (G_BL.sum(1) - positive_B) / (G_BL.shape[1] - 1)
            return Outcome(positive_B, negative_B, loss)

        return Judgement(gradient_BL, outcome)

    def loss(self, G_BL: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂G (B, L) and L."""
        size, labels = G_BL.shape
        log_BL = (G_BL * self.alpha).log_softmax(1)
        own_B1 = own_B[:, None]
        loss = log_BL.gather(1, own_B1).mean() * (self.smoothing - 1) - self.smoothing * log_BL.mean()
        gradient_BL = log_BL.exp() - self.smoothing / labels
        gradient_BL.scatter_add_(1, own_B1, gradient_BL.new_full((size, 1), self.smoothing - 1))
        return gradient_BL.mul_(self.alpha / size), loss


class Contrast(Objective):
    """An objective on positive and negative rows. Members implement `losses`."""

    needs_wrong_labels: ClassVar[bool] = True
    has_phases: ClassVar[bool] = False
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False, description="slope, per unit of goodness")

    def losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """∂L/∂G of the positive and of the negative rows, and L."""
        raise NotImplementedError

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> Judgement:
        """∂L/∂G (B, L), zero but for the labels that are compared."""
        assert wrong_B is not None
        own_B1 = own_B[:, None] if phase != "sleep" else None
        wrong_B1 = wrong_B[:, None] if phase != "wake" else None
        positive_B = None if own_B1 is None else G_BL.gather(1, own_B1)[:, 0]
        negative_B = None if wrong_B1 is None else G_BL.gather(1, wrong_B1)[:, 0]
        *gradients, loss = self.losses(positive_B, negative_B)
        gradient_BL = G_BL.new_zeros(G_BL.shape)
        for at_B1, gradient_B in zip((own_B1, wrong_B1), gradients, strict=True):
            if at_B1 is not None and gradient_B is not None:
                gradient_BL.scatter_(1, at_B1, gradient_B[:, None])
        return Judgement(gradient_BL, lambda: Outcome(positive_B, negative_B, loss))

    def by_row(self, G_N: Tensor, positives: int) -> Judgement:
        """∂L/∂G (N)."""
        positive_B = G_N[:positives] if positives else None
        negative_B = G_N[positives:] if positives < len(G_N) else None
        *gradients, loss = self.losses(positive_B, negative_B)
        gradient_N = G_N.new_empty(G_N.shape)
        for rows, gradient_B in zip((gradient_N[:positives], gradient_N[positives:]), gradients, strict=True):
            if gradient_B is not None:
                rows.copy_(gradient_B)
        return Judgement(gradient_N, lambda: Outcome(positive_B, negative_B, loss))


@register
class Paired(Contrast):
    """L = mean softplus(−α (G⁺ − G⁻)): a sample's own label must beat its wrong one.

    ∂L/∂G⁻ = −∂L/∂G⁺ = α σ(α (G⁻ − G⁺)) / B.
    """

    kind: Literal["paired"] = "paired"

    def losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Needs both."""
        assert positive_B is not None
        assert negative_B is not None
        lag_B = (negative_B - positive_B) * self.alpha
        gradient_B = lag_B.sigmoid().mul_(self.alpha / len(lag_B))
        return -gradient_B, gradient_B, softplus(lag_B).mean()


@register
class Threshold(Contrast):
    """L = mean softplus(−α (G⁺ − θ)) + mean softplus(α (G⁻ − θ)) (Hinton 2022, section 2, with the slope α).

    ∂L/∂G⁺ = −α σ(−α (G⁺ − θ)) / B, ∂L/∂G⁻ = α σ(α (G⁻ − θ)) / B. Either kind of row may come alone.
    """

    kind: Literal["threshold"] = "threshold"
    has_phases: ClassVar[bool] = True
    theta: float = Field(0.0, allow_inf_nan=False, description="threshold, in units of goodness")

    def losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Of the rows that are given."""
        gradients: list[Tensor | None] = []
        losses: list[Tensor] = []
        for G_B, sign in ((positive_B, -1.0), (negative_B, 1.0)):
            if G_B is None:
                gradients.append(None)
                continue
            excess_B = (G_B - self.theta) * (sign * self.alpha)
            gradients.append(excess_B.sigmoid().mul_(sign * self.alpha / len(excess_B)))
            losses.append(softplus(excess_B).mean())
        total = losses[0] if len(losses) == 1 else losses[0] + losses[1]
        return gradients[0], gradients[1], total


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), without overflow."""
    return x.logaddexp(x.new_zeros(()))
