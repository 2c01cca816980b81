"""The metrics of a stage's layers, and log lines when one of them needs attention. Set at barriers."""

import logging
import math
from collections.abc import Sequence

from ffstream.ff.health import HealthFigures
from ffstream.ff.layer import Layer
from ffstream.ff.layer_monitor import LayerFigures
from ffstream.metrics import Metrics

log = logging.getLogger(__name__)

SEPARATES_AFTER_SAMPLES = 50_000  # a layer that has learned so many samples should separate right from wrong
SEPARATION_MIN = 0.55  # share of samples with more goodness for the right label; by chance it is 0.5
CONTRADICTIONS_MAX = 1e-3  # share of negative rows that equal a positive row


UNKNOWN = LayerFigures(math.nan, math.nan, math.nan, math.nan, 0, HealthFigures(), None)


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
        "restarts": figures.restarts,
    }


class LayerGauges:
    """For the thread of a stage."""

    def __init__(self, layers: Sequence[Layer], metrics: Metrics) -> None:
        self._layers = layers
        self._metrics = metrics
        self._restarts = {layer.index: -1 for layer in layers}
        for layer in layers:
            metrics.layer_restarts.labels(str(layer.index))  # 0 from now on
        self._warned: set[tuple[int, str]] = set()
        self._known: dict[int, dict[str, float | None]] = {
            layer.index: dict.fromkeys(_shown(UNKNOWN)) for layer in layers
        }

    def known(self, index: int) -> dict[str, float | None]:
        """The layer's figures for the status, each as it was when last known; None before. For any thread."""
        return self._known[index]

    def set(self, seq: int, samples: int) -> None:
        """Sets all gauges, at a barrier behind the sample `seq`. `samples` were learned in this run."""
        for layer in self._layers:
            figures = layer.figures()
            self._set(str(layer.index), figures)
            new: dict[str, float | None] = {
                name: value for name, value in _shown(figures).items() if not math.isnan(value)
            }
            self._known[layer.index] = self._known[layer.index] | new
            self._note_restarts(layer.index, figures.restarts, seq)
            mixed = samples >= SEPARATES_AFTER_SAMPLES and figures.separation < SEPARATION_MIN
            self._warn(layer.index, "does not separate right from wrong", mixed, figures.separation, seq)
            contradicts = figures.health.contradictions > CONTRADICTIONS_MAX
            self._warn(
                layer.index, "gets equal positive and negative rows", contradicts, figures.health.contradictions, seq
            )

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
        if figures.balance is not None:
            metrics.running_goodness.labels(label, "positive").set(figures.balance.positive)
            metrics.running_goodness.labels(label, "negative").set(figures.balance.negative)
            metrics.threshold.labels(label).set(figures.balance.theta)

    def _note_restarts(self, index: int, restarts: int, seq: int) -> None:
        before, self._restarts[index] = self._restarts[index], restarts
        if 0 <= before < restarts:
            self._metrics.layer_restarts.labels(str(index)).inc(restarts - before)
            log.warning("concept changed: layer restarted layer=%d seq=%d restarts=%d", index, seq, restarts)

    def _warn(self, index: int, what: str, active: bool, value: float, seq: int) -> None:
        key = index, what
        if active and key not in self._warned:
            self._warned.add(key)
            log.warning("layer %s layer=%d share=%.4f seq=%d", what, index, value, seq)
        elif not active and key in self._warned and not math.isnan(value):
            self._warned.remove(key)
            log.info("layer no longer %s layer=%d share=%.4f seq=%d", what, index, value, seq)
