"""The linear decoder of a layer: it reconstructs the input from the activities, and learns online and locally.

    ĥ = h / rms(h)        ẑ = D ĥ + d        L = mean over rows of ½ ‖ẑ − t‖²
    ∂L/∂D = Σ (ẑ − t) ĥᵀ / B                  ∂L/∂d = Σ (ẑ − t) / B        (the delta rule, Widrow and Hoff 1960)

t is the layer's normalised input x̂, and in the first layer the image itself. The decoder learns from the label-free
activities of real samples only, which are the positive rows, and no gradient reaches the layer.

A dream begins with remembered activities (`ff/memories.py`) and is decoded. A linear decoder gives means, which are
blurred. So only the order of the decoded pixels, from dark to bright, is used in the first layer: the dream gets the
grey values of remembered images in that order (histogram matching).

Shapes: B samples, F units, I numbers of the layer's input, or of an image.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape, size_of
from ffstream.ff.decoder import LinearDecoder
from ffstream.ff.formulas import ForwardResult
from ffstream.ff.linear import features, outputs, write_gradients
from ffstream.ff.maps import WEIGHT
from ffstream.ff.member import below, copied, joined
from ffstream.ff.memories import ActivityMemory, Remembered, Sizes
from ffstream.ff.parameters import Parameters
from ffstream.ff.placement import Placement
from ffstream.ff.randomness import generator_for
from ffstream.ff.recipe import Recipe

_MEMORY = "memory"
_READY_MICROBATCHES = 4


class Dream(NamedTuple):
    """Images (B, I), pixels from 0 to 1, and the labels (B) of what they were drawn from."""

    pixels_BI: Tensor
    labels_B: Tensor


class LinearDecoding:
    """The decoder of layer `index`, and what it remembers."""

    def __init__(self, recipe: Recipe, index: int, input_shape: Shape, placement: Placement) -> None:
        layer = recipe.layers[index]
        options = layer.decoder
        assert isinstance(options, LinearDecoder)
        shape = layer.connection.output_shape(input_shape)
        self._decodes_images = index == 0
        self._inputs = size_of(input_shape) if index else recipe.inputs
        self._purpose, self._seed = f"dreams {index}", recipe.seed
        self._activation, self._one_label = layer.activation, recipe.learns_unlabelled
        shapes = {WEIGHT: (self._inputs, size_of(shape)), "bias": (self._inputs,)}
        self.parameters = Parameters(recipe, options, shapes, placement.device)
        self._ready_samples = _READY_MICROBATCHES * recipe.batch_size
        labels = 1 if recipe.learns_unlabelled else recipe.labels
        sizes = Sizes(shape, labels, 0 if index else self._inputs)
        self.memory: ActivityMemory = options.memory.build(sizes, placement.device)
        self._last: tuple[Tensor, Tensor] | None = None  # what the last update decoded, and what it should have

    def learn(self, input: Activities, result: ForwardResult) -> None:
        """One update from the positive rows of the layer's last forward pass; none in the phase `sleep`, or
        in the first layer without images."""
        if input.phase == "sleep" or (self._decodes_images and input.pixels_BI is None):
            return
        rows = slice(input.positives)
        h_BF = self._activation.value(result.z_NF[rows]).float()
        target_BI = self._target(input, result, rows)
        self._step(h_BF, target_BI, input)
        labels_B = input.labels_N[rows]
        labels_B = torch.zeros_like(labels_B) if self._one_label else labels_B
        values_BV = h_BF[:, :0] if input.pixels_BI is None else target_BI.sort(1).values
        self.memory.add(Remembered(h_BF, labels_B, values_BV), self._generator("remembered", input.step))

    def _target(self, input: Activities, result: ForwardResult, rows: slice) -> Tensor:
        if input.pixels_BI is not None:
            return input.pixels_BI
        return result.x_NI[rows].float() * result.inverse_norm_N[rows, None]

    def _step(self, h_BF: Tensor, target_BI: Tensor, input: Activities) -> None:
        f_BF = features([h_BF], Buffers())
        decoded_BI = outputs(f_BF, self.parameters.views)
        self._last = decoded_BI, target_BI
        write_gradients((decoded_BI - target_BI).div_(len(h_BF)), f_BF, self.parameters.gradients)
        self.parameters.update(input.samples, input.phase, input.replicas)

    def error(self) -> float:
        """The share of the variance of the input that the decoder misses, in the rows of the last update: 0 if it
        misses nothing, 1 if the mean of the rows would be as good. NaN before the first update, and if all rows were
        equal."""
        if self._last is None:
            return math.nan
        decoded_BI, target_BI = self._last
        if bool((target_BI == target_BI[0]).all()):
            return math.nan
        variance = (target_BI - target_BI.mean(0)).square().sum()
        return float((decoded_BI - target_BI).square().sum() / variance)

    def decode(self, h_BF: Tensor) -> Tensor:
        """ẑ (B, I): what the layer's input was, from its activities (B, F; float32)."""
        return outputs(features([h_BF], Buffers()), self.parameters.views)

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return generator_for(f"{self._purpose} {purpose}", self._seed, step)

    @property
    def is_ready(self) -> bool:
        """Whether the decoder has learned a few microbatches since it started."""
        return self.parameters.samples >= self._ready_samples and not self.memory.is_empty

    def dream(self, count: int, step: int, labels_B: Tensor | None = None, *, mixed: bool = True) -> Dream:
        """Dreams of the first layer, as images: the same for the same step, after the same stream.

        `labels_B`: the labels to dream of; None: as frequent as in the stream. `mixed`: each one mixes two draws from
        the memory, see `ff/memories.py`. Black images of label 0 while nothing is remembered.
        """
        if self.memory.is_empty:
            black_BI = torch.zeros(count, self._inputs, device=self.parameters.flat.device)
            return Dream(black_BI, torch.zeros(count, dtype=torch.int64, device=black_BI.device))
        begin = self._draw(labels_B, count, step, mixed=mixed)
        return Dream(with_values(self.decode(begin.h_BF), begin.values_BV), begin.labels_B)

    def draw(self, labels_B: Tensor, step: int) -> Remembered:
        """What dreams of these labels begin with. The memory must not be empty."""
        return self._draw(labels_B, len(labels_B), step, mixed=True)

    def _draw(self, labels_B: Tensor | None, count: int, step: int, *, mixed: bool) -> Remembered:
        generator = self._generator("mixed" if mixed else "single", step)
        return self.memory.draw(labels_B, count, generator, mixed=mixed)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights, `weight` (I, F) and `bias` (I), and of a part of the memory. All are
        float32."""
        own = copied(self.parameters.ema)
        remembered = {name: value.to(torch.float32, copy=True) for name, value in self.memory.weights().items()}
        return own | joined([(_MEMORY, remembered)])

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later updates and dreams depend on."""
        return self.parameters.state_dict() | joined([(_MEMORY, copied(self.memory.state))])

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.parameters.load_state_dict(state)
        self._load_memory(state)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Starts over from weights that `weights` returned. See `Parameters.load_weights`."""
        self.parameters.load_weights(weights)
        self._load_memory(weights)

    def _load_memory(self, tensors: Mapping[str, Tensor]) -> None:
        stored = below(_MEMORY, tensors)
        for name, value in self.memory.state.items():
            value[: len(stored[name])].copy_(stored[name]) if value.dim() else value.copy_(stored[name])


def with_values(decoded_BI: Tensor, values_BI: Tensor) -> Tensor:
    """The sorted grey values in the order of the decoded pixels: the darkest one gets the lowest value.

    >>> with_values(torch.tensor([[0.7, 0.1, 0.4]]), torch.tensor([[0.0, 0.5, 1.0]]))
    tensor([[1.0000, 0.0000, 0.5000]])
    """
    return torch.empty_like(decoded_BI).scatter_(1, decoded_BI.argsort(dim=1, stable=True), values_BI)
