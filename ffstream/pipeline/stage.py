"""A stage: some consecutive layers on a thread of their own (on CUDA: a stream of its own).

Takes a microbatch, computes forward, hands on, and only then updates. Never waits for a gradient; waits only for a
full queue behind it (`block`). The first exception ends the stage and is reported, once.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ffstream import moments
from ffstream.ff.input_layer import InputLayer
from ffstream.ff.network import LaterLayer
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Channel, Closed
from ffstream.pipeline.device import CpuLane
from ffstream.pipeline.messages import Barrier, Handed, MicroBatch, Part
from ffstream.threads import LEARNING_NICENESS, OnFailure, Worker


class Wiring(NamedTuple):
    """What a stage reports to. `on_learned` is called by the last stage only; `on_failure` at most once a stage."""

    on_learned: Callable[[Handed], None]
    on_failure: OnFailure
    metrics: Metrics


class Stage:
    """Thread `ff-stage-N`. It ends when its inbox is closed, and closes its outbox."""

    def __init__(
        self,
        index: int,
        layers: Sequence[InputLayer | LaterLayer],
        inbox: Channel,
        outbox: Channel | None,
        lane: CpuLane,
        wiring: Wiring,
        seq: int = 0,
    ) -> None:
        self.name = f"ff-stage-{index}"
        self.layers = layers
        self.last_seq = seq  # learned so far
        self.steps = 0
        self.inbox = inbox
        self._outbox = outbox
        self._lane = lane
        self._wiring = wiring
        self._step_seconds = wiring.metrics.step_seconds.labels(str(index))
        self.thread = Worker(self.name, self._work, wiring.on_failure, niceness=LEARNING_NICENESS)

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    def _work(self) -> None:
        try:
            with self._lane.use():
                self._learn_what_comes()
        except Closed:
            pass
        except Exception as error:
            error.add_note(f"after step={self.steps} seq={self.last_seq}")
            raise
        finally:
            self.inbox.close(drop=True)
            if self._outbox is not None:
                self._outbox.close()

    def _learn_what_comes(self) -> None:
        while True:
            with self.thread.waiting():
                item = self.inbox.get()
            if isinstance(item, Barrier):
                self._pass(item)
            else:
                self._learn(item)
            self.steps += 1

    def _learn(self, item: MicroBatch | Handed) -> None:
        start = time.perf_counter()
        handed = self._forward(item)
        waited = 0.0
        if self._outbox is not None:
            moments.reached("hand_on.before")
            before = time.perf_counter()
            self._outbox.put(handed)  # before the update: no layer waits for this one to learn
            waited = time.perf_counter() - before
            moments.reached("hand_on.after")
        for layer in self.layers:
            layer.update()
        self._lane.settle()
        self.last_seq = handed.seq
        self._step_seconds.observe(time.perf_counter() - start - waited)
        if self._outbox is None:
            moments.reached("learned")
            self._wiring.on_learned(handed)

    def _forward(self, item: MicroBatch | Handed) -> Handed:
        rest = self.layers
        if isinstance(item, MicroBatch):
            first = self.layers[0]
            assert isinstance(first, InputLayer), "only the first stage is fed with images"
            activities = first.forward(item.images, item.labels, item.step, item.polarity)
            rest = self.layers[1:]
        else:
            self._lane.receive(item.activities, item.ready)
            activities = item.activities
        for layer in rest:
            assert not isinstance(layer, InputLayer)
            activities = layer.forward(activities)
        return Handed(item.step, item.seq, item.fresh, activities, self._lane.hand_over())

    def _pass(self, barrier: Barrier) -> None:
        tensors: dict[str, Tensor] = {}
        metrics = self._wiring.metrics
        for layer in self.layers:
            barrier.weights[layer.index] = layer.averaged()
            if barrier.saves:
                tensors |= {f"layers.{layer.index}.{name}": value for name, value in layer.state().items()}
            figures = layer.figures()
            label = str(layer.index)
            metrics.goodness.labels(label, "positive").set(figures.goodness_positive)
            metrics.goodness.labels(label, "negative").set(figures.goodness_negative)
            metrics.loss.labels(label).set(figures.loss)
        self._lane.synchronize()  # the copies are read by other threads
        if self._outbox is not None:
            self._outbox.put(barrier)
        barrier.contribute(self.name, Part(tensors, {}))
