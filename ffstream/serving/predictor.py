"""Answers to queries: queries that wait together are predicted together, from one snapshot."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ffstream.serving.snapshot import Snapshot, Snapshots


class Answer(NamedTuple):
    """Labels (B), goodness for each label (B, L) float32, and the snapshot that gave them."""

    labels: NDArray[np.int64]
    goodness: NDArray[np.float32]
    snapshot: Snapshot


class Predictor:
    """Predicts from the current snapshot. Changes nothing."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def answer(self, queries: Sequence[NDArray[Any]]) -> list[Answer]:
        """One answer a query of images (B, inputs), all from the same snapshot."""
        snapshot = self._snapshots.current
        answers: dict[int, Answer] = {}
        for dtype in {query.dtype for query in queries}:
            which = [at for at, query in enumerate(queries) if query.dtype == dtype]
            images = np.concatenate([queries[at] for at in which])
            labels_B, goodness_BL = snapshot.classifier.predict(torch.from_numpy(images))
            sizes = [len(queries[at]) for at in which]
            parts = zip(which, labels_B.split(sizes), goodness_BL.split(sizes), strict=True)
            for at, labels, goodness in parts:
                answers[at] = Answer(labels.numpy(), goodness.numpy(), snapshot)
        return [answers[at] for at in range(len(queries))]
