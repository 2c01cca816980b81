"""Prediction: the label with the highest goodness, summed over the layers, or that of the readout.

A classifier is an immutable set of weights. It computes with the same formulas as learning (`formulas.py`).
Shapes: B samples, I inputs, N rows, F units, L labels.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff import linear
from ffstream.ff.buffers import Buffers
from ffstream.ff.fast_weights import Remembering
from ffstream.ff.formulas import Formulas
from ffstream.ff.input import Preprocessor, to_unit
from ffstream.ff.label_formulas import Weights
from ffstream.ff.layer_pass import LayerPass
from ffstream.ff.maps import WEIGHT
from ffstream.ff.member import FAST_WEIGHTS, HARDWARE, INPUT, READOUT, below, layer_name
from ffstream.ff.recall import extended
from ffstream.ff.recipe import Recipe
from ffstream.ff.recurrence import TopDown
from ffstream.ff.rounds import SettlingLayer, settle

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
        layers = [below(layer_name(index), weights) for index in range(len(recipe.layers))]
        first = layers[0][WEIGHT]
        self._device, self._dtype = first.device, first.dtype
        self._preprocessor: Preprocessor = recipe.preprocessing.build(recipe.image_shape, self._device)
        self._input = below(INPUT, weights)
        self._readout = below(READOUT, weights)
        shapes = enumerate(recipe.input_shapes())
        self._formulas = [Formulas(recipe, index, shape, self._device) for index, shape in shapes]
        self._layers = [_on_hardware(*pair) for pair in zip(self._formulas, layers, strict=True)]
        self._fast_weights = [below(FAST_WEIGHTS, own) for own in layers]
        self._buffers = Buffers()

    def predict(self, images_BI: Tensor) -> Prediction:
        """Predicts images (B, I): uint8, or float32 between 0 and 1."""
        with torch.inference_mode():  # without autograd's bookkeeping, which costs a single query a tenth of its time
            chunks = [self._score(chunk) for chunk in images_BI.split(_CHUNK)]
            goodness_BL = (chunks[0] if len(chunks) == 1 else torch.cat(chunks)).cpu()
            return Prediction(goodness_BL.argmax(1), goodness_BL)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    def to_pixels(self, fields_NHWC: Tensor) -> Tensor:
        """Weights on the first layer's input as weights on the pixels of images."""
        return self._preprocessor.to_pixels(fields_NHWC, self._input)

    def padded(self, rows_BI: Tensor) -> Tensor:
        """The rows, and zeros up to one of a few numbers of rows: see `_padded_rows`."""
        missing = _padded_rows(len(rows_BI), self._device) - len(rows_BI)
        return torch.cat((rows_BI, rows_BI.new_zeros(missing, rows_BI.shape[1]))) if missing else rows_BI

    def preprocess(self, images_BI: Tensor) -> Tensor:
        """The first layer's input (B, I), float32."""
        return self._preprocessor.apply(to_unit(images_BI, self._device, self._buffers), self._input)

    def goodness(self, images_BI: Tensor) -> list[Tensor]:
        """The goodness of every label, for each layer: (B, L), or (B, 1) for layers that know no label."""
        return [layer.goodness() for layer in self.layers(self.preprocess(images_BI))]

    def layers(self, x_NI: Tensor) -> Iterator[LayerPass]:
        """What each layer computes for preprocessed images (B, I), first layer first. Read it before the next one."""
        if isinstance(self.recipe.recurrence, TopDown):
            yield from self._settled(self.recipe.recurrence, x_NI)
            return
        labels_N = None
        expands = self.recipe.activities == "label_conditioned"
        last = len(self._formulas) - 1
        for index, (formulas, weights) in enumerate(zip(self._formulas, self._layers, strict=True)):
            result = formulas.forward(self._with_recall(index, x_NI), weights, self._dtype, self._buffers)
            if labels_N is not None:
                formulas.scheme.condition_(result.z_NF, result.label_scale_N, weights, labels_N)
            yield (layer := LayerPass(formulas, weights, result, labels_N, expands=expands))
            if index < last:
                x_NI, labels_N = layer.passed_on(self._dtype)

    def _with_recall(self, index: int, x_NI: Tensor) -> Tensor:
        """A layer's input, and what its fast weights recall with it."""
        options = self.recipe.layers[index].fast_weights
        return extended(options, x_NI, self._fast_weights[index]) if isinstance(options, Remembering) else x_NI

    def _settled(self, recurrence: TopDown, x_BI: Tensor) -> Iterator[LayerPass]:
        """The same after the last round of a recurrent network: every layer has a row for each image and label."""
        pairs = list(zip(self._formulas, self._layers, strict=True))
        layers = [SettlingLayer(*pair, self._dtype, self._buffers) for pair in pairs]
        settle(recurrence, layers, x_BI)
        labels_N = torch.arange(self.recipe.labels, device=x_BI.device).repeat(len(x_BI))
        for (formulas, weights), layer in zip(pairs, layers, strict=True):
            yield LayerPass(formulas, weights, layer.result(), labels_N, expands=False)

    def logits(self, images_BI: Tensor) -> Tensor:
        """The logits (B, L) of the softmax readout."""
        return linear.outputs(linear.features(self._read(images_BI), self._buffers), self._readout)

    def logit_parts(self, images_BI: Tensor) -> dict[int, Tensor]:
        """What each layer that the readout reads contributes to the logits (B, L), by its index. The rest is the
        readout's bias."""
        read = self._read(images_BI)
        f_BF = linear.features(read, self._buffers)
        sizes = [h_BF.shape[1] for h_BF in read]
        parts = zip(f_BF.split(sizes, 1), self._readout[WEIGHT].split(sizes, 1), strict=True)
        sums = [part_BF @ weight_LF.t() for part_BF, weight_LF in parts]
        return dict(zip(self.recipe.read_layers, sums, strict=True))

    @property
    def readout_bias(self) -> Tensor | None:
        """The bias (L) of the readout; None without a readout."""
        return self._readout.get("bias")

    def _read(self, images_BI: Tensor) -> list[Tensor]:
        """The activities (B, F) of the layers that the readout reads."""
        x_BI = self.preprocess(images_BI)
        read = []
        for index, (formulas, weights) in enumerate(zip(self._formulas, self._layers, strict=True)):
            z_BF = formulas.forward(self._with_recall(index, x_BI), weights, self._dtype, self._buffers).z_NF
            x_BI = formulas.activities(z_BF, torch.empty_like(z_BF, dtype=self._dtype))
            if index in self.recipe.read_layers:
                read.append(x_BI)
        return read

    def _score(self, images_BI: Tensor) -> Tensor:
        """The score (B, L) of every label."""
        padded_BI = self.padded(images_BI)
        scores_BL = self.logits(padded_BI) if self._readout else self._weighted_goodness(padded_BI)
        return scores_BL[: len(images_BI)]

    def _weighted_goodness(self, images_BI: Tensor) -> Tensor:
        """Σ score_weight · goodness over the layers: (B, L)."""
        weights = [layer.score_weight for layer in self.recipe.layers]
        pairs = zip(weights, self.goodness(images_BI), strict=True)
        scores = [goodness_BL if weight == 1 else goodness_BL * weight for weight, goodness_BL in pairs if weight]
        total_BL = scores[0]
        for score_BL in scores[1:]:
            total_BL = total_BL + score_BL
        return total_BL


def _on_hardware(formulas: Formulas, weights: Weights) -> Weights:
    """What the device on which the layer has learned makes of its weights."""
    formulas.hardware.load_weights(below(HARDWARE, weights))
    return formulas.hardware.program(weights)


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
