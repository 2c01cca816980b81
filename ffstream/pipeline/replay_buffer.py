"""The replay buffer: recent samples, from which replay and the sleep phase draw.

A ring of the newest `capacity` samples, stored as uint8. A draw depends only on the content, the seed and the step,
so that a run that was killed and resumed draws the same.

Shapes: B samples, M samples in the buffer, I numbers in an image.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.augmentation import Augmentation
from ffstream.ff.randomness import generator_for
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch


class Replayed(NamedTuple):
    """Samples as (B, I) uint8 and (B) int64, and how many samples ago each was added. The last one has age 1."""

    images_BI: Tensor
    labels_B: Tensor
    ages_B: Tensor


class ReplayBuffer:
    """Up to `recipe.replay_buffer` samples, or none if not `used`. Drawn images are augmented."""

    def __init__(self, recipe: Recipe, *, used: bool = True) -> None:
        self.capacity = recipe.replay_buffer if used else 0
        self._recipe = recipe
        self._augmentation = Augmentation(recipe)
        self._images_MI = torch.zeros(self.capacity, recipe.inputs, dtype=torch.uint8)
        self._labels_M = torch.zeros(self.capacity, dtype=torch.int64)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, images_BI: Tensor, labels_B: Tensor) -> None:
        """Stores samples in place of the oldest ones."""
        if not self.capacity:
            return
        if images_BI.dtype != torch.uint8:
            images_BI = images_BI.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        at_B = torch.arange(self._added, self._added + len(labels_B)).remainder_(self.capacity)
        self._images_MI[at_B] = images_BI
        self._labels_M[at_B] = labels_B
        self._added += len(labels_B)

    def draw(self, count: int, step: int) -> Replayed:
        """`count` samples, drawn with replacement."""
        generator = generator_for("replay", self._recipe.seed, step)
        at_B = torch.randint(0, len(self), (count,), generator=generator)
        ages_B = (self._added - 1 - at_B).remainder_(self.capacity).add_(1)
        return Replayed(self._augmentation.apply(self._images_MI[at_B], generator), self._labels_M[at_B], ages_B)

    def for_sleep(self, step: int) -> Replayed:
        """The samples of a sleep microbatch. If the first layer dreams them, there are no images (0, I), and only the
        number of labels means something."""
        recipe = self._recipe
        if not recipe.sleeps_without_images:
            return self.draw(recipe.rows, step)
        nothing_R = torch.zeros(recipe.rows, dtype=torch.int64)
        return Replayed(torch.zeros(0, recipe.inputs, dtype=torch.uint8), nothing_R, nothing_R)

    def beside(self, micro: MicroBatch) -> MicroBatch:
        """The microbatch with replayed samples after its fresh ones, so that one update learns from both."""
        count = self._recipe.replay * micro.fresh // self._recipe.batch_size
        if not count or not len(self):
            return micro
        images, labels, ages = self.draw(count, micro.step)
        if micro.images.dtype != torch.uint8:
            images = images.to(torch.float32).div_(255)
        images, labels = torch.cat((micro.images, images)), torch.cat((micro.labels, labels))
        return micro._replace(images=images, labels=labels, ages=ages)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """A copy: tensors, and JSON values."""
        if not self.capacity:
            return {}, {}
        size = len(self)
        tensors = {
            "replay.images": self._images_MI[:size].clone(),
            "replay.labels": self._labels_M[:size].clone(),
        }
        return tensors, {"replay.added": self._added}

    def load_state_dict(self, tensors: dict[str, Tensor], added: int) -> None:
        """Restores a state."""
        size = min(added, self.capacity)
        self._images_MI[:size] = tensors["replay.images"]
        self._labels_M[:size] = tensors["replay.labels"]
        self._added = added
