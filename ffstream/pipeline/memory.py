"""A memory of recent samples, from which sleep and rehearsal draw.

A ring: the newest `capacity` samples, as uint8 whatever they came as. What is drawn depends on what is in it, the
seed and the step alone, so that a replay draws the same.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ffstream.ff.negatives import generator_for


class Memory:
    """Up to `capacity` images (inputs) and their labels. `jitter`: how many pixels a drawn image may be shifted;
    then images are squares."""

    def __init__(self, capacity: int, inputs: int, seed: int, jitter: int = 0) -> None:
        self.capacity = capacity
        self._seed = seed
        self._jitter = jitter
        self._side = math.isqrt(inputs)
        self._images_MI = torch.zeros(capacity, inputs, dtype=torch.uint8)
        self._labels_M = torch.zeros(capacity, dtype=torch.int64)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, images_BI: Tensor, labels_B: Tensor) -> None:
        """Remembers samples, the oldest ones making room."""
        if not self.capacity:
            return
        if images_BI.dtype != torch.uint8:
            images_BI = images_BI.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        at_B = torch.arange(self._added, self._added + len(labels_B)).remainder_(self.capacity)
        self._images_MI[at_B] = images_BI
        self._labels_M[at_B] = labels_B
        self._added += len(labels_B)

    def draw(self, count: int, step: int) -> tuple[Tensor, Tensor]:
        """`count` remembered samples, drawn with replacement, as (count, inputs) uint8 and (count) int64."""
        generator = generator_for("rehearsal", self._seed, step)
        at_B = torch.randint(0, len(self), (count,), generator=generator)
        images_BI = self._images_MI[at_B]
        if self._jitter:
            images_BI = self._shift(images_BI, generator)
        return images_BI, self._labels_M[at_B]

    def _shift(self, images_BI: Tensor, generator: torch.Generator) -> Tensor:
        side, reach = self._side, self._jitter
        padded = pad(images_BI.view(-1, side, side), (reach, reach, reach, reach))
        y_B, x_B = torch.randint(0, 2 * reach + 1, (2, len(images_BI)), generator=generator)
        across = torch.arange(side)
        rows_BS1 = (y_B[:, None] + across)[:, :, None]
        columns_B1S = (x_B[:, None] + across)[:, None, :]
        which_B11 = torch.arange(len(images_BI))[:, None, None]
        return padded[which_B11, rows_BS1, columns_B1S].view(len(images_BI), -1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """A copy: tensors, and what JSON can say."""
        if not self.capacity:
            return {}, {}
        size = len(self)
        tensors = {
            "memory.images": self._images_MI[:size].clone(),
            "memory.labels": self._labels_M[:size].clone(),
        }
        return tensors, {"memory.added": self._added}

    def load(self, tensors: dict[str, Tensor], added: int) -> None:
        """Remembers what a state remembered."""
        size = min(added, self.capacity)
        self._images_MI[:size] = tensors["memory.images"]
        self._labels_M[:size] = tensors["memory.labels"]
        self._added = added
