"""Controls the training run: recovers it, takes checkpoints, pauses it, rolls it back, ends it.

    journal → training run ─┬→ snapshots → predictions
                            └→ checkpoints

A rollback ends the run and starts another one from an older checkpoint; snapshots and checkpoints live as long as the
daemon. The docstring of `rollback` says what happens if the process dies during one.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ffstream.checkpoint.writer import Written
from ffstream.config import Config
from ffstream.errors import (
    Busy,
    DeadlineExceeded,
    FFStreamError,
    Paused,
    SequenceUnknown,
    StageFailed,
    StagesLost,
    Unavailable,
)
from ffstream.journal import events, skips
from ffstream.journal.journal import Journal
from ffstream.learning.checkpoints import Checkpoints
from ffstream.learning.recovery import find_resume_state, finish_rollback, reach
from ffstream.learning.restarts import Restarts
from ffstream.learning.training_run import TrainingRun
from ffstream.metrics import Metrics
from ffstream.pipeline.engine import Engine, Hardware
from ffstream.pipeline.resume_state import ResumeState
from ffstream.serving.snapshot import Snapshots
from ffstream.util import failpoints
from ffstream.util.stopwatch import Stopwatch
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)


class RolledBack(NamedTuple):
    """The sample after which learning continues, and what happens to the later samples `first` … `last`."""

    to: int
    checkpoint: int
    first: int
    last: int
    later: str  # "relearned" (except those that an earlier rollback skipped) or "skipped"


class Learner:
    """Needs an open journal. `start`, then the stop in three steps: `end_learning`, `end_evaluation`, `end_writing`.

    Raises JournalDamaged, CheckpointIncompatible, ConfigError, Unavailable.
    """

    def __init__(
        self, config: Config, engine: Engine, journal: Journal, metrics: Metrics, on_failure: OnFailure
    ) -> None:
        self._config = config
        self._engine = engine
        self._journal = journal
        self._metrics = metrics
        self._on_failure = on_failure
        self._ending = False  # the daemon stops, so waiting commands must return
        self._paused = events.learning_is_paused(journal.path)  # by a request to this daemon or an earlier one
        self._pausing = threading.Lock()  # a request may come while a rollback replaces the run
        self._replacing = threading.Lock()  # held while one run is replaced by another
        self.rolled_back: RolledBack | None = None  # by this daemon, last
        self.snapshots = Snapshots(metrics)
        self.checkpoints = Checkpoints(config, metrics, on_failure)
        self.restarts = Restarts(self._place, metrics, on_failure)
        self.run = self._make_run(self._find_resume_state())
        self._pauses = Stopwatch()
        self._pauses.run(self._paused)
        metrics.paused.set_function(lambda: float(self._paused))
        metrics.paused_seconds.set_function(self._pauses.seconds)

    def _find_resume_state(self, at_most: int | None = None, *, skip: bool = False) -> ResumeState:
        return find_resume_state(self.checkpoints.store, self._journal, self._metrics, at_most, skip=skip)

    def _make_run(self, resume: ResumeState) -> TrainingRun:
        self.checkpoints.begin_run()
        run = TrainingRun(
            self._config,
            self._engine,
            self._journal,
            resume,
            snapshots=self.snapshots,
            writer=self.checkpoints.writer,
            metrics=self._metrics,
            on_failure=self._fail,
        )
        self.checkpoints.retention.follow(run)
        log.info("learning begins checkpoint=%d journal=%d", resume.seq, self._journal.head.seq)
        return run

    @property
    def threads(self) -> list[Worker]:
        """The threads that learn, evaluate and write checkpoints."""
        return [*self.run.threads, self.checkpoints.writer.thread, self.restarts.thread]

    # --- start and stop ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Learns from now on. Returns once every thread runs."""
        self.checkpoints.writer.start()
        if self._paused:
            log.warning("learning starts paused applied=%d: ffstream resume", self.applied_seq)
            self.run.pipeline.pause(True)
        if self._engine.is_remote:
            self.restarts.start()  # stages are placed while samples are acked already
        else:
            self.run.start()

    def _fail(self, error: FFStreamError) -> None:
        """Of the run: stages that are lost are placed again; any other failure is the daemon's."""
        if isinstance(error, StagesLost):
            self.restarts.request(error)
        else:
            self._on_failure(error)

    def end_waits(self) -> None:
        """Makes waiting commands return with an error."""
        self._ending = True
        self.snapshots.close()
        self.restarts.end()

    def end_learning(self, timeout_s: float, *, failed: bool) -> bool:
        """Learns what is queued; a last barrier saves the state. False if the deadline passed.

        After a failure no state is saved, because it may be wrong: recovery begins at the last checkpoint.
        """
        deadline = time.monotonic() + timeout_s
        self._engine.cancel()
        # Never released: no other run may begin.
        if not self.restarts.stop(timeout_s) or not self._replacing.acquire(timeout=timeout_s):
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

    @property
    def drift_seq(self) -> int | None:
        """The sample at which the drift detector found the last drift."""
        seq = self._metrics.drift_seq.labels().read()
        return None if seq is None else int(seq)

    @property
    def backlog(self) -> int:
        """Samples on disk that are not learned yet."""
        return self._journal.backlog(self.applied_seq)

    def is_behind(self) -> bool:
        """Whether a whole microbatch waits to be learned, and learning is not paused."""
        return not self._paused and self.backlog >= self._config.network.batch_size

    def hardware(self) -> Hardware:
        """Precision of matrix products and device, in words."""
        return self._engine.hardware()

    def status(self) -> dict[str, Any]:
        """Progress and prequential error of learning, for the status reply."""
        run, snapshot, store = self.run.status(), self.snapshots.current, self.checkpoints.store
        newest = self.checkpoints.newest
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
            "checkpoint": newest and {"seq": newest.seq, "age_s": max(0.0, time.time() - newest.written)},
            "drift_seq": self.drift_seq,
            "engine": self._engine.status(),
            "interrupted": self.restarts.status(),
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
            raise _is_stopping(f"{missing} samples wait on disk")
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
                raise _is_stopping("it writes a last checkpoint before it ends")
            if self.run is not run or self.restarts.interrupted:
                raise Unavailable("learning begins again from a checkpoint", hint="take another one later")

        return self.checkpoints.wait_written(run.request_checkpoint, timeout_s, check=check)

    def pause(self, paused: bool) -> None:
        """Pauses or resumes learning, in this training run and later ones; everything else continues.

        A pause lasts until learning is resumed, also across restarts: the request is on disk before it takes effect.
        Raises Unavailable when it cannot be written; then nothing has changed.
        """
        with self._pausing:
            if paused != self._paused:
                self._record(events.PAUSE if paused else events.RESUME)
            self.run.pipeline.pause(paused)
            self._paused = paused
            self._pauses.run(paused)
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
        """Returns to the state in which exactly the samples 1 … `to` were learned. Predictions and acks continue.

        A new run begins at the newest checkpoint at or before `to` and learns the samples up to `to` again. Later
        samples that have been acked are then learned again, or with `skip` never. Returns once the new run has
        started, or its stages are being placed in a cluster; raises SequenceUnknown, Busy, DiskFull, StageFailed.

        If the process dies: with `skip`, `recovery` says why it is atomic. Without, checkpoints are removed oldest
        first, so the newest one is still there after a crash, and nothing was rolled back.
        """
        if self.restarts.interrupted or not self._replacing.acquire(blocking=False):
            what = "learning is interrupted" if self.restarts.interrupted else "another rollback is under way"
            raise Busy(what, hint="try again later")
        try:
            with self.checkpoints.retention.suspended():
                done = self._rollback(to, skip=skip)
        except OSError as error:
            raise Unavailable(
                f"the checkpoints beyond {to} could not be removed: {error}", hint="see the log"
            ) from error
        finally:
            self._replacing.release()
        self.rolled_back = done
        log.warning("rolled back to=%d checkpoint=%d first=%d last=%d later=%s", *done)
        return done

    def _rollback(self, to: int, *, skip: bool) -> RolledBack:
        applied = self.applied_seq
        if not 0 <= to <= applied:
            raise SequenceUnknown(f"sample {to} is not learned", hint=f"samples 0 to {applied} are learned")
        self._find_resume_state(to, skip=skip)  # raises before anything has changed
        self._end_run(self.snapshots.recede)
        try:
            if self._ending:
                raise _is_stopping("nothing was rolled back")
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

    def _end_run(self, mark_snapshot: Callable[[], None]) -> None:
        """Ends learning and evaluation without saving, and lets the writer finish.

        Calls `mark_snapshot` in between, because until its end the run may publish another one.
        """
        deadline = time.monotonic() + self._config.shutdown.drain_timeout_s
        ended = self.run.abort(max(0.1, deadline - time.monotonic()))
        mark_snapshot()
        if not ended or not self.checkpoints.writer.settle(max(0.1, deadline - time.monotonic())):
            failure = StageFailed("learning could not be ended to begin again", hint="restart; see the log")
            self._on_failure(failure)
            raise failure

    def _begin_again(self) -> int:
        """Starts a run from the newest checkpoint, whose weights predict at once. Returns its sequence number."""
        try:
            return self._begin_from(self._find_resume_state())
        except BaseException as error:
            # Nothing learns now, and a daemon that accepts samples and never learns them breaks its promise.
            self._on_failure(StageFailed(f"learning could not begin again: {error}", hint="restart; see the log"))
            raise

    def _begin_from(self, resume: ResumeState) -> int:
        self._replace_run(resume)
        if self._engine.is_remote:
            self.restarts.request()
        else:
            self.run.start()
        return resume.seq

    def _replace_run(self, resume: ResumeState) -> None:
        resume = resume._replace(version_at_least=self.snapshots.current.version + 1)
        run = self._make_run(resume)
        with self._pausing:
            run.pipeline.pause(self._paused)
            self.run = run
        # The previous run is garbage now, but gc.freeze had excluded its objects from collection.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    # --- stages on other machines -----------------------------------------------------------------------------------

    def _place(self) -> None:
        """Starts the stages of the run. If it has lost those that it had, it ends, and another one begins at the
        newest checkpoint. Raises StagesLost: to be called again, later."""
        self._engine.connect()
        with self._replacing:
            if self._ending or self.run.learns:
                return
            if self.run.was_started:
                self._end_run(self.snapshots.keep)  # it predicts until the new run has learned as much again
                self._replace_run(self._find_resume_state())
            self.run.start()


def _is_stopping(state: str) -> Unavailable:
    return Unavailable(f"the daemon is stopping; {state}", hint="try again after its restart")
