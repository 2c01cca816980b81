"""A stage: some consecutive layers on a thread of their own (on CUDA: a stream of its own).

A stage takes a microbatch, runs the forward pass, passes the activities on, and only then updates its weights. It
never waits for a gradient. It waits only while the queue after it is full (`block`). The first exception ends the
stage and is reported once.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ffstream.errors import StageFailed
from ffstream.ff.head import Head
from ffstream.ff.input import Input
from ffstream.ff.layer import Layer
from ffstream.ff.member import INPUT, READOUT, Member, joined, layer_name
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Channel, Closed
from ffstream.pipeline.device import DeviceStream
from ffstream.pipeline.layer_gauges import LayerGauges
from ffstream.pipeline.live_error import LIVE, LiveError
from ffstream.pipeline.messages import Barrier, MicroBatch, Part, StageOutput
from ffstream.util import failpoints
from ffstream.util.threads import LEARNING_NICENESS, OnFailure, Worker

_STEPS_REACH = 50  # steps that the running mean of their time reaches back


class Stage:
    """Thread `ff-stage-N`. It ends when its inbox is closed, and closes its outbox."""

    def __init__(
        self,
        index: int,
        layers: Sequence[Layer],
        *,
        inbox: Channel,
        outbox: Channel | None,
        stream: DeviceStream,
        metrics: Metrics,
        on_failure: OnFailure,
        input: Input | None = None,
        readout: Head | None = None,
        live: LiveError | None = None,
        seq: int = 0,
    ) -> None:
        """The first stage has the `input` and gets microbatches; later ones get the output of the stage before. The
        last one has the `readout`, if there is one, and counts `live` errors.

        `on_failure` is called at most once.
        """
        self.name = f"ff-stage-{index}"
        self.layers = layers
        self.last_seq = seq  # learned so far, or skipped before a barrier that has passed
        self.steps = 0
        self.inbox = inbox
        self._input = input
        self._readout = readout
        self._live = live
        self._gauges = LayerGauges(layers, metrics)
        self._learned = 0
        self._step_s: float | None = None  # a running mean
        self._outbox = outbox
        self._stream = stream
        self._metrics = metrics
        self._label = str(index)
        self._step_seconds = metrics.step_seconds.labels(self._label)
        self.thread = Worker(self.name, self._work, on_failure, niceness=LEARNING_NICENESS)

    @property
    def members(self) -> dict[str, Member]:
        """The parts of this stage that have weights and state, by the prefix of their tensors."""
        own: dict[str, Member] = {} if self._input is None else {INPUT: self._input}
        own |= {layer_name(layer.index): layer for layer in self.layers}
        return own if self._readout is None else own | {READOUT: self._readout}

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    def _work(self) -> None:
        try:
            with self._stream.use():
                self._process_items()
        except Closed:
            pass
        except Exception as error:
            error.add_note(f"after step={self.steps} seq={self.last_seq}")
            raise
        finally:
            self.inbox.close(drop=True)
            if self._outbox is not None:
                self._outbox.close()

    def _process_items(self) -> None:
        while True:
            with self.thread.waiting():
                item = self.inbox.get()
            if isinstance(item, Barrier):
                self._pass(item)
            else:
                self._learn(item)
            self.steps += 1

    def _learn(self, item: MicroBatch | StageOutput) -> None:
        start = time.perf_counter()
        output = self._forward(item)
        waited = 0.0
        if self._outbox is not None:
            failpoints.reached("pass_on.before")
            before = time.perf_counter()
            self._outbox.put(output)  # before the update: no layer waits for this one to learn
            waited = time.perf_counter() - before
            failpoints.reached("pass_on.after")
        for layer in self.layers:
            layer.update()
        scored = output.activities.scored if self._readout is None else self._readout.learn(output.activities)
        if self._live is not None:
            self._live.add(scored)
        self._stream.settle()
        self._took(time.perf_counter() - start - waited)
        if self._outbox is None:
            failpoints.reached("learned")
            self._metrics.samples_learned.inc(output.fresh)
        self.last_seq = output.seq
        self._learned += output.fresh

    def _took(self, seconds: float) -> None:
        self._step_seconds.observe(seconds)
        self._step_s = seconds if self._step_s is None else self._step_s + (seconds - self._step_s) / _STEPS_REACH

    def _forward(self, item: MicroBatch | StageOutput) -> StageOutput:
        if isinstance(item, MicroBatch):
            assert self._input is not None, "only the first stage gets images"
            activities = self._input.forward(item.images, item.labels, item.step, item.phase, item.ages)
        else:
            self._stream.receive(item.activities, item.ready)
            activities = item.activities
        for layer in self.layers:
            activities = layer.forward(activities)
        return StageOutput(item.step, item.seq, item.fresh, activities, self._stream.record())

    def _pass(self, barrier: Barrier) -> None:
        members = self.members.items()
        weights = joined((name, member.weights()) for name, member in members)
        tensors = joined((name, member.state_dict()) for name, member in members) if barrier.saves else {}
        self.last_seq = max(self.last_seq, barrier.seq)
        progress = self._set_layer_gauges()
        self._stream.synchronize()  # the copies are read by other threads
        _expect_finite(tensors, barrier.seq)
        if self._outbox is not None:
            self._outbox.put(barrier)
        barrier.contribute(self.name, Part(weights, tensors, progress if barrier.saves else {}))

    def _set_layer_gauges(self) -> dict[str, Any]:
        """Returns what a checkpoint holds besides tensors."""
        self._gauges.set(self.last_seq, self._learned)
        if self._readout is not None:
            self._metrics.loss.labels(READOUT).set(self._readout.loss())
        if self._live is None:
            return {}
        self._live.count()
        return {LIVE: self._live.record.state()}

    def connect_gauges(self) -> None:
        """Gauges show this stage from now on, and nothing of a run that a rollback has ended."""
        self._set_layer_gauges()
        metrics, label = self._metrics, self._label
        metrics.queue_depth.labels(label).set_function(lambda: len(self.inbox))
        metrics.stage_seq.labels(label).set_function(lambda: self.last_seq)
        metrics.skipped.labels(label).set_function(lambda: self.inbox.skipped)

    def describe(self) -> dict[str, Any]:
        """For the status reply."""
        return {
            "name": self.name,
            "layers": [layer.index for layer in self.layers],
            "queue_depth": len(self.inbox),
            "last_seq": self.last_seq,
            "skipped": self.inbox.skipped,
        }

    def describe_layers(self) -> list[dict[str, Any]]:
        """Its layers for the status reply. Figures are those of the last barriers; nothing is computed."""
        own = {"step_s": self._step_s, "queue_depth": len(self.inbox), "last_seq": self.last_seq}
        return [{"index": layer.index, **self._gauges.known(layer.index), **own} for layer in self.layers]


def _expect_finite(tensors: Mapping[str, Tensor], seq: int) -> None:
    """Raises StageFailed for state that no later update can repair: checkpoints of it would replace all good ones."""
    for name, value in tensors.items():
        if value.is_floating_point() and not math.isfinite(float(value.sum())):
            raise StageFailed(
                f"learning has diverged: {name} is not finite after sample {seq}",
                hint="lower network.learning_rate, and begin with a new state folder; earlier checkpoints are kept",
            )
