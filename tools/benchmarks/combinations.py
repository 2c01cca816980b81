"""One pass of a dense network for combinations of label scheme, goodness and activation.

The best steepness and learning rate differ from one combination to the next. So for each of them a few are tried on a
part of the training split that is held out, with a part of the stream, before one pass is made with the best.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from ffstream.config import Config
from ffstream.data import Dataset, Split
from ffstream.ff.part import members
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.device import choose_product_dtype
from tools.benchmarks.accuracy.learners import ForwardForward, held_out_error, splits_of
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Report

UNITS = 500  # a multiple of ten, so that groups use all of them
# α at which a step of the loss is about as large for each goodness: a sum is larger than a mean.
ALPHAS = {
    "sum_squares": (0.02, 0.06, 0.2),
    "mean_squares": (5.0, 15.0, 50.0),
    "sum": (0.02, 0.1, 0.5),
}
RATES = (1.5e-3, 4e-3)
TRIAL_SAMPLES = 10_000


class Combination(NamedTuple):
    """The parts of every layer."""

    scheme: str
    goodness: str
    negative: bool
    activation: str

    @property
    def name(self) -> str:
        """scheme/goodness/activation, where a minus stands before a negative goodness."""
        return f"{self.scheme}/{'-' if self.negative else ''}{self.goodness}/{self.activation}"

    def recipe(self, alpha: float, learning_rate: float) -> Recipe:
        """Two layers in the preset `fast`."""
        options: dict[str, Any] = {
            "widths": [UNITS, UNITS],
            "label_scheme": self.scheme,
            "goodness": {"kind": self.goodness, "negative": self.negative},
            "activation": self.activation,
            "objective": {"alpha": alpha},
            "learning_rate": learning_rate,
        }
        return make_recipe("fast", **options)


def combinations() -> Iterator[Combination]:
    """Each scheme and goodness with ReLU, and each other activation with the best known goodness of its scheme."""
    for scheme, goodness, negative in product(("vectors", "groups"), ALPHAS, (False, True)):
        yield Combination(scheme, goodness, negative, "relu")
    for activation in sorted(members("activation").keys() - {"relu"}):
        yield Combination("vectors", "sum_squares", False, activation)
        yield Combination("groups", "mean_squares", True, activation)


def run(report: Report, dataset: Dataset, chosen: list[Combination], trial_samples: int = TRIAL_SAMPLES) -> None:
    """A row for each combination: the test error after one pass, with the α and learning rate that were chosen."""
    train, validation, _ = splits_of(dataset, validation=True)
    for each in chosen:
        trials = {
            (alpha, rate): _error(each.recipe(alpha, rate), train, validation, trial_samples)
            for alpha, rate in product(ALPHAS[each.goodness], RATES)
        }
        alpha, rate = min(trials, key=lambda at: trials[at])
        found = _error(each.recipe(alpha, rate), dataset.train, dataset.test, len(dataset.train))
        report.add(
            f"combinations/{dataset.name}/{each.name}",
            found,
            "%",
            alpha=alpha,
            learning_rate=rate,
            trials=len(trials),
        )


def _error(recipe: Recipe, train: Split, judge: Split, samples: int) -> float:
    """The error in percent after so many samples of one pass."""
    learner = ForwardForward(recipe, choose_product_dtype("auto", torch.device("cpu")))
    microbatches = Microbatches(Config(network=recipe), train, seed=0)
    while microbatches.seq < samples:
        learner.learn(microbatches.next())
    return 100 * held_out_error(learner, judge)
