"""What operates on the training run: recovers it, takes checkpoints, pauses it, rolls it back, ends it.

    journal → training run ─┬→ snapshots → predictions
                            └→ checkpoints

A rollback ends the run and starts another one from an older checkpoint; snapshots and checkpoints live as long as the
daemon. `rollback` says what happens if the process dies at any line of it.
"""

import gc
import logging
import threading
import time
from typing import Any, NamedTuple

from ffstream.checkpoint.writer import Written
from ffstream.config import Config
from ffstream.errors import (
    Busy,
    DeadlineExceeded,
    Paused,
    SequenceUnknown,
    StageFailed,
    Unavailable,
)
from ffstream.journal import events, skips
from ffstream.journal.journal import Journal
from ffstream.learning.checkpoints import Checkpoints
from ffstream.learning.recovery import find_resume_state, finish_rollback, reach
from ffstream.learning.training_run import TrainingRun
from ffstream.metrics import Metrics
from ffstream.pipeline.resume_state import ResumeState
from ffstream.serving.snapshot import Snapshots
from ffstream.util import failpoints
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)


class RolledBack(NamedTuple):
    """Where learning is again, and what happens to the samples `first` … `last` that came after it."""

    to: int
    checkpoint: int
    first: int
    last: int
    later: str  # "relearned" (except those that an earlier rollback skipped) or "skipped"


