"""The learner: feeder, stages and channels, started and stopped as one.

    feeder ─channel→ stage 0 ─channel→ stage 1 … stage n      every thread ends when its inbox is closed

One learner goes from one state to a later one. Rolling back means building another from an older state.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ffstream.config import Config
from ffstream.ff.layer import Placement
from ffstream.ff.member import Member, below, joined
from ffstream.ff.network import build
from ffstream.journal.journal import Head
from ffstream.journal.reader import Reader
from ffstream.metrics import Metrics
from ffstream.pipeline.batcher import Batcher
from ffstream.pipeline.channel import Channel
from ffstream.pipeline.device import choose_device, choose_product_dtype, make_stream
from ffstream.pipeline.feeder import NAME as FEEDER
from ffstream.pipeline.feeder import Feeder, FeederState
from ffstream.pipeline.messages import Barrier, MicroBatch, StageOutput
from ffstream.pipeline.phases import PhaseSchedule
from ffstream.pipeline.replay_buffer import ReplayBuffer
from ffstream.pipeline.restore import check_network, check_positions, check_replay
from ffstream.pipeline.stage import Stage, Wiring
from ffstream.util.threads import OnFailure, Worker


class StartingPoint(NamedTuple):
    """Where a learner begins: nothing learned, or what a checkpoint holds.

    In one process versions of snapshots only go up; after a death they may come again.
    """

    seq: int = 0
    tensors: Mapping[str, Tensor] = {}
    progress: Mapping[str, Any] = {}
    version_at_least: int = 0

    @property
    def version(self) -> int:
        """Of the snapshot that this point is."""
        saved: int = self.progress.get("version", 0)
        return max(self.version_at_least, saved)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is learned yet."""
        return not (self.seq or self.tensors or self.progress)


class Callbacks(NamedTuple):
    """What the learner reports. Called on its threads; none may block for long."""

    on_barrier: Callable[[Barrier], None]
    on_failure: OnFailure
    observe: Callable[[MicroBatch, int], None] = lambda microbatch, version: None
    on_saving: Callable[[Barrier], None] = lambda barrier: None  # in stream order, for other contributors


