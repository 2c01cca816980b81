"""Prediction: the label with the highest goodness, summed over the layers, or that of the readout.

A classifier is an immutable set of weights. It computes with the same formulas as learning (`formulas.py`).
Shapes: B samples, I inputs, N rows, F units, L labels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff import head
from ffstream.ff.buffers import Buffers
from ffstream.ff.formulas import Formulas
from ffstream.ff.input import Preprocessor, to_unit
from ffstream.ff.member import INPUT, READOUT, below, layer_name
from ffstream.ff.recipe import Recipe

_CHUNK = 256  # samples computed at a time, so that a large query needs no more memory than a microbatch
_ROW_MULTIPLE = 16


class Prediction(NamedTuple):
    """The predicted labels (B; int64) and the score of every label (B, L; float32), both on the CPU.

    The score is the goodness, or a logit of the readout.
    """

    labels_B: Tensor
    goodness_BL: Tensor


class Classifier:
    """Predicts with fixed weights, named as `Network.weights` names them. Safe to use from several threads at
    once."""

    def __init__(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> None:
        self.recipe = recipe
        self.weights = dict(weights)
        self._layers = [below(layer_name(index), weights) for index in range(len(recipe.layers))]
        first = self._layers[0]["weight"]
        self._device, self._dtype = first.device, first.dtype
        self._preprocessor: Preprocessor = recipe.preprocessing.build(recipe.image_shape, self._device)
        self._input = below(INPUT, weights)
        self._readout = below(READOUT, weights)
        shapes = zip(recipe.layers, recipe.input_shapes(), strict=True)
        self._formulas = [Formulas(options, shape, recipe.labels, self._device) for options, shape in shapes]
        self._buffers = Buffers()

    def predict(self, images_BI: Tensor) -> Prediction:
        """Predicts images (B, I): uint8, or float32 between 0 and 1."""
        with torch.inference_mode():  # without autograd's bookkeeping, which costs a single query a tenth of its time
            chunks = [self._score(chunk) for chunk in images_BI.split(_CHUNK)]
            goodness_BL = (chunks[0] if len(chunks) == 1 else torch.cat(chunks)).cpu()
            return Prediction(goodness_BL.argmax(1), goodness_BL)

    def preprocess(self, images_BI: Tensor) -> Tensor:
        """The first layer's input (B, I), float32."""
        return self._preprocessor.apply(to_unit(images_BI, self._device, self._buffers), self._input)

    def goodness(self, images_BI: Tensor) -> list[Tensor]:
        """The goodness (B, L) of every label, for each layer."""
        x_NI = self.preprocess(images_BI)
        conditioned = self.recipe.activities == "label_conditioned"
        by_layer: list[Tensor] = []
        labels_N = None
        for formulas, weights in zip(self._formulas, self._layers, strict=True):
            result = formulas.forward(x_NI, weights, self._dtype, self._buffers)
            z_NF = result.z_NF
            if labels_N is not None:
                formulas.scheme.condition_(z_NF, result.label_scale_N, weights, labels_N)
                by_layer.append(formulas.label_formulas.by_row(z_NF).view(len(images_BI), -1))
            else:
                by_layer.append(formulas.label_formulas.by_label(z_NF, result.label_scale_N, weights))
                if conditioned:  # later layers compute one row for each sample and label
                    z_NF = formulas.label_formulas.expand(z_NF, result.label_scale_N, weights).flatten(0, 1)
                    labels_N = torch.arange(self.recipe.labels, device=self._device).repeat(len(images_BI))
            if len(by_layer) < len(self._formulas):
                out_NF = z_NF if z_NF.dtype == self._dtype else torch.empty_like(z_NF, dtype=self._dtype)
                x_NI = formulas.activities(z_NF, out_NF)
        return by_layer

    def logits(self, images_BI: Tensor) -> Tensor:
        """The logits (B, L) of the softmax readout."""
        x_BI = self.preprocess(images_BI)
        read = []
        for index, (formulas, weights) in enumerate(zip(self._formulas, self._layers, strict=True)):
            z_BF = formulas.forward(x_BI, weights, self._dtype, self._buffers).z_NF
            x_BI = formulas.activities(z_BF, torch.empty_like(z_BF, dtype=self._dtype))
            if index in self.recipe.read_layers:
                read.append(x_BI)
        return head.logits(head.features(read, self._buffers), self._readout)

    def _score(self, images_BI: Tensor) -> Tensor:
        """The score (B, L) of every label."""
        count = len(images_BI)
        padded = _padded_rows(count, self._device)
        if padded > count:
            images_BI = torch.cat((images_BI, images_BI.new_zeros(padded - count, images_BI.shape[1])))
        scores_BL = self.logits(images_BI) if self._readout else self._weighted_goodness(images_BI)
        return scores_BL[:count]

    def _weighted_goodness(self, images_BI: Tensor) -> Tensor:
        """Σ score_weight · goodness over the layers: (B, L)."""
        weights = [layer.score_weight for layer in self.recipe.layers]
        pairs = zip(weights, self.goodness(images_BI), strict=True)
        scores = [goodness_BL if weight == 1 else goodness_BL * weight for weight, goodness_BL in pairs if weight]
        total_BL = scores[0]
        for score_BL in scores[1:]:
            total_BL = total_BL + score_BL
        return total_BL


def _padded_rows(count: int, device: torch.device) -> int:
    """How many rows to compute for `count` samples.

    On the CPU, bfloat16 products and all convolutions are compiled once for each number of rows, which takes half a
    millisecond and keeps 0.3 MB for good; and maps of many sizes fragment the heap, by gigabytes. Rounding up to
    powers of two and multiples of 16 limits this to 20 different numbers.
    """
    if device.type != "cpu":
        return count
    return (
        1 << max(count - 1, 0).bit_length() if count <= _ROW_MULTIPLE else -(-count // _ROW_MULTIPLE) * _ROW_MULTIPLE
    )
