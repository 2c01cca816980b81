"""Later layers when labelled activities are handed on: a row for each polarity, with a learned label vector."""

from functools import partial

import torch

from ffstream.ff.layer import Activities, Layer, Outcome, Placement
from ffstream.ff.normalization import sum_squares
from ffstream.ff.objective import make_contrast
from ffstream.ff.presets import Recipe


class RowLayer(Layer):
    """A layer of index 1 or more, fed with positive and negative rows."""

    def __init__(self, recipe: Recipe, index: int, placement: Placement) -> None:
        super().__init__(recipe, index, placement)
        self._objective = make_contrast(recipe)
        self._product_NO = self._empty(self.rows, self.outputs)
        self._h_NO = torch.empty(self.rows, self.outputs, device=self.device)

    def forward(self, given: Activities) -> Activities:
        """Activities (N, O) of the rows that the layer before handed on (N, I)."""
        rows = len(given.h_NO)
        self._given = given
        self._factor_N = self.normalization.factor(sum_squares(given.h_NO), self.inputs)
        h_NO = self._h_NO[:rows].copy_(torch.mm(given.h_NO, self._weight_OI.t(), out=self._product_NO[:rows]))
        bias_O = self.parameters.bias_O
        offset_NO = (self._vectors_LO + bias_O)[given.labels_N] if len(self._vectors_LO) else bias_O
        torch.addcmul(offset_NO, h_NO, self._factor_N[:, None], out=h_NO).clamp_min_(0)
        return given._replace(h_NO=self._out(rows).copy_(h_NO))

    def update(self) -> None:
        """Learns from the rows of the last forward."""
        given, rows = self._given, len(self._given.h_NO)
        h_NO = self._h_NO[:rows]
        positives = {"interleaved": rows // 2, "wake": rows, "sleep": 0}[given.polarity]
        goodness_N = self.goodness(h_NO)
        positive_B = goodness_N[:positives] if positives else None
        negative_B = goodness_N[positives:] if positives < rows else None
        slopes = self._objective.slopes(positive_B, negative_B)
        self._unread.append(partial(Outcome, positive_B, negative_B, slopes.loss))
        slope_N = torch.cat([each for each in (slopes.positive_B, slopes.negative_B) if each is not None])
        error_NO = h_NO.mul_(slope_N.mul_(self.slope)[:, None])
        bias_gradient_O = error_NO.sum(0)
        gradient_LO = torch.zeros_like(self._vectors_LO)
        if len(gradient_LO):
            gradient_LO.index_add_(0, given.labels_N, error_NO)
        scaled_NO = torch.mul(error_NO, self._factor_N[:, None], out=self._product_NO[:rows])
        samples = rows // 2 if given.polarity == "interleaved" else rows
        self._update(samples, scaled_NO, given.h_NO, bias_gradient_O, gradient_LO)
