"""Wake and sleep in long phases: the error at the end of each phase, and what happens without sleep.

The network learns as the daemon does: wake microbatches come from the stream, with replayed samples beside them, and
sleep microbatches from the replay buffer. Nothing else runs, so this is the serial reference.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ffstream.data import Dataset, batches
from ffstream.data.dataset import Split
from ffstream.ff.layer import Placement
from ffstream.ff.network import Network
from ffstream.ff.objective import Phase
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.device import choose_product_dtype
from ffstream.pipeline.replay_buffer import ReplayBuffer
from tools.benchmarks.report import Report

_CPU = torch.device("cpu")
_VALIDATION = 10_000  # the last training images
_POINTS = (0, 250, 500, 1000, 2000, 4000, 8000, 16_000)


class Learner:
    """A network with a replay buffer and an endless stream of one split, shuffled again for each pass."""

    def __init__(self, recipe: Recipe, split: Split) -> None:
        self.recipe = recipe
        self.network = Network(recipe, Placement(product_dtype=choose_product_dtype("auto", _CPU)))
        self.step = 0
        self._replay = ReplayBuffer(recipe)
        self._stream = _endless(split, recipe.batch_size, recipe.seed)

    def learn(self, microbatches: int, phase: Phase) -> None:
        """Learns that many microbatches in one phase."""
        for _ in range(microbatches):
            images, labels = self._sleep() if phase == "sleep" else self._wake()
            self.network.learn(images, labels, self.step, phase)
            self.step += 1

    def _wake(self) -> tuple[Tensor, Tensor]:
        images, labels = fresh = next(self._stream)
        count = self.recipe.replay * len(labels) // self.recipe.batch_size
        if count and len(self._replay):
            old_images, old_labels = self._replay.draw(count, self.step)
            images, labels = torch.cat((images, old_images)), torch.cat((labels, old_labels))
        self._replay.add(*fresh)
        return images, labels

    def _sleep(self) -> tuple[Tensor, Tensor]:
        return self._replay.draw(self.recipe.rows, self.step)

    def error(self, split: Split) -> float:
        """Error of the EMA weights, in percent."""
        images, labels = _tensors(split.images, split.labels)
        return 100 * float((self.network.classifier().predict(images).labels_B != labels).float().mean())


def _endless(split: Split, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    whole = len(split) // size * size
    for number in itertools.count():
        for images, labels in batches(split, size, seed=seed + 1000 * number, limit=whole):
            yield _tensors(images, labels)


def _tensors(images: object, labels: object) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(images).flatten(1), torch.as_tensor(labels).long()


def splits(dataset: Dataset, *, validation: bool) -> tuple[Split, Split]:
    """What is learned, and what the error is measured on."""
    train = dataset.train
    if not validation:
        return train, dataset.test
    end = len(train) - _VALIDATION
    return Split(train.images[:end], train.labels[:end]), Split(train.images[end:], train.labels[end:])


def run(
    report: Report,
    dataset: Dataset,
    *,
    phases: Sequence[int],
    passes: float,
    seeds: Sequence[int],
    validation: bool,
    options: dict[str, object],
) -> None:
    """The error after the last wake and the last sleep phase, for each length of the phases and each seed."""
    train, judge = splits(dataset, validation=validation)
    for length, seed in itertools.product(phases, seeds):
        recipe = make_recipe({"preset": "wake-sleep", "seed": seed, **options, "wake": length, "sleep": length})
        learner = Learner(recipe, train)
        rounds = max(1, int(passes * len(train) / recipe.batch_size / length))
        for _ in range(rounds - 1):
            learner.learn(length, "wake")
            learner.learn(length, "sleep")
        last: tuple[Phase, ...] = ("wake", "sleep")
        for phase in last:
            learner.learn(length, phase)
            report.add(f"phases/{dataset.name}/{length}/seed{seed}/after_{phase}", learner.error(judge), "%")


def deprivation(
    report: Report,
    dataset: Dataset,
    *,
    length: int,
    passes: float,
    microbatches: int,
    seed: int,
    validation: bool,
    options: dict[str, object],
) -> None:
    """The error after wake microbatches without sleep, and after sleep phases that follow."""
    train, judge = splits(dataset, validation=validation)
    recipe = make_recipe({"preset": "wake-sleep", "seed": seed, **options, "wake": length, "sleep": length})
    learner, name = Learner(recipe, train), f"deprivation/{dataset.name}/{length}/seed{seed}"
    for _ in range(max(1, int(passes * len(train) / recipe.batch_size / length))):
        learner.learn(length, "wake")
        learner.learn(length, "sleep")
    done = 0
    for point in [*(each for each in _POINTS if each < microbatches), microbatches]:
        learner.learn(point - done, "wake")
        done = point
        report.add(f"{name}/wake{point}", learner.error(judge), "%")
    for number in (1, 2, 3):
        learner.learn(length, "sleep")
        report.add(f"{name}/sleep{number}", learner.error(judge), "%")
        learner.learn(length, "wake")
