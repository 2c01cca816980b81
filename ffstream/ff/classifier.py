"""Prediction: the label whose goodness, summed over the layers, is highest.

A classifier is an immutable set of weights. It uses the layers' own formulas: what predicts is what learns.
Shapes: B samples, I inputs, N rows, F units, L labels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers
from ffstream.ff.formulas import Formulas
from ffstream.ff.input import Preprocessor, to_unit
from ffstream.ff.member import INPUT, below, layer_name
from ffstream.ff.recipe import Recipe

_CHUNK = 256  # samples at a time, so that a large query needs no more memory than a microbatch
_FILL = 16


class Prediction(NamedTuple):
    """Labels (B), int64, and goodness for each label (B, L), float32, both on the CPU."""

    labels_B: Tensor
    goodness_BL: Tensor


class Classifier:
    """Weights that answer, by the names that `Network.weights` gives. Safe to use from several threads at once."""

    def __init__(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> None:
        self.recipe = recipe
        self.weights = dict(weights)
        self._layers = [below(layer_name(index), weights) for index in range(len(recipe.layers))]
        first = self._layers[0]["weight"]
        self._device, self._dtype = first.device, first.dtype
        self._preprocessor: Preprocessor = recipe.preprocessing.build(recipe.image_shape, self._device)
        self._input = below(INPUT, weights)
        shapes = zip(recipe.layers, recipe.input_shapes(), strict=True)
        self._formulas = [Formulas(options, shape, recipe.labels, self._device) for options, shape in shapes]
        self._buffers = Buffers()

    def predict(self, images_BI: Tensor) -> Prediction:
        """Labels and goodness of images (B, I): uint8, or float32 between 0 and 1."""
        chunks = [self._score(chunk) for chunk in images_BI.split(_CHUNK)]
        goodness_BL = torch.cat(chunks).cpu() if chunks else torch.empty(0, self.recipe.labels)
        return Prediction(goodness_BL.argmax(1), goodness_BL)

    def preprocess(self, images_BI: Tensor) -> Tensor:
        """What the first layer gets (B, I), float32."""
        return self._preprocessor.apply(to_unit(images_BI, self._device, self._buffers), self._input)

    def goodness(self, images_BI: Tensor) -> list[Tensor]:
        """Goodness (B, L) of each layer for every label."""
        x_NI = self.preprocess(images_BI)
        conditioned = self.recipe.activities == "label_conditioned"
        found: list[Tensor] = []
        labels_N = None
        for formulas, weights in zip(self._formulas, self._layers, strict=True):
            seen = formulas.forward(x_NI, weights, self._dtype, self._buffers)
            z_NF = seen.z_NF
            if labels_N is not None:
                formulas.scheme.condition_(z_NF, seen.gain_N, weights, labels_N)
                found.append(formulas.of_labels.by_row(z_NF).view(len(images_BI), -1))
            else:
                found.append(formulas.of_labels.by_label(z_NF, seen.gain_N, weights))
                if conditioned:  # from here on a row for each sample and label
                    z_NF = formulas.scheme.expand(z_NF, seen.gain_N, weights, self.recipe.labels).flatten(0, 1)
                    labels_N = torch.arange(self.recipe.labels, device=self._device).repeat(len(images_BI))
            if len(found) < len(self._formulas):
                out_NF = z_NF if z_NF.dtype == self._dtype else torch.empty_like(z_NF, dtype=self._dtype)
                x_NI = formulas.activities(z_NF, out_NF)
        return found

    def _score(self, images_BI: Tensor) -> Tensor:
        """Σ weight · goodness over the layers, (B, L)."""
        count = len(images_BI)
        filled = _filled_up(count, self._device, self._dtype)
        if filled > count:
            images_BI = torch.cat((images_BI, images_BI.new_zeros(filled - count, images_BI.shape[1])))
        shares = [layer.score_weight for layer in self.recipe.layers]
        weighted = zip(shares, self.goodness(images_BI), strict=True)
        scored = [goodness_BL if share == 1 else goodness_BL * share for share, goodness_BL in weighted if share]
        return torch.stack(scored).sum(0)[:count]


def _filled_up(count: int, device: torch.device, dtype: torch.dtype) -> int:
    """Rows to compute: a few more where the processor compiles products for each number of rows.

    That takes half a millisecond, and 0.3 MB that stay. So there are 20 numbers: powers of two and multiples of 16.
    """
    if device.type != "cpu" or dtype is not torch.bfloat16:
        return count
    return 1 << max(count - 1, 0).bit_length() if count <= _FILL else -(-count // _FILL) * _FILL
