"""A Forward-Forward layer: forward, pass activities on, update. It knows its parts by what they do, not by name.

No autograd, and no error from above: everything is in closed form (`formulas`), and nothing is kept for other layers.

What comes in is either label-free (a row a sample; the layer compares all labels itself) or label-conditioned (rows
that hold a label each, positive ones first). What is passed on is of the same kind, but for the first layer of a
label-conditioned network: it turns the first into the second.

Shapes: B samples, N rows, F units, L labels.
"""

from collections import deque
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffstream.ff import kernels
from ffstream.ff.buffers import KeptBuffers
from ffstream.ff.connection import Shape
from ffstream.ff.formulas import Formulas, Pass
from ffstream.ff.maps import WEIGHT
from ffstream.ff.objective import Judgement, Outcome, Phase
from ffstream.ff.parameters import Parameters
from ffstream.ff.randomness import generator_for
from ffstream.ff.recipe import Recipe

_UNREAD_MAX = 64


class Activities(NamedTuple):
    """What a layer passes on: rows, the label of each, and how many of the rows, the first, are positive.

    Label-free activities: a row a sample, `labels_N` the samples' own, `positives` None. Label-conditioned ones: a
    row for each sample and sign, positives first; both signs when interleaved.
    """

    h_NF: Tensor
    labels_N: Tensor
    positives: int | None
    step: int
    phase: Phase


class Placement(NamedTuple):
    """Where and in which precision a layer computes.

    `buffers` is how many passed-on activities may be alive at once: those in the queue behind the layer, one
    in the next layer's hands, one being written; 0: no limit. CUDA's caching allocator does better than such a ring.
    """

    device: torch.device = torch.device("cpu")
    product_dtype: torch.dtype = torch.float32
    buffers: int = 1


class LayerFigures(NamedTuple):
    """Means since the last reading; NaN where there was no row of that sign."""

    goodness_positive: float
    goodness_negative: float
    loss: float


