"""A Forward-Forward layer in closed form: forward, hand on, update; no autograd, no error from above.

With x̂ = r·x the normalised input, g·E[y] what the label y adds, and c = ∂G/∂h ÷ h:

    z = x̂Wᵀ + b + g E[y]      h = relu(z)      G = goodness(h)
    ∂L/∂z = (∂L/∂G) c h        (relu's gate is in h)
    ∂L/∂W = (∂L/∂z)ᵀ x̂        ∂L/∂b = Σ_rows ∂L/∂z        ∂L/∂E[l] = Σ_{rows with y=l} g ∂L/∂z

Nothing is kept for other layers. Products run in `product_dtype` (float32 or bfloat16); parameters, their
gradients and the optimiser are float32.

Shapes: B samples, N rows, I inputs, O outputs, L labels.
"""

from collections import deque
from collections.abc import Callable
from itertools import cycle
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ffstream.ff.goodness import make_goodness
from ffstream.ff.normalization import make_normalization
from ffstream.ff.parameters import Parameters
from ffstream.ff.presets import Recipe

_UNREAD_MAX = 64

Polarity = Literal["interleaved", "wake", "sleep"]


class Activities(NamedTuple):
    """What a layer hands on, and the label that each row was computed with.

    Neutral activities: a row a sample, no label in it, `labels_N` the samples' own. Labelled ones: a row for
    each polarity, positives first; both polarities when interleaved.
    """

    h_NO: Tensor
    labels_N: Tensor
    step: int
    polarity: Polarity


class LayerWeights(NamedTuple):
    """One layer's weights for predictions: float32, but the product's matrix in the products' precision."""

    weight_OI: Tensor
    bias_O: Tensor
    vectors_LO: Tensor
    mean_I: Tensor  # of the images that the first layer has seen; empty for later layers


class Placement(NamedTuple):
    """Where and in which precision a layer computes.

    `buffers` is how many handed-on activities may be alive at once: those in the queue behind the layer, one
    in the next layer's hands, one being written; 0: no limit. CUDA's caching allocator does better than such a ring.
    """

    device: torch.device = torch.device("cpu")
    product_dtype: torch.dtype = torch.float32
    buffers: int = 1


class LayerFigures(NamedTuple):
    """Means since the last reading; NaN where no row of that polarity was seen."""

    goodness_positive: float
    goodness_negative: float
    loss: float


class Outcome(NamedTuple):
    """Goodness of a microbatch's positive and negative rows, and its loss (a scalar)."""

    positive_B: Tensor | None
    negative_B: Tensor | None
    loss: Tensor


class Layer:
    """What all layers share: parameters, their copies for the products, the update, the figures."""

    def __init__(self, recipe: Recipe, index: int, placement: Placement) -> None:
        self.index = index
        self.recipe = recipe
        self.device, self.product_dtype, buffers = placement
        self.outputs = recipe.widths[index]
        self.inputs = recipe.widths[index - 1] if index else recipe.inputs
        own_vectors = recipe.labels if index and recipe.label_vectors else 0
        self.parameters = Parameters(self.outputs, self.inputs, own_vectors, recipe, index, self.device)
        self.normalization = make_normalization(recipe.normalization)
        self.goodness = make_goodness(recipe.goodness)
        self.slope = self.goodness.slope(self.outputs)
        self.rows = recipe.rows * (1 if recipe.hand_on == "neutral" else 2)
        rings = self.device.type == "cpu" and buffers > 0
        ring = [self._empty(self.rows, self.outputs) for _ in range(buffers)] if rings else [None]
        self._handed_on = cycle(ring)
        casts = self.product_dtype != torch.float32
        self._weight_OI = self._empty(self.outputs, self.inputs) if casts else self.parameters.weight_OI
        self._weight_gradient_OI = (
            self._empty(self.outputs, self.inputs) if casts else self.parameters.weight_gradient_OI
        )
        self._vectors_LO = self._label_vectors(*self.parameters.views).contiguous()
        # Looked at when somebody asks: figures cost the step nothing, and a GPU need not wait for them.
        self._unread: deque[Callable[[], Outcome]] = deque(maxlen=_UNREAD_MAX)
        self._refresh()

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.product_dtype, device=self.device)

    def _out(self, rows: int) -> Tensor:
        """Where to write activities that the next layer will read."""
        buffer = next(self._handed_on)
        return self._empty(rows, self.outputs) if buffer is None else buffer[:rows]

    def _label_vectors(self, weight_OI: Tensor, bias_O: Tensor, vectors_LO: Tensor) -> Tensor:
        """What E is for this layer: the parameter, or the columns behind the label pixels."""
        return vectors_LO if self.index else weight_OI[:, : self.recipe.labels].t()

    def _refresh(self) -> None:
        """Takes new parameters over into what is kept beside them."""
        own = self.parameters
        if self._weight_OI is not own.weight_OI:
            self._weight_OI.copy_(own.weight_OI)
        if not self.index:  # columns of the weights: a contiguous copy
            self._vectors_LO.copy_(self._label_vectors(*own.views))

    def _update(
        self, samples: int, error_NO: Tensor, x_NI: Tensor, bias_gradient_O: Tensor, vectors_gradient_LO: Tensor
    ) -> None:
        """The optimiser's step, from r·∂L/∂z of the input's rows and the other gradients."""
        own = self.parameters
        torch.mm(error_NO.t(), x_NI, out=self._weight_gradient_OI)
        if self._weight_gradient_OI is not own.weight_gradient_OI:
            own.weight_gradient_OI.copy_(self._weight_gradient_OI)
        own.bias_gradient_O.copy_(bias_gradient_O)
        if len(vectors_gradient_LO):
            self._label_vectors(*own.gradient_views).copy_(vectors_gradient_LO)
        own.update(samples)
        self._refresh()

    def figures(self) -> LayerFigures:
        """Mean goodness of each polarity and mean loss of the microbatches since the last call (the last 64)."""
        read = [each() for each in self._unread]
        self._unread.clear()
        return LayerFigures(
            _mean([outcome.positive_B for outcome in read]),
            _mean([outcome.negative_B for outcome in read]),
            _mean([outcome.loss.view(1) for outcome in read]),
        )

    def averaged(self) -> LayerWeights:
        """A copy of the averaged weights."""
        weight_OI, bias_O, vectors_LO = self.parameters.averaged()
        vectors_LO = self._label_vectors(weight_OI, bias_O, vectors_LO)
        return LayerWeights(
            weight_OI.to(self.product_dtype, copy=True),
            bias_O.clone(),
            vectors_LO.clone(memory_format=torch.contiguous_format),
            mean_I=bias_O.new_empty(0),
        )

    def state(self) -> dict[str, Tensor]:
        """A copy of all that later updates depend on."""
        return self.parameters.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Continues from a state."""
        self.parameters.load(state)
        self._refresh()


def _mean(parts: list[Tensor | None]) -> float:
    present = [part for part in parts if part is not None]
    return float(torch.cat(present).mean()) if present else float("nan")
