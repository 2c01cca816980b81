"""The rows on which a layer's drift test compares two sets of weights.

Shapes: N rows, L labels.
"""

import torch
from torch import Tensor

from ffstream.ff.activities import Activities


class ComparedRows:
    """The first fresh samples of a microbatch: one row of each, or a positive and a negative row of each."""

    def __init__(self, input: Activities, count: int) -> None:
        self.label_free = input.positives is None
        self._starts = (0,) if self.label_free else (input.read_only, input.read_only + input.samples)
        self._count = count
        self.labels_N = self.of(input.labels_N)

    def of(self, values_N: Tensor) -> Tensor:
        """Their part of the values of all rows."""
        parts = [values_N[start : start + self._count] for start in self._starts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def wrong(self, goodness: Tensor) -> int:
        """How many of them are mistaken: a wrong label, or the negative row, does not have the lower goodness.

        Goodness of every label (N, L), or of each row (N).
        """
        if self.label_free:
            return int((goodness.argmax(1) != self.labels_N).sum())
        positive, negative = goodness.split(self._count)
        return int((negative >= positive).sum())
