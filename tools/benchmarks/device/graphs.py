"""An experiment, not in the product: a CUDA graph for the forward pass of each layer, and one for its update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.layer import Layer
from ffstream.ff.network import build
from tools.benchmarks.device.case import Case


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
