"""Layers that add the label themselves: the first layer, and later ones when neutral activities are handed on.

Their input holds no label, so its product is computed once a sample and a label only adds g·E[y]. All
labels' goodness is elementwise work, and for ∂L/∂W the errors of a sample's labels add up before the product:
two products of B rows learn from a positive and from any number of negatives.
"""

from functools import partial

import torch
from torch import Tensor

from ffstream.ff.kernels import all_label_errors, all_label_squares
from ffstream.ff.layer import Activities, Layer, Outcome, Placement, Polarity
from ffstream.ff.negatives import hardest_wrong_labels, random_wrong_labels
from ffstream.ff.normalization import sum_squares
from ffstream.ff.objective import Softmax, make_contrast
from ffstream.ff.presets import Recipe


class LabelLayer(Layer):
    """A layer whose input rows are samples. Subclasses prepare x, its factor r and the label's gain g."""

    def __init__(self, recipe: Recipe, index: int, placement: Placement) -> None:
        super().__init__(recipe, index, placement)
        self._softmax = Softmax(recipe.alpha, recipe.smoothing) if recipe.objective == "softmax" else None
        self._contrast = make_contrast(recipe)
        self._product_BO = self._empty(recipe.rows, self.outputs)
        self._term_BO = torch.empty(recipe.rows, self.outputs, device=self.device)
        self._error_BO = torch.empty(recipe.rows, self.outputs, device=self.device)

    def _step(
        self, x_BI: Tensor, factor_B: Tensor, gain_B: Tensor, labels_B: Tensor, step: int, polarity: Polarity
    ) -> Activities:
        size = len(x_BI)
        product_BO = torch.mm(x_BI, self._weight_OI.t(), out=self._product_BO[:size])
        term_BO = self._term_BO[:size].copy_(product_BO)
        torch.addcmul(self.parameters.bias_O, term_BO, factor_B[:, None], out=term_BO)
        self._x_BI, self._factor_B, self._gain_B, self._rows_BO = x_BI, factor_B, gain_B, term_BO
        self._own_B, self._at_step, self._polarity = labels_B, step, polarity
        self._goodness_BL: Tensor | None = None
        if self.recipe.hand_on == "neutral":
            return Activities(self._out(size).copy_(term_BO).clamp_min_(0), labels_B, step, polarity)
        self._wrong_B = self._wrong_labels()
        labels = {"interleaved": [labels_B, self._wrong_B], "wake": [labels_B], "sleep": [self._wrong_B]}[polarity]
        h_NO = self._out(size * len(labels))
        for rows_BO, row_labels_B in zip(h_NO.split(size), labels, strict=True):
            rows_BO.copy_(torch.addcmul(term_BO, self._vectors_LO[row_labels_B], gain_B[:, None])).clamp_min_(0)
        return Activities(h_NO, torch.cat(labels), step, polarity)

    def _all_goodness(self) -> Tensor:
        """Goodness for every label (B, L), computed once a step."""
        if self._goodness_BL is None:
            squares_BL = all_label_squares(self._rows_BO, self._gain_B, self._vectors_LO)
            self._goodness_BL = self.goodness.of_squares(squares_BL, self.outputs)
        return self._goodness_BL

    def _wrong_labels(self) -> Tensor:
        if self.recipe.negatives == "random":
            return random_wrong_labels(self._own_B, self.recipe.labels, self.recipe.seed, self._at_step)
        return hardest_wrong_labels(self._all_goodness(), self._own_B)

    def update(self) -> None:
        """Learns from the samples of the last forward."""
        slope_BL = self._softmax_slopes(self._softmax) if self._softmax else self._contrast_slopes()
        error_BO = self._error_BO[: len(self._own_B)]
        slope_BL.mul_(self.slope)
        gradient_LO = all_label_errors(self._rows_BO, self._gain_B, self._vectors_LO, slope_BL, error_BO)
        bias_gradient_O = error_BO.sum(0)
        scaled_BO = torch.mul(error_BO, self._factor_B[:, None], out=self._product_BO[: len(error_BO)])
        self._update(len(scaled_BO), scaled_BO, self._x_BI, bias_gradient_O, gradient_LO)

    def _softmax_slopes(self, objective: Softmax) -> Tensor:
        goodness_BL, own_B = self._all_goodness(), self._own_B
        slope_BL, loss = objective.slopes(goodness_BL, own_B)

        def outcome() -> Outcome:
            positive_B = goodness_BL.gather(1, own_B[:, None])[:, 0]
            negative_B = (goodness_BL.sum(1) - positive_B) / (goodness_BL.shape[1] - 1)
            return Outcome(positive_B, negative_B, loss)

        self._unread.append(outcome)
        return slope_BL

    def _contrast_slopes(self) -> Tensor:
        goodness_BL = self._all_goodness()
        wrong_B = self._wrong_labels() if self.recipe.hand_on == "neutral" else self._wrong_B
        chosen = {"positive": self._own_B[:, None], "negative": wrong_B[:, None]}
        left_out = {"interleaved": "", "wake": "negative", "sleep": "positive"}[self._polarity]
        chosen.pop(left_out, None)
        goodness = {name: goodness_BL.gather(1, labels_B1)[:, 0] for name, labels_B1 in chosen.items()}
        positive_B, negative_B = goodness.get("positive"), goodness.get("negative")
        slopes = self._contrast.slopes(positive_B, negative_B)
        self._unread.append(partial(Outcome, positive_B, negative_B, slopes.loss))
        slope_BL = torch.zeros_like(goodness_BL)
        for name, slope_B in (("positive", slopes.positive_B), ("negative", slopes.negative_B)):
            if slope_B is not None:
                slope_BL.scatter_(1, chosen[name], slope_B[:, None])
        return slope_BL


class NeutralLayer(LabelLayer):
    """A later layer whose input is the activities of a pass without a label."""

    def forward(self, given: Activities) -> Activities:
        """What to hand on for the neutral activities (B, I) of the layer before."""
        x_BI, labels_B, step, polarity = given
        factor_B = self.normalization.factor(sum_squares(x_BI), self.inputs)
        # x is not copied: the layer before keeps a buffer for as long as we hold it.
        return self._step(x_BI, factor_B, torch.ones_like(factor_B), labels_B, step, polarity)
