"""Prediction: the label whose goodness, summed over the layers, is highest.

A classifier is an immutable set of weights. The first layer's image product is computed once for all labels.
Shapes: B samples, I inputs, O outputs, L labels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.goodness import make_goodness
from ffstream.ff.input_layer import prepare, to_unit
from ffstream.ff.layer import LayerWeights
from ffstream.ff.normalization import make_normalization, sum_squares
from ffstream.ff.presets import Recipe

_CHUNK = 32  # samples at a time: L rows each, so that a chunk's activities stay in a core's cache


class Prediction(NamedTuple):
    """Labels (B), int64, and goodness for each label (B, L), float32, both on the CPU."""

    labels_B: Tensor
    goodness_BL: Tensor


class Classifier:
    """Weights that answer. Safe to use from several threads at once."""

    def __init__(self, recipe: Recipe, layers: list[LayerWeights]) -> None:
        self.recipe = recipe
        self.layers = layers
        self._normalization = make_normalization(recipe.normalization)
        self._goodness = make_goodness(recipe.goodness)

    def predict(self, images_BI: Tensor) -> Prediction:
        """Labels and goodness of images (B, I): uint8, or float32 between 0 and 1."""
        chunks = [self._goodness_by_label(chunk) for chunk in images_BI.split(_CHUNK)]
        goodness_BL = torch.cat(chunks).cpu() if chunks else torch.empty(0, self.recipe.labels)
        return Prediction(goodness_BL.argmax(1), goodness_BL)

    def _goodness_by_label(self, images_BI: Tensor) -> Tensor:
        first = self.layers[0]
        pixels_BI = to_unit(images_BI, first.weight_OI.device)
        dtype = first.weight_OI.dtype
        x_BI, factor_B, gain_B = prepare(pixels_BI, first.mean_I, self.recipe, self._normalization, dtype)
        term_BO = self._term(x_BI, factor_B, first)
        h_BLO = _with_labels(term_BO, gain_B, first)
        total_BL = self._goodness(h_BLO)
        if not self.recipe.score_first_layer and len(self.layers) > 1:
            total_BL.zero_()
        for weights in self.layers[1:]:
            if self.recipe.hand_on == "neutral":
                x_BI = term_BO.clamp_min_(0)
                factor_B = self._normalization.factor(sum_squares(x_BI), x_BI.shape[1])
                term_BO = self._term(x_BI, factor_B, weights)
                h_BLO = _with_labels(term_BO, torch.ones_like(factor_B), weights)
            else:
                h_BLO = self._labelled(h_BLO, weights)
            total_BL += self._goodness(h_BLO)
        return total_BL

    def _term(self, x_NI: Tensor, factor_N: Tensor, weights: LayerWeights) -> Tensor:
        """x̂Wᵀ + b: what a row's pre-activation is without a label."""
        product_NO = x_NI @ weights.weight_OI.t()
        return torch.addcmul(weights.bias_O, product_NO, factor_N.to(x_NI.dtype)[:, None], out=product_NO)

    def _labelled(self, h_BLI: Tensor, weights: LayerWeights) -> Tensor:
        """Activities of a layer whose input differs from label to label."""
        x_NI = h_BLI.flatten(0, 1)
        factor_N = self._normalization.factor(sum_squares(x_NI), x_NI.shape[1])
        z_BLO = self._term(x_NI, factor_N, weights).view(*h_BLI.shape[:2], -1)
        return (z_BLO.add_(weights.vectors_LO) if len(weights.vectors_LO) else z_BLO).clamp_min_(0)


def _with_labels(term_BO: Tensor, gain_B: Tensor, weights: LayerWeights) -> Tensor:
    """relu(term + g E[l]) for every label l."""
    gain_B11 = gain_B.to(term_BO.dtype)[:, None, None]
    return torch.addcmul(term_BO[:, None, :], gain_B11, weights.vectors_LO).clamp_min_(0)
