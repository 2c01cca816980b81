"""Dreams: what a network learns from negatives that it makes itself, beside controls; and what it generates.

    sleep/…        error of the preset wake-sleep at the end of the last sleep phase, without replay. Sleep shows
                   dreams from a store of activities (`store`) or from statistics of them (`statistics`), remembered
                   pictures (`pictures`), or does not happen (`nothing`)
    unlabelled/…   error of the preset unsupervised after one pass: dreams from a store, hybrids of pictures
                   (`hybrids`), or layers that keep their random weights (`frozen`) while the readout learns
    generated/…    images of each label that the network of `sleep/…` dreams, judged by another network: the preset
                   stream after one pass over the same images, with another seed. `own_label`: the share that it
                   gives the label that was asked for. `spread`: mean distance of two images of a label, as a share
                   of that of two real ones; if they were all the same, it would be 0

The microbatches are those of a daemon (see accuracy/stream.py), and the serial reference learns them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.config import load
from ffstream.data import Dataset
from ffstream.data.dataset import Split
from ffstream.pipeline.device import choose_product_dtype
from tools.benchmarks.accuracy.learners import CPU, ForwardForward, held_out_error, splits_of
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Report

LENGTH = 64  # microbatches in a phase
_JUDGE_SEED = 1000
_GENERATED = 100  # images of each label


class Case(NamedTuple):
    """What is measured: a preset, and how its layers, its first layer and the network differ from it."""

    preset: str
    layers: Mapping[str, object] = {}
    first: Mapping[str, object] = {}
    options: Mapping[str, object] = {}


_DREAMS = {"negatives": "dreams"}


def _sleep(memory: Mapping[str, object] | None = None, sleep: int = LENGTH) -> Case:
    options = {"replay": 0, "wake": LENGTH, "sleep": sleep}
    if memory is None:
        return Case("wake-sleep", options=options)
    return Case("wake-sleep", _DREAMS, {"decoder": {"kind": "linear", "memory": memory}}, options)


CASES: Mapping[str, Case] = {
    "sleep/store": _sleep({"kind": "store", "samples": 4096}),
    "sleep/statistics": _sleep({"kind": "statistics"}),
    "sleep/pictures": _sleep(),
    "sleep/nothing": _sleep(sleep=0),
    "unlabelled/store": Case("unsupervised", _DREAMS, {"decoder": "linear"}),
    "unlabelled/hybrids": Case("unsupervised"),
    "unlabelled/frozen": Case("unsupervised", {"learning_rate": 0.0}),
}


class Learner:
    """A network of one case, and its stream."""

    def __init__(self, case: Case, train: Split, seed: int, settings: Sequence[str] = ()) -> None:
        given = load(settings=[f"network.preset={case.preset}", *settings], environment={})
        first, *later = ({**layer, **case.layers} for layer in given.network.model_dump()["layers"])
        recipe = given.network.change(layers=[{**first, **case.first}, *later], seed=seed, **case.options)
        self.learner = ForwardForward(recipe, choose_product_dtype("auto", CPU))
        self._microbatches = Microbatches(given.model_copy(update={"network": recipe}), train, seed)
        self._recipe, self._train = recipe, train

    def learn(self, passes: float) -> None:
        """That many passes; in phases, as many whole rounds of wake and sleep as fit, but one at least."""
        recipe, samples = self._recipe, int(passes * len(self._train))
        if recipe.wake:
            # Counted in microbatches, because one that ends a pass has fewer samples.
            rounds = max(1, samples // (recipe.wake * recipe.batch_size))
            for _ in range(rounds * (recipe.wake + recipe.sleep)):
                self.learner.learn(self._microbatches.next())
            return
        while self._microbatches.seq < samples:
            self.learner.learn(self._microbatches.next())

    def error(self, split: Split) -> float:
        """Error of the EMA weights, in percent."""
        return 100 * held_out_error(self.learner, split)

    def generate(self, count: int) -> tuple[Tensor, Tensor]:
        """That many images of each label, as pixels 0 to 1, and the labels."""
        decoding = self.learner.network.layers[0].decoding
        assert decoding is not None, "this network cannot dream"
        labels_B = torch.arange(self._recipe.labels).repeat_interleave(count)
        return decoding.dream(len(labels_B), 0, labels_B).pixels_BI, labels_B


def run(
    report: Report,
    dataset: Dataset,
    *,
    only: str,
    seeds: Sequence[int],
    passes: float,
    validation: bool,
    settings: Sequence[str],
) -> None:
    """The cases whose name contains `only`. `passes`: of those with phases; the others have one at most."""
    train, held_out, name = splits_of(dataset, validation=validation)
    for seed in seeds:
        judge = None
        for case_name, case in CASES.items():
            if only not in case_name:
                continue
            learner = Learner(case, train, seed, settings)
            learner.learn(passes if case.preset == "wake-sleep" else min(1.0, passes))
            report.add(f"dreams/{dataset.name}/{case_name}/{name}", learner.error(held_out), "%", seed=seed)
            if case.preset == "wake-sleep" and case.first:
                judge = judge or _judge(train)
                row = f"dreams/{dataset.name}/{case_name.replace('sleep', 'generated')}"
                _judge_images(report, row, learner, judge, held_out, seed)


def question(report: Report, digits: Dataset) -> None:
    """The question at a small size, with few digits: one round of wake and sleep from each kind of memory."""
    run(report, digits, only="sleep/st", seeds=(0,), passes=1.0, validation=False, settings=())


def _judge(train: Split) -> Learner:
    judge = Learner(Case("stream"), train, _JUDGE_SEED)
    judge.learn(1)
    return judge


def _judge_images(report: Report, row: str, learner: Learner, judge: Learner, real: Split, seed: int) -> None:
    images_BI, labels_B = learner.generate(_GENERATED)
    predicted_B = judge.learner.predictor(judge.learner.weights())(images_BI)
    report.add(f"{row}/own_label", 100 * float((predicted_B == labels_B).float().mean()), "%", seed=seed)
    real_NI = torch.from_numpy(real.images.reshape(len(real), -1)).float() / 255
    real_N = torch.from_numpy(real.labels)
    spreads = [
        _spread(images_BI[labels_B == label]) / _spread(real_NI[real_N == label][:_GENERATED])
        for label in labels_B.unique()
    ]
    report.add(f"{row}/spread", sum(spreads) / len(spreads), "of real", seed=seed)


def _spread(images_BI: Tensor) -> float:
    """Mean distance of two of the images."""
    return float(torch.pdist(images_BI).mean())