class Pipeline:
    """A learner on the samples of a journal."""

    def __init__(
        self,
        config: Config,
        *,
        journal: Path,
        head: Head,
        start: StartingPoint,
        callbacks: Callbacks,
        metrics: Metrics,
        save_contributors: Sequence[str] = (),
    ) -> None:
        self.device = choose_device(config.pipeline.device)
        self.product_dtype = choose_product_dtype(config.pipeline.precision, self.device)
        self._config = config
        self._callbacks = callbacks
        self._metrics = metrics
        self._save_contributors = save_contributors
        self.applied_seq = start.seq
        self._advancing = threading.Lock()
        self.stages = self._build_stages(start)
        self._restore(start)
        self.learned = 0
        self._reader = Reader(journal)
        self._feeder = self._build_feeder(head, start)

    def _build_stages(self, start: StartingPoint) -> list[Stage]:
        options = self._config.pipeline
        # A stage that skips keeps an activity for longer than any ring lasts: the stage before does not wait for it.
        buffers = 0 if options.overflow == "skip" else options.queue_depth + 2
        placement = Placement(self.device, self.product_dtype, buffers)
        input, layers = build(self._config.network, placement)
        sizes = options.stages or (1,) * len(layers)
        # The feeder's own channel always blocks: skipping there would leave samples unlearned by every layer.
        channels = [
            Channel(options.queue_depth, options.overflow if index else "block") for index in range(len(sizes))
        ]
        wiring = Wiring(self._on_learned, self._callbacks.on_failure, self._metrics)
        stages, at = [], 0
        for index, size in enumerate(sizes):
            outbox = channels[index + 1] if index + 1 < len(sizes) else None
            stages.append(
                Stage(
                    index,
                    layers[at : at + size],
                    channels[index],
                    outbox,
                    make_stream(self.device, options.queue_depth),
                    wiring,
                    input=None if index else input,
                    seq=start.seq,
                )
            )
            at += size
        return stages

    def _restore(self, start: StartingPoint) -> None:
        if start.is_fresh:
            return
        check_network(start.seq, start.tensors, self._members)
        check_positions(start.seq, start.progress)
        for name, member in self._members.items():
            member.load_state_dict(below(name, start.tensors))

    @property
    def _members(self) -> dict[str, Member]:
        return {name: member for stage in self.stages for name, member in stage.members.items()}

    def _build_feeder(self, head: Head, start: StartingPoint) -> Feeder:
        recipe, learning = self._config.network, self._config.learning
        schedule = PhaseSchedule(learning.wake, learning.sleep, start.progress.get("phase_position", 0))
        replay = ReplayBuffer(recipe, used=recipe.replay > 0 or schedule.separate)
        if replay.capacity:
            size = {"capacity": replay.capacity, "inputs": recipe.inputs, "labels": recipe.labels}
            check_replay(start.seq, start.tensors, start.progress, **size)
            if "replay.added" in start.progress:
                replay.load_state_dict(dict(start.tensors), start.progress["replay.added"])
        state = FeederState(start.progress.get("step", 0), start.seq, start.version, schedule)
        return Feeder(
            self._config,
            state,
            batcher=Batcher(self._reader, recipe, start.seq),
            head=head,
            replay=replay,
            out=self.stages[0].inbox,
            make_barrier=self._make_barrier,
            observe=self._callbacks.observe,
            on_failure=self._callbacks.on_failure,
        )

    def _make_barrier(
        self, *, step: int, seq: int, version: int, saves: bool, on_complete: Callable[[Barrier], None] | None
    ) -> Barrier:
        contributors = [stage.name for stage in self.stages]
        if saves:
            contributors += [FEEDER, *self._save_contributors]

        def complete(barrier: Barrier) -> None:
            self._advance(barrier.seq)  # microbatches skipped before it are done with too
            self._callbacks.on_barrier(barrier)
            if on_complete is not None:
                on_complete(barrier)

        barrier = Barrier(
            step=step, seq=seq, version=version, saves=saves, contributors=contributors, on_complete=complete
        )
        if saves:
            self._callbacks.on_saving(barrier)
        return barrier

    def _advance(self, seq: int) -> None:
        with self._advancing:  # barriers complete on threads of their own
            self.applied_seq = max(self.applied_seq, seq)

    def _on_learned(self, output: StageOutput) -> None:
        self._advance(output.seq)
        self.learned += output.fresh
        self._metrics.samples_learned.inc(output.fresh)

    def weights(self) -> dict[str, Tensor]:
        """The weights that predict, by name. Before `start` only: then the stages' threads own them."""
        return joined((name, member.weights()) for name, member in self._members.items())

    def start(self) -> None:
        """Starts every thread, the last stage first, and returns once they run."""
        for stage in reversed(self.stages):
            stage.start()
        self._feeder.start()

    def stop(self, timeout_s: float, *, save: bool = True) -> bool:
        """Feeds no more, lets what was fed be learned, sends a last barrier. False if the deadline passed."""
        deadline = time.monotonic() + timeout_s
        self._feeder.stop(save=save)
        ended = [thread.ends(max(0.0, deadline - time.monotonic())) for thread in reversed(self.threads)]
        if all(ended):
            self._reader.close()
        return all(ended)

    def abort(self, timeout_s: float) -> bool:
        """Drops what is in the queues and ends the threads as soon as they look up."""
        for stage in self.stages:
            stage.inbox.close(drop=True)
        return self.stop(timeout_s, save=False)

    def skipped_up_to(self, seq: int) -> int:
        """How many of the samples 1 … `seq` are not to be learned."""
        return self._reader.skips.count(seq)

    def pause(self, paused: bool) -> None:
        """Stops or resumes feeding."""
        self._feeder.pause(paused)

    @property
    def fed_seq(self) -> int:
        """The last sample that was fed to the first stage; more only come while it is not paused."""
        return self._feeder.state.seq

    @property
    def phase(self) -> str:
        """The phase of the next microbatch."""
        return self._feeder.state.schedule.phase

    def request_checkpoint(self, on_complete: Callable[[Barrier], None]) -> None:
        """Sends a saving barrier now."""
        self._feeder.request_checkpoint(on_complete)

    @property
    def threads(self) -> list[Worker]:
        """The last stage's first: when it is stuck, those before it only wait for it."""
        return [*(stage.thread for stage in reversed(self.stages)), self._feeder.thread]

    def describe(self) -> list[dict[str, Any]]:
        """Each stage for the status reply."""
        return [
            {
                "name": stage.name,
                "layers": [layer.index for layer in stage.layers],
                "queue_depth": len(stage.inbox),
                "last_seq": stage.last_seq,
                "skipped": stage.inbox.skipped,
            }
            for stage in self.stages
        ]
