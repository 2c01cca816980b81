"""A Forward-Forward layer: forward, pass activities on, update. It does not know which parts it is composed of.

There is no autograd (a connection may use it within the layer) and no error from above: all gradients are in closed
form (`formulas.py`), and nothing is kept for other layers.

A layer receives either label-free activities (one row for each sample; it compares all labels itself) or positive and
negative rows (label-conditioned rows, or images and negatives made from them; positive rows first). It passes on the
same kind, except for the first layer of a label-conditioned network, which turns label-free into label-conditioned
activities.

Shapes: B samples, N rows, F units, L labels.
"""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from ffstream.ff import kernels
from ffstream.ff.activities import Activities
from ffstream.ff.adaptation import DriftTest, restart_if_changed, without_outdated
from ffstream.ff.areas import AreaLoss
from ffstream.ff.buffers import Buffers, ReusedBuffers
from ffstream.ff.compared_rows import ComparedRows
from ffstream.ff.connection import Shape
from ffstream.ff.decoding import LinearDecoding
from ffstream.ff.formulas import Formulas, ForwardResult
from ffstream.ff.health import SAMPLED_ROWS
from ffstream.ff.layer_monitor import LastMicroBatch, LayerFigures, LayerMonitor
from ffstream.ff.maps import WEIGHT
from ffstream.ff.member import DECODER, DRIFT, FAST_WEIGHTS, HARDWARE, below, copied, joined
from ffstream.ff.objective import LossFunction, LossResult
from ffstream.ff.parameters import parameters_of_layer
from ffstream.ff.placement import Placement
from ffstream.ff.randomness import generator_for
from ffstream.ff.recall import Recall
from ffstream.ff.recipe import Recipe
from ffstream.ff.recurrence import FROM_ABOVE


