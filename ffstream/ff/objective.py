"""Objectives: the loss that a layer minimises. It is a function of goodness.

An objective compares either all labels of a sample (`softmax`) or positive rows with negative rows (`paired`,
`threshold`, `evoked`). Losses are means over samples, so a learning rate does not depend on the batch size.

Shapes: B samples, L labels, N rows (the positive ones first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field

from ffstream.ff.part import Part, register, resolve

if TYPE_CHECKING:
    from torch import Tensor, device

Phase = Literal["interleaved", "wake", "sleep"]


class LossStatistics(NamedTuple):
    """The goodness of a microbatch's positive and negative rows, and its loss (a scalar)."""

    positive_B: Tensor | None
    negative_B: Tensor | None
    loss: Tensor


class LossResult(NamedTuple):
    """∂L/∂G in the shape of G, and a function that computes the statistics, so that a step need not compute them."""

    goodness_gradient: Tensor
    statistics: Callable[[], LossStatistics]


class Balance(NamedTuple):
    """Running means of the goodness of positive and negative rows, and the threshold θ between them. NaN: unknown."""

    positive: float
    negative: float
    theta: float


class LossFunction(Protocol):
    """What computes an objective. `state` holds, by name, everything that later losses depend on."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Zero before the first loss. Not a copy."""
        ...

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> LossResult:
        """See `Objective.by_label`."""
        ...

    def by_row(self, G_N: Tensor, positives: int) -> LossResult:
        """See `Objective.by_row`."""
        ...

    def balance(self) -> Balance | None:
        """For metrics; None if the objective keeps no running means."""
        ...


class Objective(Part):
    """L(G) and ∂L/∂G."""

    family: ClassVar[str] = "objective"
    must_define: ClassVar[tuple[str, ...]] = ("by_label", "needs_wrong_labels", "has_phases")
    needs_wrong_labels: ClassVar[bool]  # whether it compares each sample's own label with one wrong label
    has_phases: ClassVar[bool]  # whether it can learn positive rows without negative rows, and the reverse
    # Whether G is ΔG_l = G(h_l) − G(h₀), where h₀ is the activity of the same sample without a label.
    relative_to_label_free: ClassVar[bool] = False

    def incompatibility(self, *, label_conditioned: bool, adds_labels: bool) -> str:
        """Why a layer cannot use it; empty if it can. `label_conditioned`: the network passes such activities on.
        `adds_labels`: the layer adds a label to each row."""
        if label_conditioned and not self.needs_wrong_labels:
            return "compares all labels of a sample, so network.activities must be label_free"
        if self.relative_to_label_free and (label_conditioned or not adds_labels):
            return 'needs network.activities = "label_free" and a label_scheme that adds a label to each row'
        return ""

    def build(self, device: device) -> LossFunction:
        """What computes it. An objective without state computes itself."""
        return self

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Empty: there is no state."""
        return {}

    def balance(self) -> Balance | None:
        """None: there are no running means."""
        return None

    @property
    def steepness(self) -> float:
        """What a unit of goodness counts in the loss: the option `alpha`, or 1 without it."""
        return float(getattr(self, "alpha", 1.0))

    @property
    def threshold(self) -> float | None:
        """The goodness that positive rows are to exceed and negative ones not, if it is an option; otherwise None."""
        return None

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> LossResult:
        """The loss for G (B, L), the goodness of every label. `wrong_B` is None unless `needs_wrong_labels`."""
        raise NotImplementedError

    def by_row(self, G_N: Tensor, positives: int) -> LossResult:
        """The loss for G (N), one goodness for each row; the first `positives` rows are positive.

        Only objectives that need wrong labels implement this.
        """
        raise NotImplementedError


@register
class Softmax(Objective):
    """L = mean cross-entropy between softmax(α G) and the label, with label smoothing ε.

    Every wrong label is a negative, weighted by its softmax probability; for large α only the most probable one
    counts. Smoothing stops the goodness of well-known samples from growing without bound.
    ∂L/∂G = α (softmax(α G) − target) / B.
    """

    kind: Literal["softmax"] = "softmax"
    needs_wrong_labels: ClassVar[bool] = False
    has_phases: ClassVar[bool] = False
    alpha: float = Field(
        0.05, ge=0, allow_inf_nan=False, description="steepness: what a unit of goodness counts in the loss"
    )
    smoothing: float = Field(
        0.2, ge=0, lt=1, description="label smoothing: share of the target that is spread over all labels"
    )

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> LossResult:
        """∂L/∂G (B, L)."""
        gradient_BL, loss = self.loss(G_BL, own_B)

        def statistics() -> LossStatistics:
            positive_B = G_BL.gather(1, own_B[:, None])[:, 0]
            negative_B = (G_BL.sum(1) - positive_B) / (G_BL.shape[1] - 1)
            return LossStatistics(positive_B, negative_B, loss)

        return LossResult(gradient_BL, statistics)

    def loss(self, G_BL: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂G (B, L) and L."""
        size, labels = G_BL.shape
        log_BL = (G_BL * self.alpha).log_softmax(1)
        loss = log_BL.gather(1, own_B[:, None]).mean() * (self.smoothing - 1) - self.smoothing * log_BL.mean()
        gradient_BL = log_BL.exp() - self.smoothing / labels
        gradient_BL.add_(_is_label(own_B, G_BL), alpha=self.smoothing - 1)
        return gradient_BL.mul_(self.alpha / size), loss


class Contrast(Objective):
    """An objective that compares positive with negative rows. A member implements `losses`."""

    needs_wrong_labels: ClassVar[bool] = True
    has_phases: ClassVar[bool] = False
    alpha: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="steepness: what a unit of goodness counts in the loss"
    )

    def losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """∂L/∂G of the positive rows, ∂L/∂G of the negative rows, and L. In the phases `wake` and `sleep` one kind is
        None."""
        raise NotImplementedError

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> LossResult:
        """∂L/∂G (B, L) is 0 except for the labels that are compared."""
        assert wrong_B is not None
        return compare_labels(self.losses, G_BL, own_B, wrong_B, phase)

    def by_row(self, G_N: Tensor, positives: int) -> LossResult:
        """∂L/∂G (N)."""
        positive_B = G_N[:positives] if positives else None
        negative_B = G_N[positives:] if positives < len(G_N) else None
        *gradients, loss = self.losses(positive_B, negative_B)
        gradient_N = G_N.new_empty(G_N.shape)
        for rows, gradient_B in zip((gradient_N[:positives], gradient_N[positives:]), gradients, strict=True):
            if gradient_B is not None:
                rows.copy_(gradient_B)
        return LossResult(gradient_N, lambda: LossStatistics(positive_B, negative_B, loss))


