"""Layers that add the label themselves: the first layer, and later ones when neutral activities are handed on.

Their input holds no label, so its product is computed once a sample and a label only adds g·E[y]. All
labels' goodness is elementwise work, and for ∂L/∂W the errors of a sample's labels add up before the product:
two products of B rows learn from a positive and from any number of negatives.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ffstream.ff.layer import Activities, Layer, Placement, Polarity
from ffstream.ff.negatives import hardest_wrong_labels, random_wrong_labels
from ffstream.ff.normalization import sum_squares
from ffstream.ff.objective import Paired, Softmax, Threshold
from ffstream.ff.presets import Recipe

_CHUNK_NUMBERS = 1 << 17  # numbers of a chunk of all labels' activities: half of a core's second-level cache


class LabelLayer(Layer):
    """A layer whose input rows are samples. Subclasses prepare x, its factor r and the label's gain g."""

    def __init__(self, recipe: Recipe, index: int, placement: Placement) -> None:
        super().__init__(recipe, index, placement)
        self._softmax = Softmax(recipe.alpha, recipe.smoothing) if recipe.objective == "softmax" else None
        self._contrast = (
            Threshold(recipe.alpha, recipe.theta) if recipe.objective == "threshold" else Paired(recipe.alpha)
        )
        size, labels = recipe.rows, recipe.labels
        self._term_BO = self._empty(size, self.outputs)
        self._error_BO = self._empty(size, self.outputs)
        self._scratch_BO = self._empty(size, self.outputs)
        self._chunk = max(1, _CHUNK_NUMBERS // (labels * self.outputs))
        self._all_labels_BLO = self._empty(min(self._chunk, size), labels, self.outputs)

    def _step(
        self, x_BI: Tensor, factor_B: Tensor, gain_B: Tensor, labels_B: Tensor, seq: int, polarity: Polarity
    ) -> Activities:
        size = len(x_BI)
        term_BO = torch.mm(x_BI, self._weight_OI.t(), out=self._term_BO[:size])
        torch.addcmul(self._bias_O, term_BO, self._column(factor_B), out=term_BO)
        self._x_BI, self._factor_B, self._gain_B = x_BI, factor_B, gain_B
        self._own_B, self._seq, self._polarity = labels_B, seq, polarity
        if self.recipe.hand_on == "neutral":
            self._rows: list[Tensor] = []
            h_BO = torch.clamp(term_BO, min=0, out=self._out(size))
            return Activities(h_BO, labels_B, seq, polarity)
        self._labels = self._polarity_labels()
        h_NO = self._out(size * len(self._labels))
        self._rows = list(h_NO.split(size))
        for rows_BO, row_labels_B in zip(self._rows, self._labels, strict=True):
            self._activities(row_labels_B, out=rows_BO)
        return Activities(h_NO, torch.cat(self._labels), seq, polarity)

    def _activities(self, labels_B: Tensor, out: Tensor) -> Tensor:
        """relu(z) of each sample with the label given to it."""
        vectors_BO = torch.index_select(self._vectors_LO, 0, labels_B, out=self._scratch_BO[: len(labels_B)])
        return torch.addcmul(
            self._term_BO[: len(labels_B)], vectors_BO, self._column(self._gain_B), out=out
        ).clamp_min_(0)

    def _polarity_labels(self) -> list[Tensor]:
        """The labels to learn with: the samples' own, wrong ones, or both."""
        labels = [self._own_B] if self._polarity != "sleep" else []
        if self._polarity != "wake":
            labels.append(self._wrong_labels())
        return labels

    def _wrong_labels(self) -> Tensor:
        if self.recipe.negatives == "random":
            return random_wrong_labels(self._own_B, self.recipe.labels, self.recipe.seed, self._seq)
        goodness = [self.goodness(h_BLO) for _, h_BLO in self._all_labels()]
        return hardest_wrong_labels(torch.cat(goodness), self._own_B)

    def _all_labels(self) -> Iterator[tuple[slice, Tensor]]:
        """Activities with every label, a chunk of samples at a time, in one buffer."""
        gain_B11 = self._column(self._gain_B)[:, None]
        for start in range(0, len(self._own_B), self._chunk):
            part = slice(start, min(start + self._chunk, len(self._own_B)))
            out = self._all_labels_BLO[: part.stop - part.start]
            torch.addcmul(self._term_BO[part, None], self._vectors_LO, gain_B11[part], out=out)
            yield part, out.clamp_min_(0)

    def update(self) -> None:
        """Learns from the samples of the last forward."""
        if self._softmax is not None:
            self._update_softmax(self._softmax)
        else:
            self._update_contrast()

    def _update_softmax(self, objective: Softmax) -> None:
        size = len(self._own_B)
        error_BO = self._error_BO[:size]
        vectors_gradient_LO = torch.zeros_like(self._vectors_LO)
        gain_1B = self._column(self._gain_B).t()
        for part, h_BLO in self._all_labels():
            goodness_BL = self.goodness(h_BLO)
            own_B = self._own_B[part]
            slope_BL, loss = objective.slopes(goodness_BL, own_B)
            own = goodness_BL.gather(1, own_B[:, None])
            self._count(own[:, 0], (goodness_BL.sum(1) - own[:, 0]) / (goodness_BL.shape[1] - 1), loss)
            weight = self.slope * len(own_B) / size
            h_BLO.mul_(slope_BL.mul_(weight).to(self.product_dtype)[:, :, None])  # ∂L/∂z for each label
            torch.sum(h_BLO, 1, out=error_BO[part])
            vectors_gradient_LO.add_((gain_1B[:, part] @ h_BLO.flatten(1)).view_as(vectors_gradient_LO))
        bias_gradient_O = error_BO.sum(0)
        error_BO.mul_(self._column(self._factor_B))
        self._update(error_BO, self._x_BI, bias_gradient_O, vectors_gradient_LO)

    def _update_contrast(self) -> None:
        size = len(self._own_B)
        if self.recipe.hand_on == "neutral":
            self._labels = self._polarity_labels()
            self._rows = [
                self._activities(labels_B, out=torch.empty_like(self._term_BO[:size])) for labels_B in self._labels
            ]
        goodness = [self.goodness(rows_BO) for rows_BO in self._rows]
        positive_B = goodness[0] if self._polarity != "sleep" else None
        negative_B = goodness[-1] if self._polarity != "wake" else None
        slopes = self._contrast.slopes(positive_B, negative_B)
        self._count(positive_B, negative_B, slopes.loss)
        error_BO = self._error_BO[:size].zero_()
        vectors_gradient_LO = torch.zeros_like(self._vectors_LO)
        gain_B1 = self._column(self._gain_B)
        row_slopes = [each for each in (slopes.positive_B, slopes.negative_B) if each is not None]
        for rows_BO, labels_B, slope_B in zip(self._rows, self._labels, row_slopes, strict=True):
            row_error_BO = torch.mul(rows_BO, self._column(slope_B.mul_(self.slope)), out=self._scratch_BO[:size])
            error_BO.add_(row_error_BO)
            vectors_gradient_LO.index_add_(0, labels_B, row_error_BO.mul_(gain_B1))
        bias_gradient_O = error_BO.sum(0)
        error_BO.mul_(self._column(self._factor_B))
        self._update(error_BO, self._x_BI, bias_gradient_O, vectors_gradient_LO)


class NeutralLayer(LabelLayer):
    """A later layer whose input is the activities of a pass without a label."""

    def forward(self, given: Activities) -> Activities:
        """What to hand on for the neutral activities (B, I) of the layer before."""
        x_BI, labels_B, seq, polarity = given
        factor_B = self.normalization.factor(sum_squares(x_BI), self.inputs)
        # x is not copied: the layer before keeps a buffer for as long as we hold it.
        return self._step(x_BI, factor_B, torch.ones_like(factor_B), labels_B, seq, polarity)
