"""Learning speed on one device with different arrangements, beside backpropagation and plain matrix products.

    one_stream       the serial reference: one layer after another, on one stream
    stage_streams    what the product does: a thread and a stream for each layer, with bounded queues between them
    stage_graphs     an experiment, not in the product: one CUDA graph for the forward pass of each layer and one for
                     its update, so that the host launches two graphs instead of about fifty kernels. The learning
                     rate stays at its first value
    backprop_mlp     an MLP of the same widths and batch size, trained by backpropagation
    products         only the forward and the weight-gradient product of every layer

All except `products` copy their images from the host's memory for each microbatch.
"""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.layer import Layer
from ffstream.ff.network import Network, build
from ffstream.ff.placement import Placement
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Channel
from ffstream.pipeline.device import choose_device, choose_product_dtype, make_stream
from ffstream.pipeline.members import StageMembers
from ffstream.pipeline.messages import Barrier, MicroBatch
from ffstream.pipeline.stage import Stage
from ffstream.pipeline.stage_gauges import StageGauges
from tools.benchmarks import peers, roofline
from tools.benchmarks.report import Report

WIDTHS = {"784-512-512": (512, 512), "784-2000x4": (2000,) * 4, "784-2048x8": (2048,) * 8}
DRY_WIDTHS = {"784-16-16": (16, 16), "784-16x4": (16,) * 4, "784-16x8": (16,) * 8}
_QUEUE_DEPTH = 4
_REPEATS = 3
_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Case:
    """A network, a device, and one microbatch on the host: images (B, I) uint8 and labels (B)."""

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    images: Tensor
    labels: Tensor

    @classmethod
    def make(cls, widths: Sequence[int], batch: int, device: torch.device) -> "Case":
        """A case with random images."""
        recipe = make_recipe("fast", widths=list(widths), batch_size=batch, warmup_batch_size=batch, warmup_samples=0)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch, recipe.inputs), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, recipe.labels, (batch,), generator=generator)
        return cls(recipe, device, choose_product_dtype("auto", device), images, labels)

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of inputs, then the units of each layer."""
        return (self.recipe.inputs, *(layer.connection.output_shape(())[0] for layer in self.recipe.layers))

    def placement(self, buffers: int) -> Placement:
        """The placement of its layers."""
        return Placement(self.device, self.dtype, buffers)

    def synchronize(self) -> None:
        """Waits until the device has finished all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Way(Protocol):
    """An arrangement: `run` learns `steps` microbatches and returns when all layers have finished."""

    def run(self, steps: int) -> None: ...


def run(report: Report, *, dry: bool, seconds: float, limit_s: float) -> bool:
    """Measures all networks and batch sizes; starts no further one after `limit_s`. Returns whether none failed."""
    device = choose_device("cpu" if dry else "cuda")
    deadline = time.monotonic() + limit_s
    good = True
    for network, widths in (DRY_WIDTHS if dry else WIDTHS).items():
        for batch in (8, 16) if dry else (256, 2048):
            name = f"gpu/{network}/batch{batch}"
            if time.monotonic() > deadline:
                report.fail(name, f"not started: the limit of {limit_s:g} s has passed")
                good = False
                continue
            good &= _measure(report, name, Case.make(widths, batch, device), seconds)
    return good


def _measure(report: Report, name: str, case: Case, seconds: float) -> bool:
    batch, flops = len(case.labels), roofline.flops(case.recipe)
    found: dict[str, float] = {}
    good = True
    for way, begin in WAYS.items():
        try:
            with begin(case) as running:
                found[way] = batch * _steps_per_second(running, seconds)
        except Exception as error:  # measure the others all the same
            report.fail(f"{name}/{way}", f"{type(error).__name__}: {error}".splitlines()[0])
            good = False
    for way in ("one_stream", "stage_streams", "stage_graphs"):
        for peer in ("backprop_mlp", "one_stream"):
            if way in found and peer in found and way != peer:
                report.add(f"{name}/{way}/over_{peer}", found[way], "samples/s", peer, found[peer])
        if way in found and "products" in found:
            done, possible = (found[each] * flops / 1e12 for each in (way, "products"))
            report.add(f"{name}/{way}/share_of_products", done, "TFLOP/s", "products", possible)
    return good


