"""What a layer shows about itself: means over its microbatches, and samples of its health.

Nothing is computed before `figures` is called, so that a step does not pay for it and a GPU does not wait. None of it
changes what is learned.

Shapes: B samples, N rows, F units, L labels.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.health import Health, HealthFigures, contradicting_images, contradicting_labels, margin_by_label
from ffstream.ff.objective import Balance, LossStatistics

UNREAD_MAX = 64
HEALTH_EVERY = 4  # calls of `figures`


class LayerFigures(NamedTuple):
    """Means since the last call of `figures`, NaN if there was no row of that sign. Restarts after drifts,
    and after changes of the hardware. Health.
    The running means and the threshold of an objective that keeps them.
    What the layer's decoder misses (see `LinearDecoding.error`), NaN without one."""

    goodness_positive: float
    goodness_negative: float
    loss: float
    separation: float  # share of positive rows with more goodness than the negative row beside them
    restarts: int
    health: HealthFigures
    balance: Balance | None
    decoder_error: float


class LastMicroBatch(NamedTuple):
    """What the last forward pass and update of a layer left behind.

    `h_NF`: activities of its first rows. `goodness_BL`: the goodness of every label, if it was computed.
    `compared_labels`: returns the wrong label (B) that each sample's own was compared with, None for all labels.
    """

    input: Activities
    h_NF: Tensor
    goodness_BL: Tensor | None
    compared_labels: Callable[[], Tensor | None]
    weight: Tensor


class LayerMonitor:
    """The figures of one layer. Belongs to the thread of the layer."""

    def __init__(self, *, counts_contradictions: bool) -> None:
        self._counts_contradictions = counts_contradictions
        self._health = Health()
        self._health_figures = HealthFigures()
        self._calls = 0
        self._unread: deque[Callable[[], LossStatistics]] = deque(maxlen=UNREAD_MAX)

    def add(self, statistics: Callable[[], LossStatistics]) -> None:
        """Takes the statistics of a microbatch, to be computed when they are read."""
        self._unread.append(statistics)

    def figures(
        self, restarts: int, balance: Balance | None, decoder_error: float, last: Callable[[], LastMicroBatch]
    ) -> LayerFigures:
        """Means since the last call. On every few calls, samples the health of the `last` microbatch."""
        computed = [compute() for compute in self._unread]
        self._unread.clear()
        positive = _mean([statistics.positive_B for statistics in computed])
        negative = _mean([statistics.negative_B for statistics in computed])
        if computed:
            self._calls += 1
            if self._calls % HEALTH_EVERY == 1:
                self._health_figures = self._sample_health(last(), positive - negative)
        return LayerFigures(
            positive,
            negative,
            _mean([statistics.loss.view(1) for statistics in computed]),
            _mean([_separated(statistics) for statistics in computed]),
            restarts,
            self._health_figures,
            balance,
            decoder_error,
        )

    def _sample_health(self, last: LastMicroBatch, margin_of_rows: float) -> HealthFigures:
        goodness_BL = last.goodness_BL
        return HealthFigures(
            dead_units=self._health.add_activities(last.h_NF),
            weight_norm=float(torch.linalg.vector_norm(last.weight)),
            margin=margin_of_rows if goodness_BL is None else margin_by_label(goodness_BL, last.input.labels_N),
            contradictions=self._contradictions(last) if self._counts_contradictions else math.nan,
        )

    def _contradictions(self, last: LastMicroBatch) -> float:
        rows_NI, positives = last.input.h_NF[last.input.read_only :], last.input.positives
        if positives is not None:
            return self._health.add_contradictions(contradicting_images(rows_NI, positives), len(rows_NI) - positives)
        found = contradicting_labels(rows_NI, last.input.labels_N, last.compared_labels())
        return self._health.add_contradictions(found, len(rows_NI))


def _separated(statistics: LossStatistics) -> Tensor | None:
    """For pairs of a positive and a negative row, 1 where the positive one has more goodness."""
    positive_B, negative_B = statistics.positive_B, statistics.negative_B
    if positive_B is None or negative_B is None:
        return None
    count = min(len(positive_B), len(negative_B))
    return (positive_B[:count] > negative_B[:count]).float()


def _mean(parts: list[Tensor | None]) -> float:
    present = [part for part in parts if part is not None]
    return float(torch.cat(present).mean()) if present else float("nan")
