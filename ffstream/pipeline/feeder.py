"""The feeder reads the journal in order, forms microbatches, applies phases, and places barriers.

Its decisions depend on sequence numbers, counts, journaled events and the seed, so that a run that was killed and
resumed decides the same. The one exception is `learning.partial = "flush"`, which sends a partial microbatch after a
time.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ffstream.config import Config
from ffstream.ff.objective import Phase
from ffstream.journal.journal import Head
from ffstream.pipeline.batcher import Batcher
from ffstream.pipeline.channel import Closed, Outbox
from ffstream.pipeline.listener import Listener
from ffstream.pipeline.messages import Barrier, MicroBatch, Part
from ffstream.pipeline.phases import PhaseSchedule
from ffstream.pipeline.quiet_sleep import QuietSleep
from ffstream.pipeline.replay_buffer import ReplayBuffer
from ffstream.util.threads import LEARNING_NICENESS, Worker

NAME = "ff-feeder"
_IDLE_WAIT_S = 0.5
_PAUSE_WAIT_S = 5.0  # how long a pause waits for a microbatch that is being sent to a slow stage


def publish_is_due(step: int, every: int) -> bool:
    """Whether a snapshot follows the first `step` microbatches: after every so many, and more often at first, while
    each microbatch improves the network a lot."""
    return step % every == 0 or (step < every * 8 and step & (step - 1) == 0)


@dataclass
class FeederState:
    """The feeder's position in the stream; part of every checkpoint.

    `slept` counts the sleep microbatches after sample `seq` that a quiet stream caused.
    """

    step: int = 0
    seq: int = 0
    version: int = 0
    schedule: PhaseSchedule = field(default_factory=PhaseSchedule)
    slept: int = 0

    def move_to(self, seq: int) -> None:
        """Samples up to `seq` are fed, or skipped."""
        if seq != self.seq:
            self.seq, self.slept = seq, 0


class Feeder:
    """Thread `ff-feeder`. `stages` contribute to every barrier, `save_contributors` to saving ones."""

    def __init__(
        self,
        config: Config,
        state: FeederState,
        *,
        batcher: Batcher,
        head: Head,
        replay: ReplayBuffer,
        quiet: QuietSleep,
        out: Outbox,
        stages: Sequence[str],
        save_contributors: Sequence[str],
        listener: Listener,
    ) -> None:
        self.state = state
        self._recipe = config.network
        self._learning = config.learning
        self._checkpoints = config.checkpoint
        self._batcher = batcher
        self._head = head
        self._replay = replay
        self._quiet = quiet
        self._out = out
        self._contributors = tuple(stages)
        self._save_contributors = (NAME, *save_contributors)
        self._listener = listener
        self._requests: SimpleQueue[Future[int]] = SimpleQueue()
        self._stopping = threading.Event()
        self._saves_at_end = True
        self._paused = False
        self._feeding = threading.Lock()  # held while a microbatch is formed and sent
        self._published = (state.step, state.seq)
        self._unsaved = 0  # samples fed since the last saving barrier, without skipped ones
        self._saved_at = time.monotonic()
        self._partial_since = 0.0
        self._partial_seq = 0
        self.idle = False
        self.fed = self.fed_sleep = 0  # microbatches since this feeder was made, and those of them in `sleep`
        self.thread = Worker(NAME, self._work, listener.on_failure, niceness=LEARNING_NICENESS)

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    def stop(self, *, save: bool = True) -> None:
        """Feeds no more. A last barrier follows what was fed; with `save` it saves the state."""
        self._saves_at_end = save
        self._stopping.set()
        self._head.wake()

    def pause(self, paused: bool) -> None:
        """Stops or resumes feeding; requests are still served. The current microbatch is sent before this returns."""
        self._paused = paused
        self._head.wake()
        if self._feeding.acquire(timeout=_PAUSE_WAIT_S):
            self._feeding.release()

    def request_checkpoint(self) -> Future[int]:
        """Sends a saving barrier as soon as possible. The result is its `seq`, once all parts are there."""
        request: Future[int] = Future()
        self._requests.put(request)
        self._head.wake()
        return request

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                if not self._serve_request() and not self._feed_unless_paused():
                    self._idle()
            self._send_barrier(saves=self._saves_at_end)
        except Closed:
            pass
        except Exception as error:
            error.add_note(f"after seq={self.state.seq}")
            raise
        finally:
            self._out.close()

    def _serve_request(self) -> bool:
        try:
            request = self._requests.get_nowait()
        except Empty:
            return False
        self._send_barrier(saves=True, request=request)
        return True

    def _feed_unless_paused(self) -> bool:
        with self._feeding:
            return not self._paused and self._feed()

    def _feed(self) -> bool:
        """Sends the next microbatch, and a barrier if one is due. False when there is nothing to send."""
        state = self.state
        self.thread.progressed()
        scheduled = state.schedule.phase
        phase = self.phase
        if phase == "sleep" and self._can_sleep:
            images, labels, ages = self._replay.for_sleep(state.step)
            micro = MicroBatch(state.step, state.seq, phase, images, labels, 0, ages)
        else:
            batch = self._batcher.next(flush=self._flush_is_due(), until=self._quiet.next_place(state.seq))
            state.move_to(self._batcher.seq)  # past skipped samples, too
            if batch is None:
                return self._quiet_sleep_left > 0 or self._decide_to_sleep()
            images, labels = batch
            micro = MicroBatch(state.step, state.seq, phase, images, labels, len(labels))
            self._listener.on_microbatch(micro, state.version)
            micro = self._replay.beside(micro)
            self._replay.add(images, labels)
        state.step += 1
        self._unsaved += micro.fresh
        if phase == scheduled:
            state.schedule.advance()
        else:
            state.slept += 1
        self.idle = False
        self.fed += 1
        self.fed_sleep += phase == "sleep"
        self._out.put(micro)
        self._send_due_barrier()
        return True

    @property
    def phase(self) -> Phase:
        """The phase of the next microbatch."""
        return "sleep" if self._quiet_sleep_left else self.state.schedule.phase

    @property
    def _can_sleep(self) -> bool:
        """Whether there is something to sleep from: replayed samples, or what the first layer has learned."""
        return self.state.step > 0 if self._recipe.sleeps_without_images else len(self._replay) > 0

    @property
    def _quiet_sleep_left(self) -> int:
        state = self.state
        # Scheduled sleep does not wait for samples, so it comes first.
        sleeps = state.schedule.phase == "wake" and self._can_sleep
        return self._quiet.left(state.seq, state.slept) if sleeps else 0

    def _decide_to_sleep(self) -> bool:
        """Called when there is nothing to feed."""
        incomplete = self._batcher.pending and self._learning.partial == "flush"  # is learned first
        if incomplete or not self._can_sleep:
            return False
        return self._quiet.decide(self.state.seq, self.state.slept, head=self._head.seq, now=time.monotonic())

    def _flush_is_due(self) -> bool:
        if self._learning.partial == "wait" or not self._batcher.pending:
            return False
        now = time.monotonic()
        if self._partial_seq != self._batcher.seq or not self._partial_since:
            self._partial_seq, self._partial_since = self._batcher.seq, now
        return now - self._partial_since >= self._learning.linger_s

    def _send_due_barrier(self) -> None:
        checkpoints = self._checkpoints
        saves = 0 < checkpoints.every_samples <= self._unsaved or (
            0 < checkpoints.every_s <= time.monotonic() - self._saved_at and self._unsaved > 0
        )
        if saves or publish_is_due(self.state.step, self._learning.publish_every):
            self._send_barrier(saves=saves)

    def _send_barrier(self, *, saves: bool, request: Future[int] | None = None) -> None:
        state = self.state
        state.version += 1
        barrier = Barrier(
            step=state.step,
            seq=state.seq,
            version=state.version,
            saves=saves,
            contributors=self._contributors + (self._save_contributors if saves else ()),
            on_complete=partial(self._complete, request),
        )
        self._published = (state.step, state.seq)
        if saves:
            self._unsaved, self._saved_at = 0, time.monotonic()
            self._listener.on_saving(barrier)
            barrier.contribute(NAME, self._part())
        self._out.put(barrier)

    def _complete(self, request: Future[int] | None, barrier: Barrier) -> None:
        self._listener.on_barrier(barrier)
        if request is not None:
            request.set_result(barrier.seq)

    def _part(self) -> Part:
        state = self.state
        tensors, progress = self._replay.state_dict()
        position: dict[str, Any] = {
            "step": state.step,
            "version": state.version,
            "phase_position": state.schedule.position,
            "slept": state.slept,
        }
        return Part(tensors=tensors, progress=position | progress)

    def _idle(self) -> None:
        """When there is nothing to feed: publishes what was learned since the last snapshot, then waits."""
        if self._published != (self.state.step, self.state.seq):
            self._send_barrier(saves=False)
        self.idle = True
        held = self._batcher.pending
        lingers = held and self._learning.partial == "flush"
        quiet_s = self._quiet.wait_s(self.state.slept)
        timeout_s = min(
            _IDLE_WAIT_S,
            self._learning.linger_s if lingers else _IDLE_WAIT_S,
            _IDLE_WAIT_S if quiet_s is None else quiet_s,
        )
        with self.thread.waiting():
            if self._paused:
                self._stopping.wait(0.05)
            else:
                self._head.wait(self._batcher.seq + held, timeout_s)
