"""Learning speed of the pipeline, beside the serial reference and other methods.

The pipeline is that of a daemon: it reads a journal, forms microbatches and publishes snapshots. Samples are random
numbers, the same ones in each microbatch, so no data set is needed. All that is compared is measured in turn, with
products in the same precision.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ffstream.config import Config
from ffstream.ff.connection import Conv, size_of
from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.journal.journal import Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.pipeline import Pipeline
from ffstream.pipeline.resume_state import ResumeState
from ffstream.pipeline.threads import ThreadEngine
from tools.benchmarks import peers, roofline
from tools.benchmarks.journals import fill
from tools.benchmarks.listener import Learned
from tools.benchmarks.report import Report, in_turn, rate

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DEADLINE_S = 300.0


class Case(NamedTuple):
    """A recipe without replay, and the microbatches of one measurement.

    `full_batch`: samples of an update of the label-in-pixels method. It is measured, too, and so is backpropagation;
    0: neither is. `skips`: a part of the products is left out, so there is no share of the machine's rate.
    """

    name: str
    recipe: Recipe
    batches: int
    full_batch: int = 0
    skips: bool = False


def cases() -> list[Case]:
    """Dense networks in the preset `fast`, and one of each other kind of connection or label scheme; label schemes
    also with an objective that compares each sample with one wrong label."""
    groups = {"goodness": {"kind": "mean_squares", "negative": True}, "label_scheme": "groups"}
    paired = {"objective": {"kind": "paired", "alpha": 6}, "negatives": "hardest"}
    fast = make_recipe("fast", warmup_samples=0)
    spatial = {"batch_size": 128, "replay": 0}
    return [
        Case("784-512-512", fast, 200, full_batch=50_000),
        Case("784-2000x4", fast.change(widths=(2000,) * 4), 16),
        Case("vectors", fast.change(widths=(500, 500)), 200),
        Case("groups", fast.change(widths=(500, 500), **groups), 200),
        Case("paired_vectors", fast.change(widths=(1000, 1000), **paired), 200),
        Case("paired_groups", fast.change(widths=(1000, 1000), **groups, **paired), 200, skips=True),
        Case("conv", make_recipe("conv", **spatial), 400),
        Case("local", make_recipe("local", **spatial), 400),
    ]


def run(report: Report, rounds: int, given: Sequence[Case] | None = None) -> None:
    """Measures each network in each precision."""
    cores = os.cpu_count() or 1
    chosen = cases() if given is None else given
    for precision in _DTYPES:
        rates = {case.name: _measure(report, case, precision, rounds, cores) for case in chosen}
        for groups, vectors in (("groups", "vectors"), ("paired_groups", "paired_vectors")):
            if {groups, vectors} <= rates.keys():
                name = f"learn/{groups}/{precision}/over_vectors"
                report.add(name, rates[groups], "samples/s", "label_vectors", rates[vectors])


def _measure(report: Report, case: Case, precision: str, rounds: int, cores: int) -> float:
    """Returns the samples per second of the pipeline."""
    recipe, dtype = case.recipe, _DTYPES[precision]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (recipe.batch_size, recipe.inputs), dtype=np.uint8)
    labels = generator.integers(0, 10, recipe.batch_size)
    others = _other_methods(case, dtype, cores)
    serial, pipeline, possible, *found = in_turn(
        rounds,
        lambda: _serial_rate(recipe, dtype, images, labels, max(4, case.batches // 2)),
        lambda: _pipeline_rate(recipe, precision, case.batches),
        lambda: roofline.rate(recipe, recipe.batch_size, dtype, cores, 1.0),
        *others.values(),
    )
    prefix = f"learn/{case.name}/{precision}"
    report.add(f"{prefix}/pipeline_over_serial", pipeline, "samples/s", "serial", serial)
    if not case.skips:
        _report_share(report, prefix, recipe, pipeline, possible)
    for (figure, method), speed in zip(others, found, strict=True):
        report.add(f"{prefix}/{figure}", pipeline, "samples/s", method, speed)
    return pipeline


def _report_share(report: Report, prefix: str, recipe: Recipe, pipeline: float, possible: float) -> None:
    """From samples per second, and the machine's FLOP per second."""
    achieved = pipeline * roofline.flops(recipe) / 1e9
    convolves = any(isinstance(layer.connection, Conv) for layer in recipe.layers)
    peer = "conv_roofline" if convolves else "gemm_roofline"
    share = "share_of_conv" if convolves else "share_of_gemm"
    report.add(f"{prefix}/{share}", achieved, "GFLOP/s", peer, possible / 1e9)


def _other_methods(case: Case, dtype: torch.dtype, threads: int) -> dict[tuple[str, str], Callable[[], float]]:
    """By figure and method: measures the method on a network of the same widths."""
    if not case.full_batch:
        return {}
    recipe = case.recipe
    widths = (recipe.inputs, *(size_of(layer.connection.output_shape(())) for layer in recipe.layers))
    return {
        ("over_overlay_method", "overlay_method"): lambda: overlay_rate(widths, case.full_batch, dtype, threads),
        ("over_backprop", "backprop_mlp"): lambda: backprop_rate(widths, recipe.batch_size, dtype, threads),
    }


def _serial_rate(recipe: Recipe, dtype: torch.dtype, images: np.ndarray, labels: np.ndarray, batches: int) -> float:
    network = Network(recipe, Placement(product_dtype=dtype))
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    network.learn(x, y, 0)

    def work() -> None:
        for step in range(batches):
            network.learn(x, y, step)

    return rate(batches * len(labels), work)


def _pipeline_rate(recipe: Recipe, precision: str, batches: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.sqlite")
        journal = Journal(path, inputs=recipe.inputs, labels=recipe.labels)
        fill(journal, recipe.inputs, recipe.batch_size, batches)
        listener = Learned(batches * recipe.batch_size)
        config = {
            "network": recipe,
            "pipeline": {"device": "cpu", "precision": precision},
            "checkpoint": {"every_samples": 0, "every_s": 0},
        }
        options, metrics = Config.model_validate(config), Metrics()
        pipeline = Pipeline(options, ThreadEngine(options, metrics), journal, ResumeState(), listener, metrics)

        def work() -> None:
            pipeline.start()
            listener.wait(_DEADLINE_S)

        try:
            return rate(batches * recipe.batch_size, work)
        finally:
            pipeline.stop(10.0, save=False)
            journal.close()


def overlay_rate(widths: tuple[int, ...], samples: int, dtype: torch.dtype, threads: int, updates: int = 2) -> float:
    """Samples a second of the label-in-pixels method, each update of which takes all samples."""
    with peers.computing(dtype, threads):
        method = peers.OverlayMethod(widths)
        images, labels = torch.rand(samples, widths[0]), torch.randint(0, 10, (samples,))
        method.update(images, labels)
        return rate(samples * updates, _repeat(updates, lambda: method.update(images, labels)))


def backprop_rate(widths: tuple[int, ...], batch: int, dtype: torch.dtype, threads: int, updates: int = 60) -> float:
    """Samples a second of backpropagation."""
    with peers.computing(dtype, threads):
        mlp = peers.BackpropMlp(widths)
        images, labels = torch.rand(batch, widths[0]), torch.randint(0, 10, (batch,))
        mlp.learn(images, labels)
        return rate(batch * updates, _repeat(updates, lambda: mlp.learn(images, labels)))


def _repeat(times: int, work: Callable[[], None]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated
