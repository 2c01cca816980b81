"""Rows: the errors of a preset over one or more passes, for each seed, beside those of its peer.

At equal samples, both have learned the same microbatches. At equal minutes, the peer has had as many CPU seconds of
learning as the preset needed. The preset is "ahead" if its error is lower with every seed.

Hyper-parameters are chosen on validation data, which is the last part of the training split. Without `validation`,
held-out data is the test split, and its error is measured at the end of each pass only.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ffstream.config import Config, load
from ffstream.data import Dataset, Split
from ffstream.ff.network import Network
from ffstream.pipeline.device import choose_product_dtype
from tools.benchmarks import peers
from tools.benchmarks.accuracy import plot, through_daemon, tuning
from tools.benchmarks.accuracy.backprop import Backprop, PeerSettings
from tools.benchmarks.accuracy.learners import ForwardForward, Learner
from tools.benchmarks.accuracy.run import Files, Plan, Point, Run
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Report

OURS, PEER = "ffstream", "backprop"
_POINTS = 12  # in a pass


class Failed(Exception):
    """Nothing can be measured, or the proof failed. The message says why."""


@dataclass(frozen=True)
class Options:
    """What to measure. `samples`: end of a run, in place of `passes`. `every`: samples between two points; 0: a
    twelfth of a pass. `runs`: folder of the files of runs. `plot`: where learning curves are drawn. `peer` None: no
    peer. `label_fraction`: share of the training samples that have a label."""

    preset: str = "stream"
    settings: tuple[str, ...] = ()
    passes: int = 1
    samples: int = 0
    seeds: int = 3
    validation: bool = False
    every: int = 0
    runs: Path | None = None
    plot: Path | None = None
    through_daemon: bool = False
    peer: PeerSettings | None = None
    label_fraction: float = 1.0

    def length(self, pass_samples: int) -> int:
        """The samples of a run."""
        return self.samples or self.passes * pass_samples

    def prefix(self, dataset: Dataset) -> str:
        """The first part of the names of rows."""
        length = f"{self.samples}_samples" if self.samples else f"{self.passes}_pass"
        labels = "" if self.label_fraction == 1 else f"/{100 * self.label_fraction:g}_percent_labels"
        return f"accuracy/{self.preset}/{dataset.name}/{length}{labels}"


class _Splits(NamedTuple):
    train: Split
    held_out: Split
    name: str  # of the held-out data


class _Learned(NamedTuple):
    """The points of a run, and the one at the end."""

    learner: Learner
    points: Sequence[Point]
    end: Point


def run(report: Report, dataset: Dataset, options: Options) -> None:
    """Runs each seed, which decides the order of the stream and the initial weights. Raises Failed, ConfigError."""
    if options.label_fraction < 1 and not config_of(dataset, options, 0).network.learns_unlabelled:
        raise Failed(f"preset {options.preset} needs a label for each sample: leave out --label-fraction")
    prefix = options.prefix(dataset)
    splits = _splits(dataset, validation=options.validation)
    rows = _Rows(report, prefix, splits.name)
    curves: dict[str, list[Sequence[Point]]] = {OURS: []}
    for seed in range(options.seeds):
        ours = _run(OURS, dataset, splits, options, seed)
        curves[OURS].append(ours.points)
        theirs = None
        if options.peer is not None:
            theirs = _run(PEER, dataset, splits, options, seed, seconds=ours.end.seconds)
            curves.setdefault(PEER, []).append(theirs.points)
        rows.add(seed, ours, theirs)
        if options.through_daemon and not seed:
            _prove(report, prefix, dataset, splits, options, ours)
    rows.compare()
    if options.plot:
        plot.draw(options.plot, prefix, splits.name, curves)


def tune_peer(report: Report, dataset: Dataset, options: Options, trials: int) -> str:
    """Chooses settings of the peer with seed 0 on validation data. Returns the section for `peer_settings.toml`."""
    splits = _splits(dataset, validation=True)
    name = f"{options.prefix(dataset)}/peer_trial"

    def error_of(settings: PeerSettings) -> float:
        return _error(_run(PEER, dataset, splits, replace(options, peer=settings), seed=0).end)

    def on_trial(settings: PeerSettings, error: float) -> None:
        report.add(name, 100 * error, "%", **vars(settings))

    best, error = tuning.search(trials, error_of, on_trial)
    samples = options.length(len(splits.train))
    return tuning.as_toml(
        options.preset, best, dataset=dataset.name, samples=samples, trials=trials, error=round(100 * error, 2)
    )


def overlay_method(report: Report, dataset: Dataset, updates: int) -> None:
    """Test error of the label-in-pixels method after `updates` full-batch updates."""
    torch.manual_seed(0)
    images, labels = _tensors(dataset.train)
    method = peers.OverlayMethod((images.shape[1], 512, 512))
    for _ in range(updates):
        method.update(images, labels)
    error = method.error(*_tensors(dataset.test))
    report.add(f"accuracy/overlay_method/{dataset.name}/{updates}_updates/test", 100 * error, "%")


def _tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(split.images.reshape(len(split), -1)).to(torch.float32).div_(255)
    return pixels.sub_(0.1307).div_(0.3081), torch.from_numpy(split.labels).long()


# --- runs --------------------------------------------------------------------------------------------------------


def _splits(dataset: Dataset, *, validation: bool) -> _Splits:
    if not validation:
        return _Splits(dataset.train, dataset.test, "test")
    return _Splits(dataset.split("train_without_validation"), dataset.split("validation"), "validation")


def config_of(dataset: Dataset, options: Options, seed: int) -> Config:
    """The configuration of a daemon for this data set. Raises ConfigError."""
    return load(settings=_settings(dataset, options, seed), environment={})


def _settings(dataset: Dataset, options: Options, seed: int) -> tuple[str, ...]:
    own = (
        f"network.preset={options.preset}",
        f"network.image_shape={list(dataset.train.image_shape)}",
        f"network.labels={int(dataset.train.labels.max()) + 1}",
        "pipeline.device=cpu",
    )
    return (*own, *options.settings, f"network.seed={seed}")


def _run(
    name: str, dataset: Dataset, splits: _Splits, options: Options, seed: int, *, seconds: float = 0.0
) -> _Learned:
    """A whole run, or the rest of one that was begun before."""
    config = config_of(dataset, options, seed)
    dtype = choose_product_dtype(config.pipeline.precision, torch.device("cpu"))
    if name == OURS:
        learner: Learner = ForwardForward(config.network, dtype)
    else:
        assert options.peer is not None
        learner = Backprop(config.network, options.peer, dtype)
    size = len(splits.train)
    plan = Plan(size, options.every or -(-size // _POINTS), every_error=options.validation)
    files = None
    if options.runs:
        stem = f"{options.preset}-{dataset.name}-{splits.name}-{name}-seed{seed}"
        depends_on = [config.network.model_dump_json(), config.learning.model_dump_json(), str(dtype), str(plan)]
        depends_on += [str(options.label_fraction)] if options.label_fraction < 1 else []
        files = Files(options.runs, stem, *depends_on, str(options.peer) if name == PEER else "")
    microbatches = Microbatches(config, splits.train, seed, options.label_fraction)
    found = Run(learner, microbatches, splits.held_out, plan, files)
    total = options.length(size)
    found.advance(total, seconds)
    return _Learned(learner, found.points, next(point for point in found.points if point.samples >= total))


def _error(point: Point) -> float:
    assert point.error is not None, "a pass ends with a measurement"
    return point.error


def _prove(report: Report, prefix: str, dataset: Dataset, splits: _Splits, options: Options, ours: _Learned) -> None:
    """One pass through a daemon must lead to the same weights, and to the same errors. Raises Failed."""
    assert isinstance(ours.learner, ForwardForward)
    settings = _settings(dataset, options, 0)
    found = through_daemon.one_pass(splits.train, splits.held_out, 0, settings, options.label_fraction)
    unrounded = Network(ours.learner.network.recipe)  # products in float32, so its weights are not rounded
    unrounded.load_state_dict(ours.learner.state_dict())
    serial = unrounded.weights()
    equal = serial.keys() == found.weights.keys() and all(
        torch.equal(serial[name], found.weights[name]) for name in serial
    )
    end = ours.end
    held_out = f"{prefix}/through_daemon/{splits.name}"
    report.add(held_out, 100 * found.error, "%", "serial", 100 * _error(end), weights_equal=equal)
    prequential = 100 * found.prequential
    report.add(f"{prefix}/through_daemon/prequential", prequential, "%", "serial", 100 * end.wrong / end.predicted)
    if not equal:
        raise Failed("the weights of the daemon are not those of the serial reference")


# --- rows --------------------------------------------------------------------------------------------------------


class _Rows:
    """A row for each seed and figure, and one for the differences of each figure."""

    def __init__(self, report: Report, prefix: str, held_out: str) -> None:
        self._report, self._prefix, self._held_out = report, prefix, held_out
        self._differences: dict[str, list[float]] = {}

    def add(self, seed: int, ours: _Learned, theirs: _Learned | None) -> None:
        """The rows of one seed."""
        held_out = self._held_out
        self._add(held_out, seed, _error, ours.end, theirs and theirs.end)
        self._add("prequential", seed, _prequential, ours.end, theirs and theirs.end)
        if theirs is not None:
            then = _at_seconds(theirs.points, ours.end.seconds)
            self._add(f"{held_out}_equal_minutes", seed, _error, ours.end, then)

    def _add(self, name: str, seed: int, figure: Callable[[Point], float], ours: Point, theirs: Point | None) -> None:
        full, value, minutes = f"{self._prefix}/{name}", 100 * figure(ours), round(ours.seconds / 60, 2)
        if theirs is None:
            self._report.add(full, value, "%", seed=seed, minutes=minutes)
            return
        other, their_minutes = 100 * figure(theirs), round(theirs.seconds / 60, 2)
        self._report.add(full, value, "%", PEER, other, seed=seed, minutes=minutes, peer_minutes=their_minutes)
        self._differences.setdefault(full, []).append(value - other)

    def compare(self) -> None:
        """Whether the differences to the peer keep their sign."""
        for name, found in self._differences.items():
            self._report.add(
                f"{name}/difference",
                statistics.median(found),
                "points",
                lowest=min(found),
                highest=max(found),
                standing=standing(found),
            )


def standing(differences: Sequence[float]) -> str:
    """`ahead` if the error is lower than the peer's with every seed, `behind` if it is higher with every seed."""
    if all(each < 0 for each in differences):
        return "ahead"
    return "behind" if all(each > 0 for each in differences) else "undecided"


def _prequential(point: Point) -> float:
    return point.wrong / point.predicted


def _at_seconds(points: Sequence[Point], seconds: float) -> Point:
    """The first measurement after that many CPU seconds."""
    return next(point for point in points if point.error is not None and point.seconds >= seconds)
