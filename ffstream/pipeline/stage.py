"""A stage: some consecutive layers on a thread of their own (on CUDA: a stream of its own).

A stage takes a microbatch, runs the forward pass, passes the activities on, and only then updates its weights. It
never waits for a gradient. It waits only while the queue after it is full (`block`). The first exception ends the
stage and is reported once. Whether the queues lead to other threads or to other machines makes no difference here.
"""

import math
import time
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ffstream.checkpoint.replicas import MERGER
from ffstream.errors import StageFailed
from ffstream.ff.member import joined
from ffstream.ff.recurrent import steps_of
from ffstream.pipeline.channel import Closed, Inbox, Outbox
from ffstream.pipeline.device import DeviceStream
from ffstream.pipeline.members import StageMembers
from ffstream.pipeline.messages import Barrier, Merge, MicroBatch, Part, StageOutput
from ffstream.pipeline.stage_gauges import Observer
from ffstream.util import failpoints
from ffstream.util.threads import LEARNING_NICENESS, OnFailure, Worker


class Merger(Protocol):
    """Merges the state of a stage with those of the same stage in other replicas."""

    def merge(self, members: StageMembers) -> None:
        """The members continue from the merged state. Raises Closed."""

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of what later merges depend on."""


class Stage:
    """Thread `ff-stage-N`. It ends when its inbox is closed, and closes its outbox."""

    def __init__(
        self,
        name: str,
        members: StageMembers,
        *,
        inbox: Inbox,
        outbox: Outbox | None,
        stream: DeviceStream,
        observer: Observer,
        on_failure: OnFailure,
        merger: Merger | None = None,
        seq: int = 0,
    ) -> None:
        """The stage with the `input` gets microbatches; later ones get the output of the stage before.

        `on_failure` is called at most once.
        """
        self.name = name
        self.members = members
        self.layers = members.layers
        self._steps = steps_of(members.layers)
        self.last_seq = seq  # learned so far, or skipped before a barrier that has passed
        self.steps = 0
        self.inbox = inbox
        self._outbox = outbox
        self._stream = stream
        self._observer = observer
        self._merger = merger
        self.thread = Worker(name, self._work, on_failure, niceness=LEARNING_NICENESS)

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
            elif isinstance(item, Merge):
                self._merge(item)
            else:
                self._learn(item)
            self.steps += 1

    def _learn(self, item: MicroBatch | StageOutput) -> None:
        start = time.perf_counter()
        members = self.members
        output = self._forward(item)
        waited = 0.0
        if self._outbox is not None:
            failpoints.reached("pass_on.before")
            before = time.perf_counter()
            self._outbox.put(output)  # before the update: no layer waits for this one to learn
            waited = time.perf_counter() - before
            failpoints.reached("pass_on.after")
        for step in self._steps:
            step.update()
        readout = members.readout
        scored = output.activities.scored if readout is None else readout.learn(output.activities)
        if members.live is not None:
            members.live.add(scored)
        self._stream.settle()
        if self._outbox is None:
            failpoints.reached("learned")
        self.last_seq = output.seq
        self._observer.on_step(time.perf_counter() - start - waited, output.seq, output.fresh)

    def _forward(self, item: MicroBatch | StageOutput) -> StageOutput:
        if isinstance(item, MicroBatch):
            assert self.members.input is not None, "only the first stage gets images"
            activities = self.members.input.forward(
                item.images, item.labels, item.step, item.phase, item.ages, item.replicas
            )
        else:
            self._stream.receive(item.activities, item.ready)
            activities = item.activities
        for step in self._steps:
            activities = step.forward(activities)
        return StageOutput(item.step, item.seq, item.fresh, activities, self._stream.record())

    def _merge(self, item: Merge) -> None:
        assert self._merger is not None, "only replicas merge"
        if self._outbox is not None:
            self._outbox.put(item)
        self._merger.merge(self.members)

    def _state_dict(self) -> dict[str, Tensor]:
        state = self.members.state_dict()
        return state if self._merger is None else state | joined([(MERGER, self._merger.state_dict())])

    def _pass(self, barrier: Barrier) -> None:
        weights = self.members.weights()
        tensors = self._state_dict() if barrier.saves else {}
        self.last_seq = max(self.last_seq, barrier.seq)
        self._observer.on_barrier(self.members.figures(self.last_seq))
        self._stream.synchronize()  # the copies are read by other threads
        _expect_finite(tensors, barrier.seq)
        if self._outbox is not None:
            self._outbox.put(barrier)
        barrier.contribute(self.name, Part(weights, tensors, self.members.progress() if barrier.saves else {}))


def _expect_finite(tensors: Mapping[str, Tensor], seq: int) -> None:
    """Raises StageFailed for state that no later update can repair: checkpoints of it would replace all good ones."""
    for name, value in tensors.items():
        if value.is_floating_point() and not math.isfinite(float(value.sum())):
            raise StageFailed(
                f"learning has diverged: {name} is not finite after sample {seq}",
                hint="lower network.learning_rate, and begin with a new state folder; earlier checkpoints are kept",
            )
