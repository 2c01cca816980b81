"""The learning side as one: recovers, learns, publishes, evaluates, checkpoints, rolls back.

    journal → course of learning ─┬→ snapshots → whoever predicts
                                  └→ checkpoint writer → store

A rollback ends the course and begins another from an older checkpoint; snapshots, writer and store live as long as
the daemon. What happens if the process dies at any line of a rollback: see `rollback`.
"""

import gc
import logging
import threading
import time
from typing import Any, NamedTuple

from ffstream.checkpoint.writer import CheckpointWriter, Written
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
from ffstream.learning.recovery import finish_rollback, open_store, reach, starting_point
from ffstream.learning.retention import Retention
from ffstream.learning.training_run import Course
from ffstream.metrics import Metrics
from ffstream.pipeline.pipeline import Pipeline, StartingPoint
from ffstream.serving.snapshot import Snapshot, Snapshots
from ffstream.util import failpoints
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)


class RolledBack(NamedTuple):
    """Where learning is again, and what becomes of the samples `first` … `last` that came after it."""

    to: int
    checkpoint: int
    first: int
    last: int
    later: str  # "relearned" (but for those that an earlier rollback skipped) or "skipped"


class Durable(NamedTuple):
    """The newest checkpoint: `written` is when, by `time.monotonic`."""

    seq: int
    bytes: int
    written: float