class Learner:
    """Needs an open journal. `start`, then the stop in three steps: `end_learning`, `end_evaluation`, `end_writing`.

    Raises JournalDamaged, CheckpointIncompatible, ConfigError, Unavailable.
    """

    def __init__(self, config: Config, journal: Journal, metrics: Metrics, on_failure: OnFailure) -> None:
        self._config = config
        self._journal = journal
        self._metrics = metrics
        self._on_failure = on_failure
        self._ending = False  # commands that wait must end
        self._paused = events.learning_is_paused(journal.path)  # by a request to this daemon or an earlier one
        self._pausing = threading.Lock()  # a request may come while a rollback replaces the run
        self._rolling_back = threading.Lock()  # one rollback at a time
        self.snapshots = Snapshots(metrics)
        self.checkpoints = Checkpoints(config, metrics, on_failure)
        self.run = self._make_run(self._find_resume_state())
        metrics.paused.set_function(lambda: float(self._paused))

    def _find_resume_state(self, at_most: int | None = None, *, skip: bool = False) -> ResumeState:
        return find_resume_state(self.checkpoints.store, self._journal, self._metrics, at_most, skip=skip)

    def _make_run(self, resume: ResumeState) -> TrainingRun:
        self.checkpoints.begin_run()
        run = TrainingRun(
            self._config,
            self._journal,
            resume,
            snapshots=self.snapshots,
            writer=self.checkpoints.writer,
            metrics=self._metrics,
            on_failure=self._on_failure,
        )
        self.checkpoints.retention.follow(run)
        log.info("learning begins checkpoint=%d journal=%d", resume.seq, self._journal.head.seq)
        return run

    @property
    def threads(self) -> list[Worker]:
        """Those that learn, evaluate and write."""
        return [*self.run.threads, self.checkpoints.writer.thread]

    # --- start and stop ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Learns from now on. Returns once every thread runs."""
        self.checkpoints.writer.start()
        if self._paused:
            log.warning("learning starts paused applied=%d: ffstream resume", self.applied_seq)
            self.run.pipeline.pause(True)
        self.run.start()

    def end_waits(self) -> None:
        """Ends commands that wait, with an error."""
        self._ending = True
        self.snapshots.close()

    def end_learning(self, timeout_s: float, *, failed: bool) -> bool:
        """Learns what is queued; a last barrier saves the state. False if the deadline passed.

        After a failure there is no state worth saving: recovery begins at the last checkpoint.
        """
        deadline = time.monotonic() + timeout_s
        if not self._rolling_back.acquire(timeout=timeout_s):  # never released: no other rollback may begin
            return False
        left_s = max(0.1, deadline - time.monotonic())
        if failed:
            return self.run.pipeline.abort(left_s)
        # Before the first sample nothing is saved, so that the options of the network may still be changed.
        return self.run.pipeline.stop(left_s, save=self._journal.head.seq > 0)

    def end_evaluation(self, timeout_s: float) -> bool:
        """Evaluates what is queued, which completes the last barrier. False if the deadline passed."""
        return self.run.prequential.stop(timeout_s)

    def end_writing(self, timeout_s: float) -> bool:
        """Writes the last checkpoint. False if the deadline passed."""
        return self.checkpoints.writer.stop(timeout_s)

    # --- status -----------------------------------------------------------------------------------------------------

    @property
    def applied_seq(self) -> int:
        """Sequence number up to which every layer has learned."""
        return self.run.applied_seq

    @property
    def paused(self) -> bool:
        """Whether learning is paused by request."""
        return self._paused

    def is_behind(self) -> bool:
        """Whether a whole microbatch waits to be learned, and learning is not paused."""
        return not self._paused and self._journal.backlog(self.applied_seq) >= self._config.network.batch_size

    def hardware(self) -> tuple[str, str]:
        """Precision of matrix products and device, in words."""
        pipeline = self.run.pipeline
        return str(pipeline.product_dtype).removeprefix("torch."), str(pipeline.device)

    def status(self) -> dict[str, Any]:
        """What is learned, and how well."""
        run, snapshot, store = self.run.status(), self.snapshots.current, self.checkpoints.store
        accepted = self._journal.head.seq  # read after what is applied, which must not exceed it
        return {
            "accepted": accepted,
            **run,
            "paused": self._paused,
            "backlog": accepted - run["applied_seq"],
            "snapshot": {
                "version": snapshot.version,
                "seq": snapshot.seq,
                "age_s": time.monotonic() - snapshot.published,
            },
            "checkpoint_seq": (store.whole_seqs() or [0])[-1],
            **reach(store, self._journal)._asdict(),
        }

    # --- commands ---------------------------------------------------------------------------------------------------

    def wait_idle(self, timeout_s: float) -> None:
        """Returns when predictions have learned every sample that is acked now.

        Raises DeadlineExceeded, or Paused as soon as learning is paused and some of them are not fed.
        """
        target = self._idle_target()
        if self.snapshots.wait_for(target, timeout_s, unless=lambda: self._is_paused_before(target)):
            return
        missing = target - self.snapshots.current.seq
        if self._ending:
            raise _stops(f"{missing} samples wait on disk")
        self._raise_if_paused_before(target)
        raise DeadlineExceeded(
            f"{missing} samples are not learned after {timeout_s:g} s", hint="wait longer, or see ffstream status"
        )

    def raise_if_paused(self) -> None:
        """Raises Paused when learning is paused and samples wait, so that waiting for them would never end."""
        self._raise_if_paused_before(self._idle_target())

    def _idle_target(self) -> int:
        target = self._journal.head.seq
        return self._config.network.whole_up_to(target) if self._config.learning.partial == "wait" else target

    def _is_paused_before(self, seq: int) -> bool:
        return self._paused and self.run.pipeline.fed_seq < seq

    def _raise_if_paused_before(self, seq: int) -> None:
        if self._is_paused_before(seq):
            waiting = seq - self.run.pipeline.fed_seq
            raise Paused(
                f"learning is paused, and {waiting} samples are not learned", hint="ffstream resume, then again"
            )

    def checkpoint(self, timeout_s: float) -> Written:
        """Takes a checkpoint now and returns when it is durable. Raises DeadlineExceeded, Unavailable."""
        run = self.run

        def check() -> None:
            if self._ending:
                raise _stops("it takes a last checkpoint by itself")
            if self.run is not run:
                raise Unavailable("learning was rolled back meanwhile", hint="take another checkpoint")

        return self.checkpoints.wait_written(run.request_checkpoint, timeout_s, check=check)

    def pause(self, paused: bool) -> None:
        """Stops or resumes learning, in this training run and later ones; everything else goes on.

        It holds until the opposite is requested, also after a restart: it is on disk before it takes effect. Raises
        Unavailable when it cannot be written; then nothing has changed.
        """
        with self._pausing:
            if paused != self._paused:
                self._record(events.PAUSE if paused else events.RESUME)
            self.run.pipeline.pause(paused)
            self._paused = paused
        self.snapshots.wake()
        log.info("learning %s seq=%d", "paused" if paused else "resumed", self.applied_seq)

    def _record(self, kind: str) -> None:
        try:
            events.add(self._journal.path, events.Event(kind, self._journal.head.seq))
        except Unavailable as error:
            error.hint = f"nothing has changed; {error.hint}"
            raise

    # --- rollback ---------------------------------------------------------------------------------------------------

    def rollback(self, to: int, *, skip: bool) -> RolledBack:
        """Takes learning back to where it had learned the samples 1 … `to`. Predictions and acks go on meanwhile.

        Learning begins at the newest checkpoint at or below `to` and learns from there up to `to` again. Later
        samples that are acked by now are then learned again, or with `skip` never. Returns once learning has begun
        again; raises SequenceUnknown, Busy, DiskFull, StageFailed.

        If the process dies: with `skip`, `recovery` says why it is atomic. Without, checkpoints are removed from the
        oldest on, so a death leaves the newest one, and no rollback.
        """
        if not self._rolling_back.acquire(blocking=False):
            raise Busy("another rollback is under way", hint="try again later")
        try:
            with self.checkpoints.retention.suspended():
                done = self._rollback(to, skip=skip)
        except OSError as error:
            raise Unavailable(
                f"the checkpoints beyond {to} could not be removed: {error}", hint="see the log"
            ) from error
        finally:
            self._rolling_back.release()
        log.warning("rolled back to=%d checkpoint=%d first=%d last=%d later=%s", *done)
        return done

    def _rollback(self, to: int, *, skip: bool) -> RolledBack:
        applied = self.applied_seq
        if not 0 <= to <= applied:
            raise SequenceUnknown(f"sample {to} is not learned", hint=f"learned are 0 to {applied}")
        self._find_resume_state(to, skip=skip)  # fails before anything is given up
        self._end_run(self._config.shutdown.drain_timeout_s)
        try:
            if self._ending:
                raise _stops("nothing was rolled back")
            # Again: a checkpoint that was being written may have replaced an older one.
            self._find_resume_state(to, skip=skip)
            last = self._journal.head.seq
            failpoints.reached("rollback.before")
            if skip and last > to:
                self._skip(to + 1, last)
                finish_rollback(self.checkpoints.store, self._journal, to)
            else:
                self.checkpoints.store.discard_after(to)
                failpoints.reached("rollback.discarded")
        finally:
            checkpoint = self._begin_again()
        return RolledBack(to, checkpoint, to + 1, last, "skipped" if skip else "relearned")

    def _skip(self, first: int, last: int) -> None:
        try:
            skips.add(self._journal.path, skips.Skip(first, last))
        except Unavailable as error:
            error.hint = f"nothing was rolled back: samples {first} to {last} could not be noted as skipped"
            raise
        failpoints.reached("rollback.skipped")

    def _end_run(self, timeout_s: float) -> None:
        """Ends learning and evaluation where they are, and lets the writer finish what it has."""
        deadline = time.monotonic() + timeout_s
        for end in (self._abort_run, self.checkpoints.writer.settle):
            if end(max(0.1, deadline - time.monotonic())):
                continue
            failure = StageFailed("learning could not be ended for a rollback", hint="restart; see the log")
            self._on_failure(failure)
            raise failure

    def _abort_run(self, timeout_s: float) -> bool:
        ended = self.run.abort(timeout_s)
        self.snapshots.recede()  # after the abort, because until then the run may still publish a snapshot
        return ended

    def _begin_again(self) -> int:
        """A new run from the newest checkpoint, whose weights predict at once. Returns its sequence number."""
        try:
            return self._begin_from(self._find_resume_state())
        except BaseException as error:
            # Nothing learns any more, and a daemon that only accepts would break its promise.
            self._on_failure(StageFailed(f"learning could not begin again: {error}", hint="restart; see the log"))
            raise

    def _begin_from(self, resume: ResumeState) -> int:
        resume = resume._replace(version_at_least=self.snapshots.current.version + 1)
        run = self._make_run(resume)
        with self._pausing:
            run.pipeline.pause(self._paused)
            self.run = run
        # The objects of the run before are garbage now, but gc.freeze had declared them permanent.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        run.start()
        return resume.seq


def _stops(state: str) -> Unavailable:
    return Unavailable(f"the daemon stops; {state}", hint="ask again after its restart")