class Layer:
    """The layer of that index in a recipe, for inputs of `input_shape`."""

    def __init__(self, recipe: Recipe, index: int, input_shape: Shape, placement: Placement) -> None:
        self.index = index
        self.device, self.product_dtype, buffers = placement
        self._recipe, options = recipe, recipe.layers[index]
        self.formulas = Formulas(options, input_shape, recipe.labels, self.device)
        self._objective = kernels.fastest_objective(options.objective, self.device)
        self._negatives = options.negatives
        self.parameters = Parameters(recipe, index, input_shape, self.device)
        self._buffers = KeptBuffers()
        self._conditions = recipe.activities == "label_conditioned"
        self._ring = self._make_ring(buffers)
        self._weights = {name: self._as_product(name, view) for name, view in self.parameters.views.items()}
        # Read when somebody asks: figures cost the step nothing, and a GPU need not wait for them.
        self._unread: deque[Callable[[], Outcome]] = deque(maxlen=_UNREAD_MAX)

    def _make_ring(self, buffers: int) -> Any:
        if self.device.type != "cpu" or not buffers:
            return cycle([None])
        rows = self._recipe.rows * (2 if self._conditions else 1)
        empty = [torch.empty(rows, self.formulas.units, dtype=self.product_dtype) for _ in range(buffers)]
        return cycle(empty)

    def _as_product(self, name: str, value: Tensor) -> Tensor:
        """The parameter itself, or a copy in the precision of products."""
        return value.to(self.product_dtype) if name == WEIGHT else value

    # --- forward -------------------------------------------------------------------------------------------------

    def forward(self, given: Activities) -> Activities:
        """What to pass on. Reads `given` until the next update is done."""
        self._given = given
        self._seen = self.formulas.forward(given.h_NF, self._weights, self.product_dtype, self._buffers)
        self._goodness_BL: Tensor | None = None
        if given.positives is not None:
            seen, scheme = self._seen, self.formulas.scheme
            scheme.condition_(seen.z_NF, seen.gain_N, self._weights, given.labels_N)
        elif self._conditions:
            return self._condition(given)
        return given._replace(h_NF=self.formulas.activities(self._seen.z_NF, self._out(len(given.h_NF))))

    def _condition(self, given: Activities) -> Activities:
        """Rows with the samples' own labels, then rows with wrong ones; in a phase, those of its sign."""
        self._wrong_B = self.wrong_labels()
        own, wrong = given.labels_N, self._wrong_B
        labels = {"interleaved": [own, wrong], "wake": [own], "sleep": [wrong]}[given.phase]
        size = len(own)
        h_NF = self._out(size * len(labels))
        for rows, labels_B in zip(h_NF.split(size), labels, strict=True):
            self.formulas.activities(self.formulas.conditioned(self._seen, self._weights, labels_B), rows)
        positives = 0 if given.phase == "sleep" else size
        return Activities(h_NF, torch.cat(labels), positives, given.step, given.phase)

    def _out(self, rows: int) -> Tensor:
        """Where to write activities that the next layer will read."""
        kept: Tensor | None = next(self._ring)
        if kept is not None:
            return kept[:rows]
        return torch.empty(rows, self.formulas.units, dtype=self.product_dtype, device=self.device)

    def _all_goodness(self) -> Tensor:
        """Goodness for every label (B, L), computed once a step."""
        if self._goodness_BL is None:
            self._goodness_BL = self.formulas.of_labels.by_label(self._seen.z_NF, self._seen.gain_N, self._weights)
        return self._goodness_BL

    def wrong_labels(self) -> Tensor:
        """A wrong label (B) for each sample of the last forward: the same at each call."""
        generator = generator_for("negatives", self._recipe.seed, self._given.step)

        def draw(low: int, high: int, shape: tuple[int, ...]) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        return self._negatives.choose(self._given.labels_N, self._recipe.labels, self._all_goodness, draw)

    # --- update --------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Learns from the rows of the last forward."""
        given, seen, formulas = self._given, self._seen, self.formulas
        judgement = self._judge(given, seen)
        self._unread.append(judgement.outcome)
        if given.positives is None:
            e_NF, gradients = formulas.of_labels.label_errors(
                seen.z_NF, seen.gain_N, self._weights, judgement.gradient, self._buffers
            )
        else:
            e_NF, gradients = formulas.of_labels.row_errors(
                seen.z_NF, seen.gain_N, given.labels_N, judgement.gradient
            )
        into = self.parameters.gradients
        formulas.map.gradients(e_NF, seen.x_NI, seen.factor_N, self._weights, into, self._buffers)
        for name, gradient in gradients.items():
            into[name].copy_(gradient)
        both_signs = given.positives is not None and given.phase == "interleaved"
        self.parameters.update(len(e_NF) // 2 if both_signs else len(e_NF))
        self._refresh()

    def _judge(self, given: Activities, seen: Pass) -> Judgement:
        if given.positives is not None:
            return self._objective.by_row(self.formulas.of_labels.by_row(seen.z_NF), given.positives)
        wrong_B = None
        if self._objective.needs_wrong_labels:
            wrong_B = self._wrong_B if self._conditions else self.wrong_labels()
        return self._objective.by_label(self._all_goodness(), given.labels_N, wrong_B, given.phase)

    def _refresh(self) -> None:
        """Copies new parameters to their products' precision."""
        for name, view in self.parameters.views.items():
            if self._weights[name] is not view:
                self._weights[name].copy_(view)

    # --- state ---------------------------------------------------------------------------------------------------

    def figures(self) -> LayerFigures:
        """Mean goodness of each sign and mean loss of the microbatches since the last call (the last 64)."""
        read = [each() for each in self._unread]
        self._unread.clear()
        return LayerFigures(
            _mean([outcome.positive_B for outcome in read]),
            _mean([outcome.negative_B for outcome in read]),
            _mean([outcome.loss.view(1) for outcome in read]),
        )

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights, by name, in the precision in which they predict."""
        copies = {}
        for name, value in self.parameters.ema.items():
            cast = self._as_product(name, value)
            copies[name] = cast.clone() if cast is value else cast
        return copies

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of all that later updates depend on."""
        return self.parameters.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state."""
        self.parameters.load_state_dict(state)
        self._refresh()


def _mean(parts: list[Tensor | None]) -> float:
    present = [part for part in parts if part is not None]
    return float(torch.cat(present).mean()) if present else float("nan")