class Learner:
    """Made on a journal that is open. `start`, then the stop in three steps: `end_learning`, `end_evaluation`,
    `end_writing`. Raises what recovery raises: JournalDamaged, CheckpointIncompatible, ConfigError."""

    def __init__(self, config: Config, journal: Journal, metrics: Metrics, on_failure: OnFailure) -> None:
        self._config = config
        self._journal = journal
        self._metrics = metrics
        self._on_failure = on_failure
        self._checkpointed = threading.Condition()
        self._last_written = Written(-1, 0, 0.0, None)
        self._writes = 0
        self._courses = 0
        self._ending = False  # commands that wait must end
        self._paused = events.learning_is_paused(journal.path)  # by request, of this daemon or one before it
        self._pausing = threading.Lock()  # a request may come while a rollback replaces the course
        self._rolling = threading.Lock()  # one rollback at a time, and no trimming meanwhile
        self.store = open_store(config)
        self.retention = Retention(
            self.store, lambda: self.applied_seq, lambda: self.pipeline.request_checkpoint(lambda barrier: None)
        )
        self.writer = CheckpointWriter(
            self.store, self._on_written, on_failure, bytes_per_s=config.checkpoint.write_bytes_per_s
        )
        self.newest_checkpoint: Durable | None = None
        self.course = self._make_course(self._starting_point())
        self._find_newest_checkpoint()
        self.snapshots = Snapshots(self.course.first)

    # --- a course of learning ----------------------------------------------------------------------------------

    def _starting_point(self, at_most: int | None = None, *, skip: bool = False) -> StartingPoint:
        return starting_point(self.store, self._journal, self._metrics, at_most, skip=skip)

    def _make_course(self, start: StartingPoint) -> Course:
        course = Course(
            self._config,
            self._journal,
            start,
            metrics=self._metrics,
            publish=self._publish,
            save=self.writer.submit,
            on_failure=self._on_failure,
        )
        log.info("learning begins checkpoint=%d journal=%d", start.seq, self._journal.head.seq)
        return course

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshots.publish(snapshot)  # which begin with a snapshot of the first course

    def _start_course(self) -> None:
        self._courses += 1
        self.course.start()

    @property
    def pipeline(self) -> Pipeline:
        """This course's."""
        return self.course.pipeline

    @property
    def threads(self) -> list[Worker]:
        """Those that learn, evaluate and write."""
        return [*self.course.threads, self.writer.thread]

    # --- start and stop ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Learns from now on. Returns once every thread runs."""
        self.writer.start()
        if self._paused:
            log.warning("learning starts paused applied=%d: ffstream resume", self.pipeline.applied_seq)
            self.pipeline.pause(True)
        self._start_course()

    def end_waits(self) -> None:
        """Commands that wait get an answer."""
        self._ending = True
        self.snapshots.close()

    def end_learning(self, timeout_s: float, *, failed: bool) -> bool:
        """Learns what is queued; a last barrier takes the state. False if the deadline passed.

        After a failure there is no state worth keeping: recovery begins at the last checkpoint.
        """
        deadline = time.monotonic() + timeout_s
        if not self._rolling.acquire(timeout=timeout_s):  # a rollback under way ends first, and none begins any more
            return False
        left_s = max(0.1, deadline - time.monotonic())
        if failed:
            return self.pipeline.abort(left_s)
        # Nothing learned is nothing to keep: the recipe may still be another one.
        return self.pipeline.stop(left_s, save=self._journal.head.seq > 0)

    def end_evaluation(self, timeout_s: float) -> bool:
        """Evaluates what is queued; its part completes the last barrier. False if the deadline passed."""
        return self.course.prequential.stop(timeout_s)

    def end_writing(self, timeout_s: float) -> bool:
        """Makes the last cut durable. False if the deadline passed."""
        return self.writer.stop(timeout_s)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def _on_written(self, written: Written) -> None:
        metrics = self._metrics
        if written.error is not None:
            metrics.checkpoint_failures.inc()
        else:
            metrics.checkpoint_seconds.observe(written.seconds)
            self.newest_checkpoint = Durable(written.seq, written.bytes, time.monotonic())
            self.retention.wrote(written.seq)
        with self._checkpointed:
            self._last_written = written
            self._writes += 1
            self._checkpointed.notify_all()

    def _find_newest_checkpoint(self) -> None:
        stored = self.store.newest_stored()
        self.newest_checkpoint = stored and Durable(stored.seq, stored.bytes, time.monotonic() - stored.age_s)

    def trim(self, *, pressed: bool = False, disk_is_short: bool = False) -> bool:
        """On the journal's thread: deletes a few rows that no recent checkpoint needs. True when more remain.

        `pressed`: the journal is full. `disk_is_short`: old checkpoints make room, one after another.
        """
        if disk_is_short and self.retention.sheds():
            self.writer.shed()
        if not self._rolling.acquire(blocking=False):
            return False
        try:
            return self._journal.trim(self.retention.press() if pressed else self.retention.limit)
        finally:
            self._rolling.release()

    # --- commands ----------------------------------------------------------------------------------------------

    @property
    def applied_seq(self) -> int:
        """Sequence number up to which every layer has learned."""
        return self.pipeline.applied_seq

    @property
    def paused(self) -> bool:
        """Whether learning is paused by request."""
        return self._paused

    def status(self) -> dict[str, Any]:
        """What is learned, and how well."""
        course, snapshot = self.course.status(), self.snapshots.current
        accepted = self._journal.head.seq  # after what is applied: it goes up meanwhile, and must not be below
        return {
            "accepted": accepted,
            **course,
            "paused": self._paused,
            "backlog": accepted - course["applied_seq"],
            "snapshot": {
                "version": snapshot.version,
                "seq": snapshot.seq,
                "age_s": time.monotonic() - snapshot.published,
            },
            "checkpoint_seq": (self.store.whole_seqs() or [0])[-1],
            **reach(self.store, self._journal)._asdict(),
        }

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
        """Raises Paused when learning is paused and has samples to learn, so that waiting for them is in vain."""
        self._raise_if_paused_before(self._idle_target())

    def _idle_target(self) -> int:
        target = self._journal.head.seq
        return self._config.network.whole_up_to(target) if self._config.learning.partial == "wait" else target

    def _is_paused_before(self, seq: int) -> bool:
        return self._paused and self.pipeline.fed_seq < seq

    def _raise_if_paused_before(self, seq: int) -> None:
        if self._is_paused_before(seq):
            waiting = seq - self.pipeline.fed_seq
            raise Paused(
                f"learning is paused, and {waiting} samples are not learned", hint="ffstream resume, then again"
            )

    def checkpoint(self, timeout_s: float) -> Written:
        """Takes a checkpoint now and returns when it is durable. Raises DeadlineExceeded, Unavailable."""
        deadline = time.monotonic() + timeout_s
        sequence: list[int] = []
        with self._checkpointed:
            earlier, course = self._writes, self._courses  # a failure from before is none of ours
            self.pipeline.request_checkpoint(lambda barrier: sequence.append(barrier.seq))
            # A later one may be written before this thread looks; it holds what this one holds, and more.
            while not (
                sequence
                and self._last_written.seq >= sequence[0]
                and (self._writes > earlier or self._last_written.error is None)
            ):
                if self._ending:
                    raise _stops("it takes a last checkpoint by itself")
                if self._courses != course:
                    raise Unavailable("learning was rolled back meanwhile", hint="take another checkpoint")
                if time.monotonic() >= deadline:
                    raise DeadlineExceeded("the checkpoint is not written yet", hint="see the daemon's log")
                self._checkpointed.wait(0.1)
            written = self._last_written
        if written.error is not None:
            raise Unavailable(f"the checkpoint could not be written: {written.error}", hint="the log says why")
        return written

    def pause(self, paused: bool) -> None:
        """Stops or resumes learning, this training run's and those that follow; everything else goes on.

        It holds until the opposite is asked for, after a restart too: it is on disk before it takes effect. Raises
        Unavailable when it cannot be written; then nothing has changed.
        """
        with self._pausing:
            if paused != self._paused:
                self._decide(events.PAUSE if paused else events.RESUME)
            self.pipeline.pause(paused)
            self._paused = paused
        self.snapshots.wake()
        log.info("learning %s seq=%d", "paused" if paused else "resumed", self.pipeline.applied_seq)

    def _decide(self, kind: str) -> None:
        try:
            events.add(self._journal.path, events.Event(kind, self._journal.head.seq))
        except Unavailable as error:
            error.hint = f"nothing has changed; {error.hint}"
            raise

    def rollback(self, to: int, *, skip: bool) -> RolledBack:
        """Takes learning back to where it had learned the samples 1 … `to`. Predictions and acks go on meanwhile.

        Learning begins at the newest checkpoint at or below `to` and learns from there up to `to` again. Later
        samples that are acked by now are then learned again, or with `skip` never. Returns once learning has begun
        again; raises SequenceUnknown, Busy, DiskFull, StageFailed.

        If the process dies: with `skip`, `recovery` says why it is atomic. Without, checkpoints are removed from the
        oldest on, so a death leaves the newest one, and no rollback.
        """
        if not self._rolling.acquire(blocking=False):
            raise Busy("another rollback is under way", hint="try again later")
        try:
            self._check_target(to)
            self._starting_point(to, skip=skip)  # before anything is given up
            self._end_course(self._config.shutdown.drain_timeout_s)
            try:
                if self._ending:
                    raise _stops("nothing was rolled back")
                # Again: a checkpoint that was being written may have replaced an older one.
                self._starting_point(to, skip=skip)
                last = self._journal.head.seq
                failpoints.reached("rollback.before")
                if skip and last > to:
                    self._skip(to + 1, last)
                    finish_rollback(self.store, self._journal, to)
                else:
                    self.store.discard_after(to)
                    failpoints.reached("rollback.discarded")
            finally:
                checkpoint = self._begin_again()
        except OSError as error:
            raise Unavailable(
                f"the checkpoints beyond {to} could not be removed: {error}", hint="see the log"
            ) from error
        finally:
            self._rolling.release()
        done = RolledBack(to, checkpoint, to + 1, last, "skipped" if skip else "relearned")
        log.warning("rolled back to=%d checkpoint=%d first=%d last=%d later=%s", *done)
        return done

    def _skip(self, first: int, last: int) -> None:
        try:
            skips.add(self._journal.path, skips.Skip(first, last))
        except Unavailable as error:
            error.hint = f"nothing was rolled back: samples {first} to {last} could not be noted as skipped"
            raise
        failpoints.reached("rollback.skipped")

    def _check_target(self, to: int) -> None:
        applied = self.pipeline.applied_seq
        if not 0 <= to <= applied:
            raise SequenceUnknown(f"sample {to} is not learned", hint=f"learned are 0 to {applied}")

    def _end_course(self, timeout_s: float) -> None:
        """Ends learning and evaluation where they are. What they have not saved the journal has."""
        self.snapshots.recede()
        deadline = time.monotonic() + timeout_s
        for end in (self.pipeline.abort, self.course.prequential.stop, self.writer.settle):
            if end(max(0.1, deadline - time.monotonic())):
                continue
            failure = StageFailed("learning could not be ended for a rollback", hint="restart; see the log")
            self._on_failure(failure)
            raise failure

    def _begin_again(self) -> int:
        """A new course from the newest checkpoint, whose weights predict at once. Returns its sequence number."""
        try:
            return self._begin_from(self._starting_point())
        except BaseException as error:
            # Nothing learns any more: a daemon that only accepts would be a lie.
            self._on_failure(StageFailed(f"learning could not begin again: {error}", hint="restart; see the log"))
            raise

    def _begin_from(self, start: StartingPoint) -> int:
        start = start._replace(version_at_least=self.snapshots.current.version + 1)
        with self._checkpointed:
            self._last_written = Written(-1, 0, 0.0, None)  # numbers come again
        self.course = self._make_course(start)
        self._find_newest_checkpoint()
        self.retention.goes_back(start.seq)
        # What lived for the course before is garbage now, and was told to the collector as lasting.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self.snapshots.publish(self.course.first)
        with self._pausing:
            self.pipeline.pause(self._paused)
        self._start_course()
        return start.seq


def _stops(state: str) -> Unavailable:
    return Unavailable(f"the daemon stops; {state}", hint="ask again after its restart")
