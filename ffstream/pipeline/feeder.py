"""The feeder reads the journal in order, forms microbatches, applies phases, and chooses where barriers stand.

What it decides depends on sequence numbers, counts and the seed (only the flush of a partial microbatch on time),
so that a run that was killed and resumed decides the same.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch

from ffstream.config import Config
from ffstream.journal.journal import Head
from ffstream.pipeline.batcher import Batcher
from ffstream.pipeline.channel import Channel, Closed
from ffstream.pipeline.messages import Barrier, MicroBatch, Part
from ffstream.pipeline.phases import PhaseSchedule
from ffstream.pipeline.replay_buffer import ReplayBuffer
from ffstream.util.threads import LEARNING_NICENESS, OnFailure, Worker

NAME = "ff-feeder"
_IDLE_WAIT_S = 0.5
_IN_HAND_S = 5.0  # a stage that is slower holds up the feeder, not who pauses it


@dataclass
class FeederState:
    """Where the feeder stands; part of every checkpoint."""

    step: int = 0
    seq: int = 0
    version: int = 0
    schedule: PhaseSchedule = field(default_factory=PhaseSchedule)


MakeBarrier = Callable[..., Barrier]


class Feeder:
    """Thread `ff-feeder`. `observe` sees every fresh microbatch before it is learned, and must not block."""

    def __init__(
        self,
        config: Config,
        state: FeederState,
        *,
        batcher: Batcher,
        head: Head,
        replay: ReplayBuffer,
        out: Channel,
        make_barrier: MakeBarrier,
        observe: Callable[[MicroBatch, int], None],
        on_failure: OnFailure,
    ) -> None:
        self.state = state
        self._recipe = config.network
        self._learning = config.learning
        self._checkpoints = config.checkpoint
        self._batcher = batcher
        self._head = head
        self._replay = replay
        self._out = out
        self._make_barrier = make_barrier
        self._observe = observe
        self._requests: SimpleQueue[Callable[[Barrier], None]] = SimpleQueue()
        self._stopping = threading.Event()
        self._saves_at_end = True
        self._paused = False
        self._in_hand = threading.Lock()  # held while a microbatch is cut and sent
        self._published = (state.step, state.seq)
        self._unsaved = 0  # samples fed since the last saving barrier; skipped ones leave no trace in where it stands
        self._saved_at = time.monotonic()
        self._partial_since = 0.0
        self._partial_seq = 0
        self.idle = False
        self.thread = Worker(NAME, self._work, on_failure, niceness=LEARNING_NICENESS)

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    def stop(self, *, save: bool = True) -> None:
        """Feeds no more; a last barrier (that saves, if wanted) follows what was fed."""
        self._saves_at_end = save
        self._stopping.set()
        self._head.wake()

    def pause(self, paused: bool) -> None:
        """Stops or resumes feeding; everything else goes on. A microbatch in hand goes out before this returns."""
        self._paused = paused
        self._head.wake()
        if self._in_hand.acquire(timeout=_IN_HAND_S):
            self._in_hand.release()

    def request_checkpoint(self, on_complete: Callable[[Barrier], None]) -> None:
        """Sends a saving barrier as soon as possible; `on_complete` gets it when all parts are there."""
        self._requests.put(on_complete)
        self._head.wake()

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
            on_complete = self._requests.get_nowait()
        except Empty:
            return False
        self._send_barrier(saves=True, on_complete=on_complete)
        return True

    def _feed_unless_paused(self) -> bool:
        with self._in_hand:
            return not self._paused and self._feed()

    def _feed(self) -> bool:
        """Sends the next microbatch, and a barrier if one is due. False when there is nothing to send."""
        state = self.state
        self.thread.progressed()
        phase = state.schedule.phase
        if phase == "sleep" and len(self._replay):
            images, labels = self._replay.draw(self._recipe.batch_size, state.step)
            fresh = 0
        else:
            batch = self._batcher.next(flush=self._flush_is_due())
            state.seq = self._batcher.seq  # samples that are skipped are done with, too
            if batch is None:
                return False
            images, labels = batch
            fresh = len(labels)
        micro = MicroBatch(state.step, state.seq, phase, images, labels, fresh)
        if fresh:
            self._observe(micro, state.version)
            micro = self._add_replay(micro)
            self._replay.add(images, labels)
        state.step += 1
        self._unsaved += fresh
        state.schedule.advance()
        self.idle = False
        self._out.put(micro)
        self._send_due_barrier()
        return True

    def _add_replay(self, micro: MicroBatch) -> MicroBatch:
        """Puts replayed samples beside the fresh ones, so that one update learns from both."""
        count = self._recipe.replay * micro.fresh // self._recipe.batch_size
        if not count or not len(self._replay):
            return micro
        images, labels = self._replay.draw(count, micro.step)
        if micro.images.dtype != torch.uint8:
            images = images.to(torch.float32).div_(255)
        return micro._replace(images=torch.cat((micro.images, images)), labels=torch.cat((micro.labels, labels)))

    def _flush_is_due(self) -> bool:
        if self._learning.partial == "wait" or not self._batcher.pending:
            return False
        now = time.monotonic()
        if self._partial_seq != self._batcher.seq or not self._partial_since:
            self._partial_seq, self._partial_since = self._batcher.seq, now
        return now - self._partial_since >= self._learning.linger_s

    def _send_due_barrier(self) -> None:
        state, checkpoints, publish_every = self.state, self._checkpoints, self._learning.publish_every
        # Often at first, while every microbatch makes the network better, then at a steady pace.
        warmup = state.step < publish_every * 8 and state.step & (state.step - 1) == 0
        saves = 0 < checkpoints.every_samples <= self._unsaved or (
            0 < checkpoints.every_s <= time.monotonic() - self._saved_at and self._unsaved > 0
        )
        if warmup or saves or state.step % publish_every == 0:
            self._send_barrier(saves=saves)

    def _send_barrier(self, *, saves: bool, on_complete: Callable[[Barrier], None] | None = None) -> None:
        state = self.state
        state.version += 1
        barrier = self._make_barrier(
            step=state.step, seq=state.seq, version=state.version, saves=saves, on_complete=on_complete
        )
        self._published = (state.step, state.seq)
        if saves:
            self._unsaved, self._saved_at = 0, time.monotonic()
            barrier.contribute(NAME, self._part())
        self._out.put(barrier)

    def _part(self) -> Part:
        state = self.state
        tensors, progress = self._replay.state_dict()
        position: dict[str, Any] = {
            "step": state.step,
            "version": state.version,
            "phase_position": state.schedule.position,
        }
        return Part(tensors=tensors, progress=position | progress)

    def _idle(self) -> None:
        """Nothing to feed: publishes what was learned since the last snapshot, then waits for more."""
        if self._published != (self.state.step, self.state.seq):
            self._send_barrier(saves=False)
        self.idle = True
        held = self._batcher.pending
        lingers = held and self._learning.partial == "flush"
        timeout_s = min(_IDLE_WAIT_S, self._learning.linger_s) if lingers else _IDLE_WAIT_S
        with self.thread.waiting():
            if self._paused:
                self._stopping.wait(0.05)
            else:
                self._head.wait(self._batcher.seq + held, timeout_s)
