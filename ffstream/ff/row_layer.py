"""Later layers when labelled activities are handed on: a row for each polarity, with a learned label vector."""

import torch

from ffstream.ff.labels import one_hot
from ffstream.ff.layer import Activities, Layer, Placement
from ffstream.ff.normalization import sum_squares
from ffstream.ff.objective import Paired, Threshold
from ffstream.ff.presets import Recipe


class RowLayer(Layer):
    """A layer of index 1 or more, fed with positive and negative rows."""

    def __init__(self, recipe: Recipe, index: int, placement: Placement) -> None:
        super().__init__(recipe, index, placement)
        self._objective = (
            Threshold(recipe.alpha, recipe.theta) if recipe.objective == "threshold" else Paired(recipe.alpha)
        )
        self._scratch_NO = self._empty(self.rows, self.outputs)

    def _refresh(self) -> None:
        super()._refresh()
        self._vectors_LO.add_(self._bias_O)  # every row has a label, so the bias rides along with it

    def forward(self, given: Activities) -> Activities:
        """Activities (N, O) of the rows that the layer before handed on (N, I)."""
        self._given = given
        rows = len(given.h_NO)
        self._factor_N = self.normalization.factor(sum_squares(given.h_NO), self.inputs)
        h_NO = torch.mm(given.h_NO, self._weight_OI.t(), out=self._out(rows))
        if len(self._vectors_LO):
            label_NO = torch.index_select(self._vectors_LO, 0, given.labels_N, out=self._scratch_NO[:rows])
            torch.addcmul(label_NO, h_NO, self._column(self._factor_N), out=h_NO)
        else:
            torch.addcmul(self._bias_O, h_NO, self._column(self._factor_N), out=h_NO)
        self._h_NO = h_NO.clamp_min_(0)
        return given._replace(h_NO=h_NO)

    def update(self) -> None:
        """Learns from the rows of the last forward."""
        h_NO, given = self._h_NO, self._given
        rows = len(h_NO)
        positives = {"interleaved": rows // 2, "wake": rows, "sleep": 0}[given.polarity]
        goodness_N = self.goodness(h_NO)
        positive_B = goodness_N[:positives] if positives else None
        negative_B = goodness_N[positives:] if positives < rows else None
        slopes = self._objective.slopes(positive_B, negative_B)
        self._count(positive_B, negative_B, slopes.loss)
        slope_N = torch.cat([each for each in (slopes.positive_B, slopes.negative_B) if each is not None])
        slope_N.mul_(self._factor_N).mul_(self.slope)
        error_NO = torch.mul(h_NO, self._column(slope_N), out=self._scratch_NO[:rows])
        # The error is scaled by r for ∂L/∂W; label and bias want it unscaled, hence 1/r in their columns.
        inverse_N = self._factor_N.reciprocal().to(self.product_dtype)
        if len(self._vectors_LO):
            vectors_gradient_LO = one_hot(given.labels_N, len(self._vectors_LO), inverse_N).t() @ error_NO
            bias_gradient_O = vectors_gradient_LO.sum(0)
        else:
            vectors_gradient_LO = self._vectors_LO
            bias_gradient_O = inverse_N @ error_NO
        self._update(error_NO, given.h_NO, bias_gradient_O, vectors_gradient_LO)
