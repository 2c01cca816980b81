"""The softmax head: labels from the activities of layers that need not know any label.

    f = [x̂¹, x̂², …], the activities of the layers that it reads, each scaled to a mean square of 1
    p = softmax(W f + b)        L = mean cross-entropy of p and the label        ∂L/∂W = Σ (p − target) fᵀ / B

It learns beside the layers, from the activities that they pass on, and no gradient goes back. Samples without a label
do not count in its loss. W and b are 0 at the start.

Shapes: B samples, F activities of all layers that are read, L labels.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ffstream.ff import kernels
from ffstream.ff.activities import Activities, Scored
from ffstream.ff.adaptation import DriftTest, restart_if_changed, without_outdated
from ffstream.ff.buffers import ReusedBuffers
from ffstream.ff.connection import size_of
from ffstream.ff.layer_monitor import UNREAD_MAX
from ffstream.ff.linear import features, outputs, write_gradients
from ffstream.ff.maps import WEIGHT
from ffstream.ff.member import DRIFT, below, copied, joined
from ffstream.ff.objective import LossStatistics, Softmax
from ffstream.ff.parameters import Parameters
from ffstream.ff.placement import Placement
from ffstream.ff.readout import SoftmaxReadout
from ffstream.ff.recipe import Recipe
from ffstream.util.labels import UNLABELLED


def _wrong(score_BL: Tensor, labels_B: Tensor) -> int:
    """How many of the first samples, those that have a score, are mistaken."""
    return int((score_BL.argmax(1) != labels_B[: len(score_BL)]).sum())


class Head:
    """The head of a recipe with `readout = "softmax"`. It runs on the last layer's thread."""

    def __init__(self, recipe: Recipe, placement: Placement) -> None:
        options = recipe.readout
        assert isinstance(options, SoftmaxReadout)
        sizes = [size_of(shape) for shape in recipe.output_shapes()]
        inputs = sum(sizes[index] for index in recipe.read_layers)
        shapes = {WEIGHT: (recipe.labels, inputs), "bias": (recipe.labels,)}
        self.parameters = Parameters(recipe, options, shapes, placement.device)
        self._objective = kernels.fastest_objective(Softmax(alpha=1.0, smoothing=options.smoothing), placement.device)
        self._drift: DriftTest = recipe.drift.build(recipe.replay_buffer)
        self._has_ema = recipe.ema_samples > 0
        self._may_be_unlabelled = recipe.learns_unlabelled
        self._buffers = ReusedBuffers()
        self._unread: deque[Callable[[], LossStatistics]] = deque(maxlen=UNREAD_MAX)

    def learn(self, input: Activities) -> Scored | None:
        """One update from the positive rows of a microbatch; none in the phase `sleep`, or without labels. Returns
        the scores of the fresh samples by the weights before it."""
        if input.phase == "sleep":
            return None
        read, labels_B, ages_R = self._labelled(input)
        if not len(labels_B):
            self._drift.passed(input.fresh * input.replicas)
            return None
        fresh = len(labels_B) - (0 if ages_R is None else len(ages_R))
        f_BF = features(read, self._buffers)
        score_BL = outputs(f_BF, self.parameters.views)
        if self._has_ema and input.phase == "interleaved":
            restart_if_changed(
                self._drift,
                self.parameters,
                input,
                fresh,
                lambda rows: _wrong(score_BL[:rows], labels_B),
                lambda rows: _wrong(outputs(f_BF[:rows], self.parameters.ema), labels_B),
            )
        loss = self._objective.by_label(score_BL, labels_B, None, input.phase)
        self._unread.append(loss.statistics)
        gradient_BL = without_outdated(self._drift, loss.goodness_gradient, ages_R, len(labels_B))
        write_gradients(gradient_BL, f_BF, self.parameters.gradients)
        self.parameters.update(len(labels_B), replicas=input.replicas)
        self._drift.passed(input.fresh * input.replicas)
        return Scored(score_BL[:fresh], labels_B[:fresh])

    def _labelled(self, input: Activities) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
        """The rows of the samples that have a label, for each layer; their labels; the ages of replayed ones."""
        labels_B, ages_R = input.labels_N[: input.positives], input.ages_R
        if not self._may_be_unlabelled:
            return input.carried, labels_B, ages_R
        known_B = labels_B != UNLABELLED
        if bool(known_B.all()):
            return input.carried, labels_B, ages_R
        ages_R = None if ages_R is None else ages_R[known_B[input.fresh :]]
        return [h_BF[known_B] for h_BF in input.carried], labels_B[known_B], ages_R

    def loss(self) -> float:
        """Mean loss since the last call (at most of the last 64 microbatches). NaN if nothing was learned."""
        losses = [compute().loss for compute in self._unread]
        self._unread.clear()
        return float(torch.stack(losses).mean()) if losses else float("nan")

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights: `weight` (L, F) and `bias` (L)."""
        return copied(self.parameters.ema)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later updates depend on."""
        return self.parameters.state_dict() | joined([(DRIFT, self._drift.state_dict())])

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.parameters.load_state_dict(state)
        self._drift.load_state_dict(below(DRIFT, state))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Starts over from weights that `weights` returned. See `Parameters.load_weights`."""
        self.parameters.load_weights(weights)
        self._drift.reset()
