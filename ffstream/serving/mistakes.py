"""What predictions before learning get wrong: the confusion matrix of the prequential window, the latest mistakes.

The thread that evaluates adds each microbatch with batched operations. Any thread may read. The window is that of the
prequential error, but it is not saved: after a restart it begins with the samples that are predicted next.

Shapes: B samples, I inputs, L labels.
"""

import threading
import time
from collections import deque
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ffstream.ff.classifier import Prediction
from ffstream.util.error_record import WINDOW_SAMPLES

LATEST_MAX = 24
MATRIX_LABELS_MAX = 100  # with more labels there is no matrix, which grows with their square

Counts = NDArray[np.int64]


class Mistake(NamedTuple):
    """A sample that was predicted wrongly: its sequence number, when it was predicted (Unix s), and the score of each
    label (L)."""

    seq: int
    time: float
    image_I: Tensor
    label: int
    predicted: int
    scores_L: Tensor


class Confusion(NamedTuple):
    """Predictions in the window. `samples` and `wrong` (L) by true label. `matrix` (L, L) by true and by predicted
    label; None if there are more than MATRIX_LABELS_MAX labels."""

    samples: Counts
    wrong: Counts
    matrix: Counts | None


class _Batch(NamedTuple):
    """Mistakes of one microbatch, the latest last."""

    time: float
    seqs_B: Tensor
    images_BI: Tensor
    labels_B: Tensor
    predicted_B: Tensor
    scores_BL: Tensor

    def newest_first(self) -> list[Mistake]:
        rows = reversed(range(len(self.labels_B)))
        return [
            Mistake(
                int(self.seqs_B[at]),
                self.time,
                self.images_BI[at],
                int(self.labels_B[at]),
                int(self.predicted_B[at]),
                self.scores_BL[at],
            )
            for at in rows
        ]


class Mistakes:
    """For a network with that many labels."""

    def __init__(self, labels: int) -> None:
        self._labels = labels
        self._has_matrix = labels <= MATRIX_LABELS_MAX
        self._window: deque[tuple[NDArray[Any], NDArray[Any]]] = deque()  # true and predicted labels of microbatches
        self._window_size = 0
        self._counts: Counts = np.zeros(labels * labels if self._has_matrix else 2 * labels, np.int64)
        self._latest: deque[_Batch] = deque()
        self._latest_size = 0
        self._lock = threading.Lock()

    def add(self, images_BI: Tensor, labels_B: Tensor, prediction: Prediction, seqs_B: Tensor) -> None:
        """Takes the predictions of a microbatch, all of whose samples have a label. Copies the images of mistakes."""
        true, predicted = (each.numpy().astype(np.uint16) for each in (labels_B, prediction.labels_B))
        mistakes = None
        rows = torch.from_numpy(np.flatnonzero(true != predicted)[-LATEST_MAX:])
        if len(rows):
            every = (seqs_B, images_BI, labels_B, *prediction)
            mistakes = _Batch(time.time(), *(each.index_select(0, rows) for each in every))
        with self._lock:
            self._count(true, predicted)
            if mistakes is not None:
                self._keep(mistakes)

    def _count(self, true: NDArray[Any], predicted: NDArray[Any]) -> None:
        self._window.append((true, predicted))
        self._window_size += len(true)
        self._counts += self._cells(true, predicted)
        while self._window_size - len(self._window[0][0]) >= WINDOW_SAMPLES:
            old = self._window.popleft()
            self._window_size -= len(old[0])
            self._counts -= self._cells(*old)

    def _cells(self, true: NDArray[Any], predicted: NDArray[Any]) -> Counts:
        """By true and predicted label; with many labels by true label, first all predictions and then the wrong
        ones."""
        own = true.astype(np.int64)
        if self._has_matrix:
            return np.bincount(own * self._labels + predicted, minlength=self._labels**2)
        wrong = own[true != predicted] + self._labels
        return np.bincount(np.concatenate((own, wrong)), minlength=2 * self._labels)

    def _keep(self, mistakes: _Batch) -> None:
        self._latest.append(mistakes)
        self._latest_size += len(mistakes.labels_B)
        while self._latest_size - len(self._latest[0].labels_B) >= LATEST_MAX:
            self._latest_size -= len(self._latest.popleft().labels_B)

    def confusion(self) -> Confusion:
        """A copy of the counts."""
        with self._lock:
            counts = self._counts.copy()
        if not self._has_matrix:
            samples, wrong = counts.reshape(2, self._labels)
            return Confusion(samples, wrong, None)
        matrix = counts.reshape(self._labels, self._labels)
        samples = matrix.sum(1)
        return Confusion(samples, samples - matrix.diagonal(), matrix)

    def latest(self) -> list[Mistake]:
        """The latest mistakes, at most LATEST_MAX, newest first."""
        with self._lock:
            batches = list(self._latest)
        newest = (mistake for batch in reversed(batches) for mistake in batch.newest_first())
        return list(islice(newest, LATEST_MAX))