def _steps_per_second(way: Way, seconds: float) -> float:
    """The median of `_REPEATS` measurements of about `seconds`, after a warm-up."""
    way.run(3)
    steps, taken = 2, _timed(way, 2)
    while taken < seconds / 4:
        steps *= 2
        taken = _timed(way, steps)
    steps = max(2, round(steps * seconds / taken))
    return statistics.median(steps / _timed(way, steps) for _ in range(_REPEATS))


def _timed(way: Way, steps: int) -> float:
    start = time.perf_counter()
    way.run(steps)
    return time.perf_counter() - start


# --- the ways ----------------------------------------------------------------------------------------------------


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


# --- CUDA graphs -------------------------------------------------------------------------------------------------


class _GraphStage:
    """One layer whose forward pass and update are CUDA graphs. On the CPU they are plain calls.

    Graphs read and write fixed memory. The input is copied first, so that the stage before can overwrite its output
    while this one still learns from it.
    """

    def __init__(self, layer: Layer, input: Activities, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.input = input._replace(h_NF=input.h_NF.clone())
        self.taken = self._event()
        self.ready = self._event()
        if self.stream is None:
            self.output = layer.forward(self.input)
            self._forward: Callable[[], Any] = lambda: layer.forward(self.input)
            self._update: Callable[[], Any] = layer.update
        else:
            self._capture(layer, self.stream)

    def _capture(self, layer: Layer, stream: torch.cuda.Stream) -> None:
        initial = layer.state_dict()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(3):  # warm-up before capture: libraries initialise, buffers grow
                layer.forward(self.input)
                layer.update()
        torch.cuda.synchronize()
        forward, update = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, stream=stream):
            self.output = layer.forward(self.input)
        with torch.cuda.graph(update, pool=forward.pool(), stream=stream):
            layer.update()
        self._forward, self._update = forward.replay, update.replay
        layer.load_state_dict(initial)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            forward.replay()  # capture computes nothing, and the next stage is captured with this output
        torch.cuda.synchronize()

    def _event(self) -> Any:
        return torch.cuda.Event() if self.stream is not None else None

    def use(self) -> AbstractContextManager[Any]:
        """Work inside the block is done on this stage's stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def wait(self, event: Any) -> None:
        """Makes later work on the stream wait for the event."""
        if self.stream is not None:
            self.stream.wait_event(event)

    def mark(self, event: Any) -> None:
        """Records the event after the work so far on the stream."""
        if self.stream is not None:
            event.record(self.stream)

    def learn(self, source: Tensor, follower: "_GraphStage | None") -> None:
        """Copies its input, computes its output once the follower has copied the previous one, and updates."""
        self.input.h_NF.copy_(source)
        self.mark(self.taken)
        if follower is not None:
            self.wait(follower.taken)
        self._forward()
        self.mark(self.ready)
        self._update()


class Graphs:
    """All stages, with one thread that launches their graphs."""

    def __init__(self, case: Case) -> None:
        self._case = case
        # A graph always does the same, so it cannot decide to restart.
        self._input, self.layers = build(case.recipe.change(drift="none"), case.placement(1))
        initial = self._input.state_dict()
        activities = self._input.forward(case.images, case.labels, 0, "interleaved")
        self._input.load_state_dict(initial)
        self._stages: list[_GraphStage] = []
        for layer in self.layers:
            self._stages.append(_GraphStage(layer, activities, case.device))
            activities = self._stages[-1].output

    def learn(self, step: int) -> None:
        """One microbatch."""
        first, *rest = self._stages
        followers = [*rest, None]
        with first.use():
            pixels = self._input.forward(self._case.images, self._case.labels, step, "interleaved").h_NF
            first.learn(pixels, followers[0])
        for before, stage, follower in zip(self._stages, rest, followers[1:], strict=False):
            with stage.use():
                stage.wait(before.ready)
                stage.learn(before.output.h_NF, follower)


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
