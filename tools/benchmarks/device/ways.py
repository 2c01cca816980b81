"""The arrangements, and what they are compared with."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from ffstream.ff.network import Network, build
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Channel
from ffstream.pipeline.device import make_stream
from ffstream.pipeline.members import StageMembers
from ffstream.pipeline.messages import Barrier, MicroBatch
from ffstream.pipeline.stage import Stage
from ffstream.pipeline.stage_gauges import StageGauges
from tools.benchmarks import peers
from tools.benchmarks.device.case import Case
from tools.benchmarks.device.graphs import Graphs

_QUEUE_DEPTH = 4
_DEADLINE_S = 60.0


class Way(Protocol):
    """An arrangement: `run` learns `steps` microbatches and returns when all layers have finished."""

    def run(self, steps: int) -> None: ...


class _Repeated:
    """Calls a function for each step."""

    def __init__(self, case: Case, work: Callable[[int], object]) -> None:
        self._case, self._work = case, work

    def run(self, steps: int) -> None:
        for step in range(steps):
            self._work(step)
        self._case.synchronize()


@contextmanager
def one_stream(case: Case) -> Iterator[Way]:
    """The serial reference on the device."""
    network = Network(case.recipe, case.placement(1))
    yield _Repeated(case, lambda step: network.learn(case.images, case.labels, step))


@contextmanager
def backprop(case: Case) -> Iterator[Way]:
    """Its matrix products have the same dtype as those of the others."""
    mlp = peers.BackpropMlp(case.widths, device=case.device)

    def learn(step: int) -> None:
        images = case.images.to(case.device).to(torch.float32).mul_(1 / 255)
        with torch.autocast(case.device.type, case.dtype, enabled=case.dtype != torch.float32):
            mlp.learn(images, case.labels.to(case.device))

    yield _Repeated(case, learn)


@contextmanager
def products(case: Case) -> Iterator[Way]:
    """x Wᵀ and eᵀ x of every layer."""
    batch = len(case.labels)
    shapes = []
    for inputs, outputs in itertools.pairwise(case.widths):
        x, w, e = (
            torch.randn(*shape, device=case.device).to(case.dtype)
            for shape in ((batch, inputs), (outputs, inputs), (batch, outputs))
        )
        shapes.append((x, w, e, torch.empty_like(e), torch.empty_like(w)))

    def multiply(step: int) -> None:
        for x, w, e, z, gradient in shapes:
            torch.mm(x, w.t(), out=z)
            torch.mm(e.t(), x, out=gradient)

    yield _Repeated(case, multiply)


class _Stages:
    """The product's stages, with microbatches from this thread."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._failures: list[Exception] = []
        self._done = threading.Event()
        input, layers = build(case.recipe, case.placement(_QUEUE_DEPTH + 2))
        channels = [Channel(_QUEUE_DEPTH) for _ in layers]
        self._inbox = channels[0]
        metrics = Metrics()
        self.stages = [
            Stage(
                f"ff-stage-{index}",
                StageMembers([layer], None if index else input),
                inbox=channels[index],
                outbox=channels[index + 1] if index + 1 < len(layers) else None,
                stream=make_stream(case.device, _QUEUE_DEPTH),
                observer=StageGauges(str(index), [index], 0, metrics, is_last=index + 1 == len(layers)),
                on_failure=self._on_failure,
            )
            for index, layer in enumerate(layers)
        ]
        for stage in reversed(self.stages):
            stage.start()

    def _on_failure(self, error: Exception) -> None:
        self._failures.append(error)
        self._done.set()

    def run(self, steps: int) -> None:
        self._done.clear()
        inbox, size = self._inbox, len(self._case.labels)
        for step in range(steps):
            inbox.put(MicroBatch(step, step * size, "interleaved", self._case.images, self._case.labels, size))
        barrier = Barrier(
            step=steps,
            seq=steps * size,
            version=1,
            saves=False,
            contributors=[stage.name for stage in self.stages],
            on_complete=lambda barrier: self._done.set(),
        )
        inbox.put(barrier)
        if not self._done.wait(_DEADLINE_S):
            raise TimeoutError(f"the stages did not learn {steps} microbatches in {_DEADLINE_S:g} s")
        if self._failures:
            raise self._failures[0]

    def end(self) -> None:
        """Returns when all threads have ended."""
        self._inbox.close()
        for stage in self.stages:
            stage.thread.join(_DEADLINE_S)


@contextmanager
def stage_streams(case: Case) -> Iterator[Way]:
    """The product's stages without journal and feeder."""
    stages = _Stages(case)
    try:
        yield stages
    finally:
        stages.end()


@contextmanager
def stage_graphs(case: Case) -> Iterator[Way]:
    """Captured once, replayed for each microbatch."""
    yield _Repeated(case, Graphs(case).learn)


WAYS: dict[str, Callable[[Case], AbstractContextManager[Way]]] = {
    "products": products,
    "backprop_mlp": backprop,
    "one_stream": one_stream,
    "stage_streams": stage_streams,
    "stage_graphs": stage_graphs,
}
