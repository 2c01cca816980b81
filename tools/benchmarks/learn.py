"""Learning speed of the pipeline, beside the serial reference and other methods.

The pipeline is that of a daemon: it reads a journal, forms microbatches and publishes snapshots. Samples are random
numbers, which does not change the speed, so no data set is needed.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ffstream.config import Config
from ffstream.ff.connection import size_of
from ffstream.ff.layer import Placement
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.journal.journal import Entry, Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.messages import Barrier, MicroBatch
from ffstream.pipeline.pipeline import Pipeline
from ffstream.pipeline.resume_state import ResumeState
from tools.benchmarks import peers
from tools.benchmarks.report import Report, in_turn, rate

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DEADLINE_S = 300.0


Networks = Sequence[tuple[str, tuple[int, ...], int]]  # name, widths, microbatches of one measurement
NETWORKS: Networks = (("784-512-512", (512, 512), 200), ("784-2000x4", (2000,) * 4, 16))


def run(report: Report, rounds: int, networks: Networks = NETWORKS) -> None:
    """Measures each network in each precision."""
    cores = os.cpu_count() or 1
    for name, widths, batches in networks:
        for precision in _DTYPES:
            _measure(
                report,
                make_recipe("fast", widths=widths, warmup_samples=0),
                batches,
                precision,
                name,
                rounds,
                cores,
            )


def _measure(
    report: Report, recipe: Recipe, batches: int, precision: str, network: str, rounds: int, cores: int
) -> None:
    shapes = (*recipe.input_shapes(), recipe.layers[-1].connection.output_shape(()))
    widths, batch, dtype = tuple(map(size_of, shapes)), recipe.batch_size, _DTYPES[precision]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch, recipe.inputs), dtype=np.uint8)
    labels = generator.integers(0, 10, batch)
    serial, pipeline, gemm = in_turn(
        rounds,
        lambda: _serial_rate(recipe, dtype, images, labels, max(4, batches // 2)),
        lambda: _pipeline_rate(recipe, precision, images, labels, batches),
        lambda: peers.gemm_roofline(widths, batch, dtype, cores, 1.0),
    )
    prefix = f"learn/{network}/{precision}"
    report.add(f"{prefix}/pipeline_over_serial", pipeline, "samples/s", "serial", serial)
    achieved = pipeline * peers.flops(widths) / 1e9
    report.add(f"{prefix}/share_of_gemm", achieved, "GFLOP/s", "gemm_roofline", gemm / 1e9)
    if network == "784-512-512":
        with peers.intra_op_threads(cores):
            report.add(
                f"{prefix}/over_overlay_method", pipeline, "samples/s", "overlay_method", _overlay_rate(widths)
            )
            report.add(
                f"{prefix}/over_backprop", pipeline, "samples/s", "backprop_mlp", _backprop_rate(widths, batch)
            )


def _serial_rate(recipe: Recipe, dtype: torch.dtype, images: np.ndarray, labels: np.ndarray, batches: int) -> float:
    network = Network(recipe, Placement(product_dtype=dtype))
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    network.learn(x, y, 0)

    def work() -> None:
        for step in range(batches):
            network.learn(x, y, step)

    return rate(batches * len(labels), work)


def _pipeline_rate(recipe: Recipe, precision: str, images: np.ndarray, labels: np.ndarray, batches: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.sqlite")
        journal = Journal(path, inputs=recipe.inputs, labels=recipe.labels)
        label_bytes = labels.astype("<u2").tobytes()
        for n in range(1, batches + 1):
            journal.append([Entry("bench", n, n, len(labels), "uint8", label_bytes, images.tobytes())])
        listener = _Learned(batches * len(labels))
        config = {
            "network": recipe,
            "pipeline": {"device": "cpu", "precision": precision},
            "checkpoint": {"every_samples": 0, "every_s": 0},
        }
        pipeline = Pipeline(Config.model_validate(config), journal, ResumeState(), listener, Metrics())

        def work() -> None:
            pipeline.start()
            listener.wait()

        result = rate(batches * len(labels), work)
        pipeline.stop(10.0, save=False)
        journal.close()
        return result


class _Learned:
    """The listener of a pipeline that waits until everything is learned."""

    def __init__(self, seq: int) -> None:
        self._seq = seq
        self._done = threading.Event()
        self._failures: list[Exception] = []

    def on_microbatch(self, microbatch: MicroBatch, version: int) -> None:
        pass

    def on_saving(self, barrier: Barrier) -> None:
        pass

    def on_barrier(self, barrier: Barrier) -> None:
        if barrier.seq == self._seq:
            self._done.set()

    def on_failure(self, error: Exception) -> None:
        self._failures.append(error)
        self._done.set()

    def wait(self) -> None:
        if not self._done.wait(_DEADLINE_S) or self._failures:
            raise RuntimeError(f"the pipeline did not learn its samples: {self._failures}")


def _overlay_rate(widths: tuple[int, ...], samples: int = 50_000, updates: int = 2) -> float:
    method = peers.OverlayMethod(widths)
    images, labels = torch.rand(samples, widths[0]), torch.randint(0, 10, (samples,))
    method.update(images, labels)
    return rate(samples * updates, _repeat(updates, lambda: method.update(images, labels)))


def _backprop_rate(widths: tuple[int, ...], batch: int, updates: int = 60) -> float:
    mlp = peers.BackpropMlp(widths)
    images, labels = torch.rand(batch, widths[0]), torch.randint(0, 10, (batch,))
    mlp.learn(images, labels)
    return rate(batch * updates, _repeat(updates, lambda: mlp.learn(images, labels)))


def _repeat(times: int, work: Callable[[], None]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated
