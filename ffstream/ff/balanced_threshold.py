"""The objective `evoked` with its state: a threshold halfway between the mean goodness of both signs.

m ← m + (G − m) · rate, started at zero and corrected for that: m = sums / weights, as Adam corrects its moments
(Kingma and Ba 2015). A mean is known once its weight is not 0. The loss of a microbatch uses θ as it was before it.

Shapes: B samples, L labels; 2: positive, negative.
"""

import torch
from torch import Tensor

from ffstream.ff.objective import Balance, Evoked, LossResult, Phase, compare_labels, threshold_losses


class BalancedThreshold:
    """Computes `evoked`. `state` is `sums` (2) and `weights` (2)."""

    def __init__(self, options: Evoked, device: torch.device) -> None:
        self._options = options
        self.state = {"sums": torch.zeros(2, device=device), "weights": torch.zeros(2, device=device)}

    def by_label(self, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> LossResult:
        """∂L/∂G (B, L)."""
        assert wrong_B is not None
        return compare_labels(self._losses, G_BL, own_B, wrong_B, phase)

    def by_row(self, G_N: Tensor, positives: int) -> LossResult:
        """Rows that hold a label have no label-free activity."""
        raise NotImplementedError

    def _losses(
        self, positive_B: Tensor | None, negative_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        result = threshold_losses(positive_B, negative_B, self._options.alpha, self.theta())
        for sign, G_B in enumerate((positive_B, negative_B)):
            if G_B is not None:
                self.state["sums"][sign].lerp_(G_B.mean(), self._options.mean_rate)
                self.state["weights"][sign].lerp_(G_B.new_ones(()), self._options.mean_rate)
        return result

    def theta(self) -> Tensor:
        """Half the sum of both means; the one that is known, or 0."""
        weights_2 = self.state["weights"]
        known_2 = weights_2 > 0
        means_2 = self.state["sums"] / weights_2.where(known_2, 1.0)
        return means_2.sum() / known_2.sum().clamp_min(1)

    def balance(self) -> Balance:
        """Both running means and θ."""
        # 0 / 0 is NaN: unknown.
        positive, negative = (self.state["sums"] / self.state["weights"]).tolist()
        known = bool(self.state["weights"].any())
        return Balance(positive, negative, float(self.theta()) if known else float("nan"))
