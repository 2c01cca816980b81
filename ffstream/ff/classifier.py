"""Prediction: the label whose goodness, summed over the layers, is highest.

A classifier is an immutable set of weights. The first layer's image product is computed once for all labels.
Shapes: B samples, I inputs, O outputs, L labels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.goodness import make_goodness
from ffstream.ff.input_layer import prepare, to_unit
from ffstream.ff.kernels import all_label_squares
from ffstream.ff.layer import LayerWeights
from ffstream.ff.normalization import make_normalization, sum_squares
from ffstream.ff.presets import Recipe

_CHUNK = 256  # samples at a time, so that a large query needs no more memory than a microbatch
_FILL = 16


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
        count, inputs = images_BI.shape
        device, dtype = first.weight_OI.device, first.weight_OI.dtype
        pixels_BI = torch.empty(_filled_up(count, device, dtype), inputs, device=device)
        pixels_BI[count:] = 0
        to_unit(images_BI, pixels_BI[:count])
        x_BI, factor_B, gain_B = prepare(pixels_BI, first.mean_I, self.recipe, self._normalization, dtype)
        term_BO = _term(x_BI, factor_B, first)
        if self.recipe.hand_on == "neutral":
            goodness = [self._of_all_labels(term_BO, gain_B, first)]
            goodness += self._neutral(term_BO, self.layers[1:])
        else:
            h_BLO = torch.addcmul(term_BO[:, None], gain_B[:, None, None], first.vectors_LO).clamp_min_(0)
            goodness = [self._goodness(h_BLO), *self._labelled(h_BLO, self.layers[1:])]
        scored = goodness if self.recipe.score_first_layer or len(goodness) == 1 else goodness[1:]
        return torch.stack(scored).sum(0)[:count]

    def _of_all_labels(self, term_BO: Tensor, gain_B: Tensor, weights: LayerWeights) -> Tensor:
        squares_BL = all_label_squares(term_BO, gain_B, weights.vectors_LO)
        return self._goodness.of_squares(squares_BL, term_BO.shape[1])

    def _neutral(self, term_BO: Tensor, layers: list[LayerWeights]) -> Iterator[Tensor]:
        """Goodness for all labels of layers that are fed without a label: one product each."""
        for weights in layers:
            x_BI = term_BO.clamp_min_(0).to(weights.weight_OI.dtype)
            factor_B = self._normalization.factor(sum_squares(x_BI), x_BI.shape[1])
            term_BO = _term(x_BI, factor_B, weights)
            yield self._of_all_labels(term_BO, torch.ones_like(factor_B), weights)

    def _labelled(self, h_BLO: Tensor, layers: list[LayerWeights]) -> Iterator[Tensor]:
        """Goodness for all labels of layers whose input differs from label to label: L products each."""
        for weights in layers:
            x_NI = h_BLO.flatten(0, 1).to(weights.weight_OI.dtype)
            factor_N = self._normalization.factor(sum_squares(x_NI), x_NI.shape[1])
            h_BLO = _term(x_NI, factor_N, weights).view(*h_BLO.shape[:2], -1)
            if len(weights.vectors_LO):
                h_BLO.add_(weights.vectors_LO)
            yield self._goodness(h_BLO.clamp_min_(0))


def _filled_up(count: int, device: torch.device, dtype: torch.dtype) -> int:
    """Rows to compute: a few more where the processor compiles products anew for every number of rows.

    That takes half a millisecond, and 0.3 MB that stay. So there are 20 numbers: powers of two and multiples of 16.
    """
    if device.type != "cpu" or dtype is not torch.bfloat16:
        return count
    return 1 << max(count - 1, 0).bit_length() if count <= _FILL else -(-count // _FILL) * _FILL


def _term(x_NI: Tensor, factor_N: Tensor, weights: LayerWeights) -> Tensor:
    """x̂Wᵀ + b in float32: what a row's pre-activation is without a label."""
    product_NO = (x_NI @ weights.weight_OI.t()).to(torch.float32)
    return torch.addcmul(weights.bias_O, product_NO, factor_N[:, None], out=product_NO)
