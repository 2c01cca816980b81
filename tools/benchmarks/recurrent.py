"""What top-down connections bring: the preset `recurrent`, with more rounds, and beside the same parts without them.

- `one_round`: the preset. The first layer computes again once it has seen the label, then the last one.
- `two_rounds`, `three_rounds`, `synchronous`: more rounds; both layers at once.
- `label_in_each`: the preset, and the first layer has label vectors, too.
- `feed_forward`: no connections from above, and label vectors in each layer.
"""

from collections.abc import Mapping, Sequence

from ffstream.data import Dataset
from ffstream.pipeline.device import choose_product_dtype
from tools.benchmarks.accuracy.figures import Options, config_of
from tools.benchmarks.accuracy.learners import CPU, ForwardForward, splits_of
from tools.benchmarks.accuracy.rows import error_of
from tools.benchmarks.accuracy.run import Plan, Run
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Report

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "one_round": (),
    "two_rounds": ("network.recurrence.rounds=2",),
    "three_rounds": ("network.recurrence.rounds=3",),
    "synchronous": ("network.recurrence.rounds=2", "network.recurrence.order=synchronous"),
    "label_in_each": ("network.label_scheme=vectors",),
    "feed_forward": ("network.recurrence=none", "network.label_scheme=vectors"),
}


def run(
    report: Report,
    dataset: Dataset,
    variants: Sequence[str],
    seeds: int,
    *,
    passes: int = 1,
    validation: bool = False,
) -> None:
    """Each variant with each seed, which decides the order of the stream and the initial weights."""
    splits = splits_of(dataset, validation=validation)
    samples = len(splits.train)
    for name in variants:
        for seed in range(seeds):
            config = config_of(dataset, Options(preset="recurrent", settings=VARIANTS[name]), seed)
            dtype = choose_product_dtype(config.pipeline.precision, CPU)
            learner, stream = ForwardForward(config.network, dtype), Microbatches(config, splits.train, seed)
            learned = Run(learner, stream, splits.held_out, Plan(samples, samples, every_error=False))
            learned.advance(passes * samples)
            error = 100 * error_of(learned.points[-1])
            report.add(f"recurrent/{dataset.name}/{passes}_pass/{name}/{splits.name}", error, "%", seed=seed)


def question(report: Report, digits: Dataset) -> None:
    """The question at a small size, with few digits."""
    run(report, digits, ("one_round", "feed_forward"), 1)
