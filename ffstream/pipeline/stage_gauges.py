"""The metrics of a stage and of its layers, and log lines when a layer needs attention.

A stage reports each microbatch that it has learned, and the figures of its layers at each barrier, wherever it runs.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ffstream.ff.health import HealthFigures
from ffstream.ff.layer_monitor import LayerFigures
from ffstream.ff.member import READOUT
from ffstream.metrics import Metrics

log = logging.getLogger(__name__)

SEPARATES_AFTER_SAMPLES = 50_000  # a layer that has learned so many samples should separate right from wrong
SEPARATION_MIN = 0.55  # share of samples with more goodness for the right label; by chance it is 0.5
CONTRADICTIONS_MAX = 1e-3  # share of negative rows that equal a positive row
_STEPS_REACH = 50  # steps that the running mean of their time reaches back


class BarrierFigures(NamedTuple):
    """What a stage knows when a barrier behind the sample `seq` passes it: its layers' figures, by index, the loss of
    its readout and the live error, if it has them."""

    seq: int
    layers: Mapping[int, LayerFigures]
    readout_loss: float | None = None
    live_error: float | None = None


class Observer(Protocol):
    """What a stage reports to. Called on the stage's thread, or where the reports of a remote stage arrive."""

    def on_step(self, seconds: float, seq: int, fresh: int) -> None:
        """A microbatch was learned. It ends at the sample `seq`, and `fresh` of its samples come from the stream."""

    def on_barrier(self, figures: BarrierFigures) -> None:
        """A barrier passes."""


UNKNOWN = LayerFigures(math.nan, math.nan, math.nan, math.nan, 0, HealthFigures(), None, math.nan)


def _shown(figures: LayerFigures) -> dict[str, float]:
    health, balance = figures.health, figures.balance
    return {
        "goodness_positive": figures.goodness_positive,
        "goodness_negative": figures.goodness_negative,
        "margin": health.margin,
        "loss": figures.loss,
        "separation": figures.separation,
        "dead_units": health.dead_units,
        "weight_norm": health.weight_norm,
        "threshold": math.nan if balance is None else balance.theta,
        "decoder_error": figures.decoder_error,
        "restarts": figures.restarts,
    }