@register
class Paired(Contrast):
    """L = mean softplus(−α (G⁺ − G⁻)): the goodness of a sample's own label must exceed that of its wrong label.

    ∂L/∂G⁻ = −∂L/∂G⁺ = α σ(α (G⁻ − G⁺)) / B.
    """

    kind: Literal["paired"] = "paired"

    def losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Both kinds of rows are required."""
        assert positive_B is not None
        assert negative_B is not None
        deficit_B = (negative_B - positive_B) * self.alpha
        gradient_B = deficit_B.sigmoid().mul_(self.alpha / len(deficit_B))
        return -gradient_B, gradient_B, softplus(deficit_B).mean()


@register
class Threshold(Contrast):
    """L = mean softplus(−α (G⁺ − θ)) + mean softplus(α (G⁻ − θ)) (Hinton 2022, section 2, where α = 1).

    ∂L/∂G⁺ = −α σ(−α (G⁺ − θ)) / B, ∂L/∂G⁻ = α σ(α (G⁻ − θ)) / B. Either kind of rows can be learned alone.
    """

    kind: Literal["threshold"] = "threshold"
    has_phases: ClassVar[bool] = True
    theta: float = Field(0.0, allow_inf_nan=False, description="threshold, in units of goodness")

    @property
    def threshold(self) -> float | None:
        """θ."""
        return self.theta

    def losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """The loss of the rows that are given."""
        return threshold_losses(positive_B, negative_B, self.alpha, self.theta)


@register
class Evoked(Contrast):
    """The threshold loss on ΔG_l = G(h_l) − G(h₀): only what a label evokes is learned, so phases may be long.

    h₀ = φ(z) is the activity of the same sample, with the same weights, without a label. With S_l = ∂L/∂ΔG_l,

        ∂L/∂z = Σ_l S_l (G′(h_l) φ′(z_l) − G′(h₀) φ′(z))        ∂L/∂E[l] = Σ S_l G′(h_l) φ′(z_l)

    so what an image evokes with any label cancels, and `wake` and `sleep` do not pull in opposite directions on it.
    No wrong label appears in `wake` and no right label in `sleep`, but the rule subtracts the label-free activity of
    the same image. With label vectors whose mean is zero, that is a contrast with the mean label. (Compare the free
    and the clamped phase of contrastive Hebbian learning, Movellan 1991.)

    θ = ½ (m₊ + m₋), where m₊ and m₋ are running means of ΔG of positive and negative rows. Each changes only with
    rows of its sign. θ counts as a constant in the gradient.
    """

    kind: Literal["evoked"] = "evoked"
    has_phases: ClassVar[bool] = True
    relative_to_label_free: ClassVar[bool] = True
    alpha: float = Field(
        0.3, ge=0, allow_inf_nan=False, description="steepness: what a unit of goodness counts in the loss"
    )
    mean_rate: float = Field(
        0.01, gt=0, le=1, description="share of a microbatch in the running means that give the threshold"
    )

    def build(self, device: device) -> LossFunction:
        """What computes it and holds the running means."""
        make: Callable[[Evoked, Any], LossFunction] = resolve("ffstream.ff.balanced_threshold:BalancedThreshold")
        return make(self, device)

    def losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """The loss before the first update of the running means: θ = 0."""
        return threshold_losses(positive_B, negative_B, self.alpha, 0.0)


Losses = Callable[["Tensor | None", "Tensor | None"], "tuple[Tensor | None, Tensor | None, Tensor]"]


def compare_labels(losses: Losses, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor, phase: Phase) -> LossResult:
    """∂L/∂G (B, L), which is 0 except for the labels that `losses` (see `Contrast.losses`) compares."""
    positive_B = None if phase == "sleep" else G_BL.gather(1, own_B[:, None])[:, 0]
    negative_B = None if phase == "wake" else G_BL.gather(1, wrong_B[:, None])[:, 0]
    *gradients, loss = losses(positive_B, negative_B)
    gradient_BL = G_BL.new_zeros(G_BL.shape)
    for labels_B, gradient_B in zip((own_B, wrong_B), gradients, strict=True):
        if gradient_B is not None:
            gradient_BL = gradient_B[:, None].where(_is_label(labels_B, G_BL), gradient_BL)
    return LossResult(gradient_BL, lambda: LossStatistics(positive_B, negative_B, loss))


def _is_label(labels_B: Tensor, G_BL: Tensor) -> Tensor:
    """Which columns are those labels (B, L). On CUDA a reproducible scatter sorts its indices; this is one kernel."""
    from torch import arange

    return labels_B[:, None] == arange(G_BL.shape[1], device=G_BL.device)


def threshold_losses(
    positive_B: Tensor | None, negative_B: Tensor | None, alpha: float, theta: float | Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """∂L/∂G of the rows of each sign that are given, and L = mean softplus(∓α (G − θ))."""
    gradients: list[Tensor | None] = []
    losses: list[Tensor] = []
    for G_B, sign in ((positive_B, -1.0), (negative_B, 1.0)):
        if G_B is None:
            gradients.append(None)
            continue
        excess_B = (G_B - theta) * (sign * alpha)
        gradients.append(excess_B.sigmoid().mul_(sign * alpha / len(excess_B)))
        losses.append(softplus(excess_B).mean())
    total = losses[0] if len(losses) == 1 else losses[0] + losses[1]
    return gradients[0], gradients[1], total


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), without overflow."""
    return x.logaddexp(x.new_zeros(()))
