"""The samples that were predicted last, to look at: for histograms, as examples, and to make negative images.

The thread that evaluates adds microbatches, any thread may read. They are kept as they are, without a copy.

Shapes: B samples, I inputs.
"""

import threading
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLES_MAX = 512
BYTES_MAX = 16 << 20  # of images; one microbatch may exceed it


class Samples(NamedTuple):
    """Images (B, I), uint8, or float32 between 0 and 1, and their labels (B)."""

    images_BI: Tensor
    labels_B: Tensor


class RecentSamples:
    """At most SAMPLES_MAX samples, fewer if their images are large."""

    def __init__(self) -> None:
        self._batches: deque[Samples] = deque()
        self._samples = 0
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, images_BI: Tensor, labels_B: Tensor) -> None:
        """Takes a microbatch, which must not change later."""
        with self._lock:
            self._batches.append(Samples(images_BI, labels_B))
            self._samples += len(labels_B)
            self._bytes += images_BI.nbytes
            while self._exceeds(self._batches[0]):
                old = self._batches.popleft()
                self._samples -= len(old.labels_B)
                self._bytes -= old.images_BI.nbytes

    def _exceeds(self, oldest: Samples) -> bool:
        """Whether there are enough without the oldest microbatch, or its images are too many bytes."""
        enough = self._samples - len(oldest.labels_B) >= SAMPLES_MAX
        return enough or (self._bytes > BYTES_MAX and len(self._batches) > 1)

    def latest(self) -> Samples | None:
        """The latest samples, oldest first. None if there are none yet."""
        with self._lock:
            batches = list(self._batches)
        if not batches:
            return None
        images = [batch.images_BI for batch in batches]
        if len({each.dtype for each in images}) > 1:
            images = [each / 255 if each.dtype == torch.uint8 else each for each in images]
        labels_B = torch.cat([batch.labels_B for batch in batches])
        return Samples(torch.cat(images)[-SAMPLES_MAX:], labels_B[-SAMPLES_MAX:])
