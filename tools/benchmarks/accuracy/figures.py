"""The errors of a preset over one or more passes, with each seed, beside those of its peer.

At equal samples, both have learned the same microbatches. At equal minutes, the peer has had as many CPU seconds of
learning as the preset needed. The preset is "ahead" if its error is lower with every seed.

Hyper-parameters are chosen on validation data, which is the last part of the training split. Without `validation`,
held-out data is the test split, and its error is measured at the end of each pass, at the end of the run, and where
the minutes are equal, but nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ffstream.config import Config, load
from ffstream.data import Dataset, Split
from ffstream.pipeline.device import choose_device, choose_product_dtype
from tools.benchmarks import peers
from tools.benchmarks.accuracy import plot, through_daemon, tuning
from tools.benchmarks.accuracy.backprop import Backprop, PeerSettings
from tools.benchmarks.accuracy.learners import ForwardForward, Learner, Replicas, Splits, splits_of
from tools.benchmarks.accuracy.rows import PEER, Learned, Rows, at_seconds, error_of, prequential_of
from tools.benchmarks.accuracy.run import Files, Plan, Point, Run
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Failed, Report

OURS = "ffstream"
_POINTS = 12  # in a pass


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


def run(report: Report, dataset: Dataset, options: Options) -> None:
    """Runs each seed, which decides the order of the stream and the initial weights. Raises Failed, ConfigError."""
    if options.label_fraction < 1 and not config_of(dataset, options, 0).network.learns_unlabelled:
        raise Failed(f"preset {options.preset} needs a label for each sample: leave out --label-fraction")
    prefix = options.prefix(dataset)
    splits = splits_of(dataset, validation=options.validation)
    rows = Rows(report, prefix, splits.name)
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
    splits = splits_of(dataset, validation=True)
    name = f"{options.prefix(dataset)}/peer_trial"

    def try_out(settings: PeerSettings) -> float:
        return error_of(_run(PEER, dataset, splits, replace(options, peer=settings), seed=0).end)

    def on_trial(settings: PeerSettings, error: float) -> None:
        report.add(name, 100 * error, "%", **vars(settings))

    best, error = tuning.search(trials, try_out, on_trial)
    samples = options.length(len(splits.train))
    return tuning.as_toml(
        options.preset, best, dataset=dataset.name, samples=samples, trials=trials, error=round(100 * error, 2)
    )


def overlay_method(report: Report, dataset: Dataset, updates: int, *, validation: bool) -> None:
    """Held-out error of the label-in-pixels method after `updates` full-batch updates, with seed 0."""
    train, held_out, name = splits_of(dataset, validation=validation)
    torch.manual_seed(0)
    images, labels = _tensors(train)
    method = peers.OverlayMethod((images.shape[1], 512, 512))
    for _ in range(updates):
        method.update(images, labels)
    error = method.error(*_tensors(held_out))
    report.add(f"accuracy/overlay_method/{dataset.name}/{updates}_updates/{name}", 100 * error, "%", seed=0)


def _tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(split.images.reshape(len(split), -1)).to(torch.float32).div_(255)
    return pixels.sub_(0.1307).div_(0.3081), torch.from_numpy(split.labels).long()


# --- runs --------------------------------------------------------------------------------------------------------


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
    name: str, dataset: Dataset, splits: Splits, options: Options, seed: int, *, seconds: float = 0.0
) -> Learned:
    """A whole run, or the rest of one that was begun before."""
    config = config_of(dataset, options, seed)
    device = choose_device(config.pipeline.device)
    dtype = choose_product_dtype(config.pipeline.precision, device)
    if name == OURS:
        learner = _ours(config, dtype, device)
    else:
        assert options.peer is not None
        learner = Backprop(config.network, options.peer, dtype, device)
    size = len(splits.train)
    plan = Plan(size, options.every or -(-size // _POINTS), every_error=options.validation)
    files = None
    if options.runs:
        stem = f"{options.preset}-{dataset.name}-{splits.name}-{name}-seed{seed}"
        depends_on = [config.network.model_dump_json(), config.learning.model_dump_json(), str(dtype), str(plan)]
        depends_on += [device.type] if device.type != "cpu" else []
        depends_on += [str(config.cluster)] if config.cluster.replicas > 1 else []
        depends_on += [str(options.label_fraction)] if options.label_fraction < 1 else []
        files = Files(options.runs, stem, *depends_on, str(options.peer) if name == PEER else "")
    microbatches = Microbatches(config, splits.train, seed, options.label_fraction)
    found = Run(learner, microbatches, splits.held_out, plan, files)
    total = options.length(size)
    found.advance(total, seconds)
    return Learned(learner, found.points, end_of(found.points, total, seconds))


def end_of(points: Sequence[Point], samples: int, seconds: float) -> Point:
    """The point after that many samples. Raises Failed unless the error was measured there, and after that many CPU
    seconds: a longer run in the folder passed these places."""
    end = next(point for point in points if point.samples >= samples)
    then = at_seconds(points, seconds) if seconds else end
    if end.error is None or then.error is None:
        where = f"{samples:,} samples" if end.error is None else f"{seconds:g} CPU seconds"
        raise Failed(f"a run in that folder passed {where} without a measurement: use another folder")
    return end


def _ours(config: Config, dtype: torch.dtype, device: torch.device) -> Learner:
    cluster = config.cluster
    if cluster.replicas == 1:
        return ForwardForward(config.network, dtype, device)
    return Replicas(config.network, dtype, cluster.replicas, cluster.merge_every, device)


def _prove(report: Report, prefix: str, dataset: Dataset, splits: Splits, options: Options, ours: Learned) -> None:
    """One pass through a daemon must lead to the same weights, and to the same errors. Raises Failed."""
    if ours.points[-1] != ours.end:
        raise Failed("the runs in that folder are longer than one pass, so there is nothing to compare a daemon with")
    settings = _settings(dataset, options, 0)
    found = through_daemon.one_pass(splits.train, splits.held_out, 0, settings, options.label_fraction)
    config, exact = config_of(dataset, options, 0), torch.float32  # its products, so its weights are not rounded
    unrounded = _ours(config, exact, choose_device(config.pipeline.device))
    unrounded.load_state_dict(ours.learner.state_dict())
    serial = unrounded.weights()
    equal = serial.keys() == found.weights.keys() and all(
        torch.equal(serial[name].cpu(), found.weights[name]) for name in serial
    )
    end = ours.end
    held_out = f"{prefix}/through_daemon/{splits.name}"
    report.add(held_out, 100 * found.error, "%", "serial", 100 * error_of(end), weights_equal=equal)
    prequential = 100 * found.prequential
    report.add(f"{prefix}/through_daemon/prequential", prequential, "%", "serial", 100 * prequential_of(end))
    if not equal:
        raise Failed("the weights of the daemon are not those of the serial reference")