class StageGauges:
    """The observer that shows a stage in the metrics and in the status.

    `shows_layers`: those of further replicas are not shown, because they differ only between two merges.
    """

    def __init__(
        self,
        label: str,
        layers: Sequence[int],
        seq: int,
        metrics: Metrics,
        *,
        is_last: bool,
        shows_layers: bool = True,
    ) -> None:
        self.name = f"ff-stage-{label}"
        self.layers = tuple(layers)
        self.last_seq = seq  # learned so far, or skipped before a barrier that has passed
        self.live_error: float | None = None
        self.queue_depth: Callable[[], int] = lambda: 0
        self.skipped: Callable[[], int] = lambda: 0
        self.place: Callable[[], Mapping[str, Any]] = dict  # where it runs, if that is not this process
        self._label = label
        self._metrics = metrics
        self.is_last = is_last
        self.shows_layers = shows_layers
        self._learned = 0
        self._step_s: float | None = None  # a running mean
        self._step_seconds = metrics.step_seconds.labels(label)
        self._layers = LayerGauges(self.layers, metrics)

    # --- Observer ---------------------------------------------------------------------------------------------------

    def on_step(self, seconds: float, seq: int, fresh: int) -> None:
        """Counts it."""
        self._step_seconds.observe(seconds)
        self._step_s = seconds if self._step_s is None else self._step_s + (seconds - self._step_s) / _STEPS_REACH
        if self.is_last:
            self._metrics.samples_learned.inc(fresh)
        self.last_seq = seq
        self._learned += fresh

    def on_barrier(self, figures: BarrierFigures) -> None:
        """Sets all gauges of the layers."""
        self.last_seq = max(self.last_seq, figures.seq)
        self.live_error = figures.live_error
        if self.shows_layers:
            self._layers.set(figures.layers, self.last_seq, self._learned)
            if figures.readout_loss is not None:
                self._metrics.loss.labels(READOUT).set(figures.readout_loss)

    # --- for the status ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Gauges show this stage from now on, and nothing of a run that has ended."""
        metrics, label = self._metrics, self._label
        metrics.queue_depth.labels(label).set_function(self.queue_depth)
        metrics.stage_seq.labels(label).set_function(lambda: self.last_seq)
        metrics.skipped.labels(label).set_function(self.skipped)

    def describe(self) -> dict[str, Any]:
        """For the status reply."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "queue_depth": self.queue_depth(),
            "last_seq": self.last_seq,
            "skipped": self.skipped(),
            **self.place(),
        }

    def describe_layers(self) -> list[dict[str, Any]]:
        """Its layers for the status reply. Figures are those of the last barriers; nothing is computed."""
        own = {"step_s": self._step_s, "queue_depth": self.queue_depth(), "last_seq": self.last_seq}
        return [{"index": index, **self._layers.known(index), **own} for index in self.layers]


class LayerGauges:
    """The layers of one stage."""

    def __init__(self, layers: Sequence[int], metrics: Metrics) -> None:
        self._metrics = metrics
        self._restarts = dict.fromkeys(layers, -1)
        for index in layers:
            metrics.layer_restarts.labels(str(index))  # 0 from now on
        self._warned: set[tuple[int, str]] = set()
        self._known: dict[int, dict[str, float | None]] = {index: dict.fromkeys(_shown(UNKNOWN)) for index in layers}

    def known(self, index: int) -> dict[str, float | None]:
        """The layer's figures for the status, each as it was when last known; None before. For any thread."""
        return self._known[index]

    def set(self, layers: Mapping[int, LayerFigures], seq: int, samples: int) -> None:
        """Sets all gauges, at a barrier behind the sample `seq`. `samples` were learned in this run."""
        for index, figures in layers.items():
            self._set(str(index), figures)
            new: dict[str, float | None] = {
                name: value for name, value in _shown(figures).items() if not math.isnan(value)
            }
            self._known[index] = self._known[index] | new
            self._note_restarts(index, figures.restarts, seq)
            mixed = samples >= SEPARATES_AFTER_SAMPLES and figures.separation < SEPARATION_MIN
            self._warn(index, "does not separate right from wrong", mixed, figures.separation, seq)
            contradictions = figures.health.contradictions
            contradicts = contradictions > CONTRADICTIONS_MAX
            self._warn(index, "gets equal positive and negative rows", contradicts, contradictions, seq)

    def _set(self, label: str, figures: LayerFigures) -> None:
        metrics, health = self._metrics, figures.health
        metrics.goodness.labels(label, "positive").set(figures.goodness_positive)
        metrics.goodness.labels(label, "negative").set(figures.goodness_negative)
        metrics.loss.labels(label).set(figures.loss)
        metrics.layer_separation.labels(label).set(figures.separation)
        metrics.layer_dead_units.labels(label).set(health.dead_units)
        metrics.layer_weight_norm.labels(label).set(health.weight_norm)
        metrics.layer_margin.labels(label).set(health.margin)
        metrics.layer_contradictions.labels(label).set(health.contradictions)
        if not math.isnan(figures.decoder_error):
            metrics.layer_decoder_error.labels(label).set(figures.decoder_error)
        if figures.balance is not None:
            metrics.running_goodness.labels(label, "positive").set(figures.balance.positive)
            metrics.running_goodness.labels(label, "negative").set(figures.balance.negative)
            metrics.threshold.labels(label).set(figures.balance.theta)

    def _note_restarts(self, index: int, restarts: int, seq: int) -> None:
        before, self._restarts[index] = self._restarts[index], restarts
        if 0 <= before < restarts:
            self._metrics.layer_restarts.labels(str(index)).inc(restarts - before)
            log.warning(
                "concept or hardware changed: layer restarted layer=%d seq=%d restarts=%d", index, seq, restarts
            )

    def _warn(self, index: int, what: str, active: bool, value: float, seq: int) -> None:
        key = index, what
        if active and key not in self._warned:
            self._warned.add(key)
            log.warning("layer %s layer=%d share=%.4f seq=%d", what, index, value, seq)
        elif not active and key in self._warned and not math.isnan(value):
            self._warned.remove(key)
            log.info("layer no longer %s layer=%d share=%.4f seq=%d", what, index, value, seq)
