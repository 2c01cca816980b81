"""How soon a changed concept is learned and served: samples after the change until the error is below 10 %.

A pass over the data set in its own order is followed by a second one in which the concept changes. The stream is
learned by the serial reference, with the replay buffer as the feeder uses it, and every microbatch is predicted
before it is learned:

    served     by the EMA weights, which predict
    live       by the newest weights, from the training pass
    unchanged  by the EMA weights of the same network with `drift = "none"`
    fresh      by a network that begins at the change

The error is that of the last 1,000 samples.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ffstream.data import Dataset
from ffstream.data.dataset import Split
from ffstream.data.streams import label_permutation_at, stream
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch
from ffstream.pipeline.replay_buffer import ReplayBuffer
from tools.benchmarks.accuracy.learners import error, predictor
from tools.benchmarks.report import Report

WINDOW_SAMPLES = 1000
GOOD_ERROR = 0.1
_BLACK_SAMPLES = 250_000

Samples = tuple[Tensor, Tensor]  # images (N, I; uint8), labels (N; int64)
Drift = Callable[[Samples, int], Samples]


def _labels_of(labels: Tensor, seed: int) -> Tensor:
    permuted = label_permutation_at(0, classes=int(labels.max()) + 1, seed=seed)(0, labels.numpy().astype(np.uint8))
    return torch.from_numpy(permuted.astype(np.int64))


def _stationary(samples: Samples, seed: int) -> Samples:
    return samples


def _labels(samples: Samples, seed: int) -> Samples:
    """All labels are permuted at once."""
    return samples[0], _labels_of(samples[1], seed)


def _gradual(samples: Samples, seed: int) -> Samples:
    """Labels are permuted for a share of the samples that grows from 0 to 1 over half of them."""
    images, labels = samples
    share = torch.arange(len(labels)) * (2 / len(labels))
    changed = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < share
    return images, torch.where(changed, _labels_of(labels, seed), labels)


def _rotated(samples: Samples, seed: int) -> Samples:
    """Images turn slowly, up to half a turn at the end."""
    images, labels = samples
    size = round(images.shape[1] ** 0.5)
    parts = []
    for first in range(0, len(labels), 1000):
        part = images[first : first + 1000]
        turn = torch.arange(first, first + len(part)) * (torch.pi / len(labels))
        rows = [torch.stack((turn.cos(), -turn.sin()), 1), torch.stack((turn.sin(), turn.cos()), 1)]
        matrix = torch.cat((torch.stack(rows, 1), torch.zeros(len(part), 2, 1)), 2)
        pictures = part.view(-1, 1, size, size).float()
        grid = affine_grid(matrix, list(pictures.shape), align_corners=False)
        parts.append(grid_sample(pictures, grid, align_corners=False).round_().to(torch.uint8).flatten(1))
    return torch.cat(parts), labels


DRIFTS: dict[str, Drift] = {
    "stationary": _stationary,
    "labels": _labels,
    "gradual": _gradual,
    "rotated": _rotated,
    "black": _stationary,  # before the change: black images of the label 0
}


class Curve:
    """The prequential error of one way to predict. `reached` is how many samples after the change it became good."""

    def __init__(self, change: int) -> None:
        self._change = change
        self._window: deque[tuple[int, int]] = deque()
        self.after = self.wrong_after = 0
        self.reached: int | None = None

    def add(self, seq: int, labels_B: Tensor, predicted_B: Tensor) -> None:
        """A microbatch that was predicted before it was learned; `seq` samples came before it."""
        if seq < self._change:
            return
        size, wrong = len(labels_B), int((labels_B != predicted_B).sum())
        self.after += size
        self.wrong_after += wrong
        self._window.append((size, wrong))
        seen = sum(each for each, _ in self._window)
        while seen - self._window[0][0] >= WINDOW_SAMPLES:
            seen -= self._window.popleft()[0]
        error = sum(each for _, each in self._window) / seen
        if self.reached is None and seen >= WINDOW_SAMPLES and error < GOOD_ERROR:
            self.reached = self.after

    @property
    def error(self) -> float:
        """Prequential error since the change, in percent."""
        return 100 * self.wrong_after / self.after


class Learned(NamedTuple):
    """The curves of one network, and how often its layers restarted before and after the change."""

    network: Network
    served: Curve
    live: Curve
    restarts: tuple[int, int]


def learned(recipe: Recipe, samples: Samples, change: int) -> Learned:
    """Learns a stream, as the pipeline does with `learning.partial = "wait"`."""
    network, replay = Network(recipe), ReplayBuffer(recipe, used=recipe.replay > 0)
    served, live, before = Curve(change), Curve(change), 0
    for step, (seq, images_BI, labels_B) in enumerate(_microbatches(recipe, samples)):
        if seq == change:
            before = _restarts(network)
        if seq >= change:
            served.add(seq, labels_B, network.classifier().predict(images_BI).labels_B)
        batch = replay.beside(
            MicroBatch(step, seq + len(labels_B), "interleaved", images_BI, labels_B, len(labels_B))
        )
        scored = network.learn(batch.images, batch.labels, step, ages_R=batch.ages)
        if scored is not None:
            live.add(seq, scored.labels_B, scored.score_BL.argmax(1))
        replay.add(images_BI, labels_B)
    return Learned(network, served, live, (before, _restarts(network) - before))


def _microbatches(recipe: Recipe, samples: Samples) -> Iterator[tuple[int, Tensor, Tensor]]:
    images, labels = samples
    seq = 0
    while (end := recipe.batch_end(seq)) <= len(labels):
        yield seq, images[seq:end], labels[seq:end]
        seq = end


def _restarts(network: Network) -> int:
    state = network.state_dict()
    return sum(int(value) for name, value in state.items() if name.endswith(".drift.restarts"))


def run(report: Report, dataset: Dataset, kinds: list[str], recipe: Recipe, seeds: int) -> None:
    """Two passes for each kind of drift and seed."""
    for kind in kinds:
        for seed in range(seeds):
            _one(report, dataset, kind, recipe.change(seed=seed), seed)


def _one(report: Report, dataset: Dataset, kind: str, recipe: Recipe, seed: int) -> None:
    first, second = _pass(dataset.train, seed, 0), DRIFTS[kind](_pass(dataset.train, seed, 1), seed)
    if kind == "black":
        size = _BLACK_SAMPLES * len(first[1]) // 60_000
        first = torch.zeros(size, first[0].shape[1], dtype=torch.uint8), torch.zeros(size, dtype=torch.int64)
    change = recipe.whole_up_to(len(first[1]))
    both = torch.cat((first[0][:change], second[0])), torch.cat((first[1][:change], second[1]))
    with_test = learned(recipe, both, change)
    unchanged = learned(recipe.change(drift="none"), both, change)
    fresh = learned(recipe.change(drift="none"), second, 0)
    curves = {"served": with_test.served, "live": with_test.live, "unchanged": unchanged.served}
    name = f"drift/{dataset.name}/{kind}"
    for way, curve in curves.items():
        if not curve.after:
            continue  # label-conditioned layers have no live curve
        report.add(f"{name}/{way}/error/seed{seed}", curve.error, "%", "fresh", fresh.served.error)
        if kind == "stationary":
            continue
        if curve.reached is None or fresh.served.reached is None:
            report.fail(f"{name}/{way}/reached/seed{seed}", "the error never fell below 10 %")
        else:
            report.add(f"{name}/{way}/reached/seed{seed}", curve.reached, "samples", "fresh", fresh.served.reached)
    before, after = with_test.restarts
    report.add(f"{name}/restarts/seed{seed}", after, "restarts", before=before)
    if kind == "stationary":
        errors = [100 * error(predictor(each.network.classifier()), dataset.test) for each in (with_test, unchanged)]
        report.add(f"{name}/test/seed{seed}", errors[0], "%", "unchanged", errors[1])


def _pass(split: Split, seed: int, number: int) -> Samples:
    at = list(stream(split, passes=number + 1, seed=seed))[number]
    images = torch.from_numpy(split.images[at]).flatten(1)
    return images, torch.from_numpy(split.labels[at].astype(np.int64))