class Layer:
    """Layer `index` of a recipe, for input rows of `input_shape`."""

    def __init__(self, recipe: Recipe, index: int, input_shape: Shape, placement: Placement) -> None:
        self.index = index
        self.device, self.product_dtype, buffers = placement
        self._recipe, options = recipe, recipe.layers[index]
        self.formulas = Formulas(recipe, index, input_shape, self.device)
        self._needs_wrong_labels = options.objective.needs_wrong_labels
        self._objective: LossFunction = kernels.fastest_objective(options.objective, self.device).build(self.device)
        if options.goodness.areas > 1:
            self._objective = AreaLoss(self._objective)
        self._negatives = options.negatives
        given = self.formulas.inputs - options.fast_weights.extra_inputs(recipe.labels)
        self._recall: Recall | None = options.fast_weights.build(given, recipe.labels, recipe.seed, self.device)
        self.parameters = parameters_of_layer(recipe, index, input_shape, self.device)
        self.decoding: LinearDecoding | None = options.decoder.build(recipe, index, input_shape, placement)
        self._drift: DriftTest = recipe.drift.build(recipe.replay_buffer)
        self._buffers = ReusedBuffers()
        self._conditions = recipe.activities == "label_conditioned"
        self._monitor = LayerMonitor(counts_contradictions=index == 0)
        self._is_read = index in recipe.read_layers
        self._ring = self._make_ring(buffers)
        self._programmed = {name: self._as_product(name, view) for name, view in self.parameters.views.items()}
        self._weights = self.formulas.hardware.program(self._programmed)

    def _make_ring(self, buffers: int) -> Any:
        if self.device.type != "cpu" or not buffers:
            return cycle([None])
        rows = self._recipe.rows * self._recipe.rows_of_sample
        # The readout runs beside the last layer.
        queues = max(1, len(self._recipe.layers) - 1 - self.index) if self._is_read else 1
        count = queues * (buffers - 1) + 1
        empty = [torch.empty(rows, self.formulas.units, dtype=self.product_dtype) for _ in range(count)]
        return cycle(empty)

    def _as_product(self, name: str, value: Tensor) -> Tensor:
        """The parameter itself, or a copy in the dtype of the matrix products."""
        return value.to(self.product_dtype) if name in (WEIGHT, FROM_ABOVE) else value

    # --- forward -------------------------------------------------------------------------------------------------

    def forward(self, input: Activities) -> Activities:
        """The activities to pass on. `input` must not change before the next `update` has returned."""
        self._input = input
        x_NI = input.h_NF if self._recall is None else self._recall.forward(input)
        self._result = self.formulas.forward(x_NI, self._weights, self.product_dtype, self._buffers)
        x_NI, inverse_norm_N, _, z_NF, _ = self._result
        self._observation = self.formulas.hardware.observe(z_NF, x_NI, inverse_norm_N, self._programmed)
        self._goodness_BL: Tensor | None = None
        if input.positives is not None:
            result, scheme = self._result, self.formulas.scheme
            scheme.condition_(result.z_NF, result.label_scale_N, self._weights, input.labels_N)
        elif self._conditions:
            return self._condition(input)
        h_NF = self.formulas.activities(self._result.z_NF, self._out(len(input.h_NF)))
        passed_on = input._replace(h_NF=h_NF, score_BL=self._add_score(input), pixels_BI=None)
        return passed_on.carry() if self._is_read else passed_on

    def _add_score(self, input: Activities) -> Tensor | None:
        weight = self._recipe.layers[self.index].score_weight
        if not weight or input.positives is not None:
            return input.score_BL
        own_BL = self._all_goodness()[: input.fresh] * weight
        return own_BL if input.score_BL is None else input.score_BL + own_BL

    def _condition(self, input: Activities) -> Activities:
        """Label-conditioned activities: rows with the samples' own labels (not in `sleep`), then rows with wrong
        labels (not in `wake`)."""
        self._wrong_B = self.wrong_labels()
        own, wrong = input.labels_N, self._wrong_B
        labels = {"interleaved": [own, wrong], "wake": [own], "sleep": [wrong]}[input.phase]
        size = len(own)
        h_NF = self._out(size * len(labels))
        for rows, labels_B in zip(h_NF.split(size), labels, strict=True):
            self.formulas.activities(self.formulas.conditioned(self._result, self._weights, labels_B), rows)
        positives = 0 if input.phase == "sleep" else size
        return input._replace(h_NF=h_NF, labels_N=torch.cat(labels), positives=positives)

    def _out(self, rows: int) -> Tensor:
        """Memory for the activities that the next layer will read."""
        kept: Tensor | None = next(self._ring)
        if kept is not None:
            return kept[:rows]
        return torch.empty(rows, self.formulas.units, dtype=self.product_dtype, device=self.device)

    def _all_goodness(self) -> Tensor:
        """The goodness (B, L) of every label, computed once for each step."""
        if self._goodness_BL is None:
            formulas, result = self.formulas.label_formulas, self._result
            self._compared = formulas.areas_by_label(result.z_NF, result.label_scale_N, self._weights)
            self._goodness_BL = formulas.over_areas(self._compared)
        return self._goodness_BL

    def wrong_labels(self) -> Tensor:
        """A wrong label for each sample (B) of the last forward pass. Every call returns the same."""
        generator = generator_for("negatives", self._recipe.seed, self._input.step)

        def draw(low: int, high: int, shape: tuple[int, ...]) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        goodness = self._logits if self._negatives.needs_logits else self._all_goodness
        return self._negatives.choose(self._input.labels_N, self._recipe.labels, goodness, draw)

    def _logits(self) -> Tensor:
        return self._all_goodness() * self._recipe.layers[self.index].objective.steepness

    # --- update --------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Learns from the rows of the last forward pass."""
        input = self._input
        if self.decoding is not None:
            self.decoding.learn(input, self._result)
        if self._recipe.ema_samples and input.phase == "interleaved":
            restart_if_changed(self._drift, self.parameters, input, input.fresh, self._newest_wrong, self._ema_wrong)
        loss = self._loss(input, self._result)
        self._monitor.add(loss.statistics)
        # In separate phases, samples are never compared and never outdated.
        gradient = loss.goodness_gradient
        if not input.read_only:
            gradient = without_outdated(self._drift, gradient, input.ages_R, input.samples)
        self._write_gradients(gradient)
        self.parameters.update(input.samples, input.phase, input.replicas)
        fresh = input.fresh * input.replicas
        self._drift.passed(fresh)
        # Of several replicas only the first one looks, because its findings are those that a merge keeps.
        looks = input.phase == "interleaved" and input.step % input.replicas == 0
        if self.formulas.hardware.learned(self._observation, fresh, looks=looks):
            self.parameters.restart()
        if self._recall is not None:
            self._recall.update()
        self._refresh()

    def _write_gradients(self, goodness_gradient: Tensor) -> None:
        """From ∂L/∂G of all labels, or of rows, to the gradients of all parameters."""
        input, result, formulas = self._input, self._result, self.formulas
        if input.positives is None:
            e_NF, gradients = formulas.label_formulas.label_errors(
                result.z_NF, result.label_scale_N, self._weights, goodness_gradient, self._buffers
            )
        else:
            unlearned = goodness_gradient.new_zeros(input.read_only, *goodness_gradient.shape[1:])
            e_NF, gradients = formulas.label_formulas.row_errors(
                result.z_NF, result.label_scale_N, input.labels_N, torch.cat((unlearned, goodness_gradient))
            )
        e_NF = formulas.hardware.direct_(e_NF)
        into = self.parameters.gradients
        formulas.map.gradients(
            e_NF, result.saved, result.x_NI, result.inverse_norm_N, self._weights, into, self._buffers
        )
        for name, gradient in gradients.items():
            into[name].copy_(gradient)

    def _loss(self, input: Activities, result: ForwardResult) -> LossResult:
        if input.positives is not None:
            learned_NF = result.z_NF[input.read_only :]
            return self._objective.by_row(self.formulas.label_formulas.areas_by_row(learned_NF), input.positives)
        self._all_goodness()
        return self._objective.by_label(self._compared, input.labels_N, self._compared_labels(), input.phase)

    def _compared_labels(self) -> Tensor | None:
        """The wrong label (B) that each sample's own is compared with; None if all labels are compared."""
        if not self._needs_wrong_labels:
            return None
        return self._wrong_B if self._conditions else self.wrong_labels()

    # --- drift ---------------------------------------------------------------------------------------------------

    def _newest_wrong(self, rows: int) -> int:
        compared = ComparedRows(self._input, rows)
        if compared.label_free:
            return compared.wrong(compared.of(self._all_goodness()))
        return compared.wrong(self.formulas.label_formulas.by_row(compared.of(self._result.z_NF)))

    def _ema_wrong(self, rows: int) -> int:
        compared, formulas = ComparedRows(self._input, rows), self.formulas
        ema = {name: self._as_product(name, value) for name, value in self.parameters.ema.items()}
        weights = formulas.hardware.program(ema)
        result = formulas.forward(compared.of(self._result.x_NI), weights, self.product_dtype, Buffers())
        if compared.label_free:
            goodness = formulas.label_formulas.by_label(result.z_NF, result.label_scale_N, weights)
            return compared.wrong(goodness)
        z_NF = formulas.scheme.condition_(result.z_NF, result.label_scale_N, weights, compared.labels_N)
        return compared.wrong(formulas.label_formulas.by_row(z_NF))

    def _refresh(self) -> None:
        """Updates the copies of parameters in the dtype of the matrix products, and programs the hardware."""
        for name, view in self.parameters.views.items():
            if self._programmed[name] is not view:
                self._programmed[name].copy_(view)
        self._weights = self.formulas.hardware.program(self._programmed)

    # --- state ---------------------------------------------------------------------------------------------------

    def figures(self) -> LayerFigures:
        """What the microbatches since the last call show (at most the last 64)."""
        restarts = self._drift.restarts + self.formulas.hardware.changes
        decoder_error = math.nan if self.decoding is None else self.decoding.error()
        return self._monitor.figures(restarts, self._objective.balance(), decoder_error, self._last_microbatch)

    def _last_microbatch(self) -> LastMicroBatch:
        h_NF = self.formulas.options.activation.value(self._result.z_NF[:SAMPLED_ROWS])
        return LastMicroBatch(
            self._input, h_NF, self._goodness_BL, self._compared_labels, self.parameters.views[WEIGHT]
        )

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights, by name, in the dtypes in which they predict."""
        copies = {}
        for name, value in self.parameters.ema.items():
            cast = self._as_product(name, value)
            copies[name] = cast.clone() if cast is value else cast
        kept = ((HARDWARE, self.formulas.hardware.weights()), (FAST_WEIGHTS, copied(self._fast_weights)))
        copies |= joined(kept)
        return copies if self.decoding is None else copies | joined([(DECODER, self.decoding.weights())])

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later updates depend on."""
        parts = (
            (DRIFT, self._drift.state_dict()),
            ("objective", copied(self._objective.state)),
            (HARDWARE, self.formulas.hardware.state_dict()),
            (FAST_WEIGHTS, copied(self._fast_weights)),
        )
        own = self.parameters.state_dict() | joined(parts)
        return own if self.decoding is None else own | joined([(DECODER, self.decoding.state_dict())])

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.parameters.load_state_dict(state)
        self._drift.load_state_dict(below(DRIFT, state))
        for name, value in self._objective.state.items():
            value.copy_(state[f"objective.{name}"])
        self.formulas.hardware.load_state_dict(below(HARDWARE, state))
        self._load_fast_weights(state)
        if self.decoding is not None:
            self.decoding.load_state_dict(below(DECODER, state))
        self._refresh()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Starts over from weights that `weights` returned. See `Parameters.load_weights`."""
        self.parameters.load_weights(weights)
        self._drift.reset()
        for value in self._objective.state.values():
            value.zero_()
        self.formulas.hardware.load_weights(below(HARDWARE, weights))
        self._load_fast_weights(weights)
        if self.decoding is not None:
            self.decoding.load_weights(below(DECODER, weights))
        self._refresh()

    @property
    def _fast_weights(self) -> Mapping[str, Tensor]:
        """Their state: part of the weights, because predictions need it, and of the state."""
        return {} if self._recall is None else self._recall.state

    def _load_fast_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in self._fast_weights.items():
            value.copy_(tensors[f"{FAST_WEIGHTS}.{name}"])
