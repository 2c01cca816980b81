"""The only place where parts are wired: recover, start, serve, drain, stop.

    journal ← learn loop          checkpoint writer ← barriers ← learner → snapshots → predict loop
        └────────→ learner                                          └→ prequential

What happens if the process dies at any line: samples that were acked are in the journal; the newest whole checkpoint
says up to which one they were learned; recovery begins there. Nothing else is durable, and nothing else needs to be.
"""

import ctypes
import fcntl
import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import IntEnum
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, NamedTuple

import zmq

from ffstream import __version__, moments
from ffstream.checkpoint.store import Checkpoint, CheckpointStore, fsync
from ffstream.checkpoint.writer import CheckpointWriter, Written
from ffstream.config import Config
from ffstream.errors import ConfigError, DeadlineExceeded, JournalDamaged, StageFailed, Unavailable
from ffstream.ff.classifier import Classifier
from ffstream.journal.journal import Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.feeder import FeederOptions
from ffstream.pipeline.messages import Barrier, MicroBatch, Part
from ffstream.pipeline.pipeline import Callbacks, Pipeline, PipelineOptions, StartingPoint
from ffstream.server.control import ControlLoop
from ffstream.server.http import HttpServer, make_app
from ffstream.server.learn import LearnLimits, LearnLoop
from ffstream.server.predict import PredictLoop
from ffstream.server.router import SocketLimits
from ffstream.serving.predictor import Predictor
from ffstream.serving.prequential import NAME as PREQUENTIAL
from ffstream.serving.prequential import ErrorRecord, Prequential
from ffstream.serving.snapshot import Snapshot, Snapshots
from ffstream.threads import use_one_core
from ffstream.wire.codec import ImageChecker

log = logging.getLogger(__name__)

_RETURN_MEMORY_S = 10.0


class _Order(IntEnum):
    """The steps of a stop."""

    ACCEPT_NO_MORE = 1  # what was acked is in the journal
    LEARN_WHAT_IS_QUEUED = 2  # the last barrier takes the state
    EVALUATE_WHAT_IS_QUEUED = 3  # the evaluator's part completes the last barrier
    WRITE_CHECKPOINT = 4
    END_COMMANDS = 5  # those that wait get an answer
    ANSWER_NO_MORE = 6  # predictions and control went on until here
    CLOSE_CONTEXT = 7
    CLOSE_JOURNAL = 8
    RELEASE_STATE = 9


class _Step(NamedTuple):
    """How to end one part: gets the seconds that are left, says whether it was in time."""

    order: _Order
    name: str
    end: Callable[[float], bool]


class Daemon:
    """One daemon on one state folder. `start`, then `wait`, then `stop`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics()
        self.state = "starting"
        self.failure: Exception | None = None
        self._steps: list[_Step] = []
        # Not an Event: a signal handler that sets one deadlocks if its thread is just about to wait for it.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._ending = False  # commands that wait must end
        self._checkpointed = threading.Condition()
        self._last_written = Written(-1, 0, 0.0, None)
        self._writes = 0
        self._oldest_checkpoint = 0  # the journal may forget what lies below

    # --- start -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recovers and serves. Raises FFStreamError; then nothing is left running."""
        use_one_core()
        try:
            self._open_state()
            self._recover()
            self._open_sockets()
        except BaseException:
            self.stop()
            raise
        # What exists now lives as long as the daemon: the collector need not walk over it again and again.
        gc.collect()
        gc.freeze()
        self.state = "ready"
        log.info(
            "ready version=%s learn=%s predict=%s control=%s http=%s seq=%d applied=%d precision=%s device=%s",
            __version__,
            self.learn.endpoint,
            self.predict.endpoint,
            self.control.endpoint,
            self.http.address,
            self.journal.head.seq,
            self.learner.applied_seq,
            str(self.learner.product_dtype).removeprefix("torch."),
            self.learner.device,
        )

    def _open_state(self) -> None:
        state = self.config.state
        self._lock = _lock(state)
        self._steps.append(_Step(_Order.RELEASE_STATE, "lock", self._unlock))
        recipe = self.config.network
        self.store = CheckpointStore(state / "checkpoints", keep=self.config.checkpoint.keep, recipe=asdict(recipe))
        self.journal = Journal(state / "journal.sqlite", inputs=recipe.inputs, labels=recipe.labels)
        self._steps.append(_Step(_Order.CLOSE_JOURNAL, "journal", self._close_journal))
        for folder in (state, state.absolute().parent):
            fsync(folder)  # an ack must not depend on a folder that power loss can take away

    def _recover(self) -> None:
        checkpoint, damages = self.store.newest()
        self.metrics.checkpoints_damaged.inc(len(damages))
        if checkpoint is None:
            start = StartingPoint()
        elif checkpoint.seq > self.journal.head.seq:
            # New samples would get numbers that count as learned: acked, and never learned.
            raise JournalDamaged(
                f"{self.journal.path} ends at sample {self.journal.head.seq}, before checkpoint {checkpoint.seq}",
                hint="put the journal back that belongs to the checkpoints, or use another --state folder",
            )
        else:
            start = StartingPoint(checkpoint.seq, checkpoint.tensors, checkpoint.progress)
            log.info("recovered checkpoint=%d journal=%d", checkpoint.seq, self.journal.head.seq)
        self.learner = self._make_learner(start)
        first = Snapshot(self._classifier(self.learner.weights()), start.progress.get("version", 0), start.seq)
        self.snapshots = Snapshots(first)
        options = self.config.prequential
        self.prequential = Prequential(
            self.metrics,
            first,
            fraction=options.fraction,
            busy_fraction=options.busy_fraction,
            queue_depth=options.queue_depth,
            record=ErrorRecord(start.progress.get("prequential")),
            on_failure=self._fail,
        )
        self.writer = CheckpointWriter(self.store, self._on_written, self._fail)
        self.writer.start()
        self._steps.append(_Step(_Order.WRITE_CHECKPOINT, "checkpoint", self.writer.stop))
        self.prequential.start()
        self._steps.append(_Step(_Order.EVALUATE_WHAT_IS_QUEUED, "prequential", self.prequential.stop))
        self.learner.start()
        self._steps.append(_Step(_Order.LEARN_WHAT_IS_QUEUED, "learner", self._end_learner))

    def _make_learner(self, start: StartingPoint) -> Pipeline:
        config = self.config
        pipeline, learning, checkpoint = config.pipeline, config.learning, config.checkpoint
        return Pipeline(
            config.network,
            PipelineOptions(
                device=pipeline.device,
                precision=pipeline.precision,
                queue_depth=pipeline.queue_depth,
                overflow=pipeline.overflow,
                stages=pipeline.stages,
                wake=learning.wake,
                sleep=learning.sleep,
            ),
            FeederOptions(
                publish_every=learning.publish_every,
                checkpoint_every_samples=checkpoint.every_samples,
                checkpoint_every_s=checkpoint.every_s,
                linger_s=learning.linger_s,
                partial=learning.partial,
            ),
            journal=self.journal.path,
            head=self.journal.head,
            start=start,
            callbacks=Callbacks(self._on_barrier, self._fail, self._observe, self._on_saving),
            metrics=self.metrics,
            save_contributors=(PREQUENTIAL,),
        )

    def _open_sockets(self) -> None:
        config, limits, recipe = self.config, self.config.limits, self.config.network
        sockets = SocketLimits(limits.message_max_bytes, limits.reply_queue_messages, limits.heartbeat_s)
        checker = ImageChecker(recipe.inputs, recipe.labels, limits.message_max_samples)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._steps.append(_Step(_Order.CLOSE_CONTEXT, "sockets", self._end_context))
        self.learn = LearnLoop(
            self.journal,
            checker,
            LearnLimits(
                window_messages=limits.window_messages,
                commit_max_messages=limits.commit_max_messages,
                commit_max_bytes=limits.commit_max_bytes,
                message_max_bytes=limits.message_max_bytes,
                backlog_max_samples=limits.backlog_max_samples,
                journal_max_bytes=limits.journal_max_bytes,
                clients_max=limits.clients_max,
            ),
            sockets,
            applied_seq=lambda: self.learner.applied_seq,
            trim_to=lambda: self._oldest_checkpoint,
            metrics=self.metrics,
            on_failure=self._fail,
        )
        self.predict = PredictLoop(
            Predictor(self.snapshots),
            checker,
            sockets,
            batch_samples=limits.query_batch_max_samples,
            metrics=self.metrics,
            on_failure=self._fail,
        )
        commands = {
            "status": lambda arguments: self.status(),
            "wait_idle": self._wait_idle,
            "checkpoint": self._checkpoint,
            "pause": lambda arguments: self._pause(True),
            "resume": lambda arguments: self._pause(False),
            "drain": self._drain,
            "stop": lambda arguments: self._request_stop(),
            "config": lambda arguments: {"config": self.config.model_dump(mode="json")},
        }
        self.control = ControlLoop(commands, sockets, self.metrics, self._fail)
        self._steps.append(_Step(_Order.END_COMMANDS, "commands", self._end_commands))
        for loop, endpoint, order in (
            (self.learn, config.listen.learn, _Order.ACCEPT_NO_MORE),
            (self.predict, config.listen.predict, _Order.ANSWER_NO_MORE),
            (self.control, config.listen.control, _Order.ANSWER_NO_MORE),
        ):
            loop.bind(self._context, endpoint)
            self._steps.append(_Step(order, loop.name, loop.stop))
        self._watch()
        app = make_app(
            self.metrics.registry,
            alive=lambda: self.failure is None,
            readiness=lambda: self.state,
            status=self.status,
        )
        self.http = HttpServer(app, config.listen.http)
        self._steps.append(_Step(_Order.ANSWER_NO_MORE, "ff-http", self.http.stop))
        for started in (self.learn, self.predict, self.control, self.http):
            started.start()

    def _watch(self) -> None:
        """Gauges that are read at scrape time."""
        metrics = self.metrics
        metrics.applied_seq.set_function(lambda: self.learner.applied_seq)
        metrics.journal_seq.set_function(lambda: self.journal.head.seq)
        metrics.journal_backlog.set_function(lambda: self.journal.head.seq - self.learner.applied_seq)
        metrics.snapshot_age.set_function(lambda: time.monotonic() - self.snapshots.current.published)
        metrics.snapshot_seq.set_function(lambda: self.snapshots.current.seq)
        metrics.snapshot_version.set_function(lambda: self.snapshots.current.version)
        metrics.paused.set_function(lambda: float(self.learner.paused))
        metrics.credit.set_function(self.learn.credit)
        for phase in ("interleaved", "wake", "sleep"):
            metrics.phase.labels(phase).set_function(partial(self._is_phase, phase))
        for index in range(len(self.learner.stages)):
            label = str(index)
            metrics.queue_depth.labels(label).set_function(partial(self._stage_figure, index, "queue_depth"))
            metrics.stage_seq.labels(label).set_function(partial(self._stage_figure, index, "last_seq"))
            metrics.skipped.labels(label).set_function(partial(self._stage_figure, index, "skipped"))

    def _is_phase(self, phase: str) -> float:
        return float(self.learner.phase == phase)

    def _stage_figure(self, index: int, name: str) -> float:
        return float(self.learner.describe()[index][name])

    # --- what the learner reports, on its threads -----------------------------------------------------------------

    def _classifier(self, weights: dict[int, Any]) -> Classifier:
        return Classifier(self.config.network, [weights[index] for index in sorted(weights)])

    def _observe(self, micro: MicroBatch, version: int) -> None:
        behind = self.journal.head.seq - micro.seq > self.config.prequential.busy_backlog_samples
        self.prequential.observe(micro.images, micro.labels, version, behind=behind)

    def _on_saving(self, barrier: Barrier) -> None:
        self.prequential.mark(lambda progress: barrier.contribute(PREQUENTIAL, Part({}, progress)))

    def _on_barrier(self, barrier: Barrier) -> None:
        snapshot = Snapshot(self._classifier(barrier.weights), barrier.version, barrier.seq)
        if barrier.version > self.snapshots.current.version:
            self.snapshots.publish(snapshot)
        # A saving barrier waits for the evaluator, so later ones may overtake it; its snapshot is wanted too.
        self.prequential.publish(snapshot)
        if barrier.saves:
            moments.reached("cut.complete")
            self.writer.submit(Checkpoint(barrier.seq, barrier.tensors, barrier.progress))

    def _on_written(self, written: Written) -> None:
        metrics = self.metrics
        if written.error is not None:
            metrics.checkpoint_failures.inc()
        else:
            metrics.checkpoint_seconds.observe(written.seconds)
            metrics.checkpoint_bytes.set(written.bytes)
            metrics.checkpoint_seq.set(written.seq)
            self._oldest_checkpoint = self.store.seqs()[0]
        with self._checkpointed:
            self._last_written = written
            self._writes += 1
            self._checkpointed.notify_all()

    def _fail(self, error: Exception) -> None:
        """The first thread to die ends the daemon."""
        if self.failure is None:
            self.failure = error
            self.state = "failed"
            log.error("failed error=%s", error)
        self._wake.put(None)

    # --- commands ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the daemon is doing."""
        learner, record, snapshot = self.learner, self.prequential.record, self.snapshots.current
        accepted = self.journal.head.seq
        return {
            "state": "paused" if self.state == "ready" and learner.paused else self.state,
            "version": __version__,
            "accepted": accepted,
            "learned": learner.applied_seq,
            "applied_seq": learner.applied_seq,
            "backlog": accepted - learner.applied_seq,
            "prequential_error": record.recent,
            "prequential_error_total": record.total,
            "phase": learner.phase,
            "stages": learner.describe(),
            "snapshot": {
                "version": snapshot.version,
                "seq": snapshot.seq,
                "age_s": time.monotonic() - snapshot.published,
            },
            "checkpoint_seq": (self.store.seqs() or [0])[-1],
            "endpoints": {
                "learn": self.learn.endpoint,
                "predict": self.predict.endpoint,
                "control": self.control.endpoint,
                "http": self.http.address,
            },
        }

    def _wait_idle(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Returns when predictions have learned every sample that is acked now."""
        timeout_s = _seconds(arguments, default=60.0)
        target = self.journal.head.seq
        if self.config.learning.partial == "wait":
            target = self.config.network.whole_up_to(target)
        if not self.snapshots.wait_for(target, timeout_s):
            missing = target - self.snapshots.current.seq
            if self._ending:
                raise _stops(f"{missing} samples wait on disk")
            raise DeadlineExceeded(
                f"{missing} samples are not learned after {timeout_s:g} s",
                hint="wait longer, or see ffstream status",
            )
        return self.status()

    def _checkpoint(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Takes a checkpoint now and returns when it is durable."""
        deadline = time.monotonic() + _seconds(arguments, default=60.0)
        sequence: list[int] = []
        with self._checkpointed:
            earlier = self._writes  # a failure from before is none of ours
            self.learner.request_checkpoint(lambda barrier: sequence.append(barrier.seq))
            # A later one may be written before this thread looks; it holds what this one holds, and more.
            while not (
                sequence
                and self._last_written.seq >= sequence[0]
                and (self._writes > earlier or self._last_written.error is None)
            ):
                if self._ending:
                    raise _stops("it takes a last checkpoint by itself")
                if time.monotonic() >= deadline:
                    raise DeadlineExceeded("the checkpoint is not written yet", hint="see the daemon's log")
                self._checkpointed.wait(0.1)
            written = self._last_written
        if written.error is not None:
            raise Unavailable(f"the checkpoint could not be written: {written.error}", hint="free disk space")
        return {"seq": written.seq, "bytes": written.bytes, "seconds": written.seconds}

    def _pause(self, paused: bool) -> dict[str, Any]:
        self.learner.pause(paused)
        log.info("learning %s seq=%d", "paused" if paused else "resumed", self.learner.applied_seq)
        return {"paused": paused}

    def _drain(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Accepts no more samples, learns what is acked, then stops."""
        _seconds(arguments, default=60.0)  # before anything changes: refused, it must leave nothing behind
        self.state = "draining"
        self.learn.draining = True
        try:
            result = self._wait_idle(arguments)
        except DeadlineExceeded:
            self.state, self.learn.draining = "ready", False
            raise
        self._wake.put(None)
        return result

    def _request_stop(self) -> dict[str, Any]:
        self._wake.put(None)
        return {"stopping": True}

    # --- serve and stop ---------------------------------------------------------------------------------------------

    def wait(self, heartbeat: Callable[[], None] = lambda: None) -> None:
        """Returns when a stop was requested or something failed. Calls `heartbeat` each second while all is well."""
        limit_s = self.config.pipeline.stall_timeout_s
        returned = time.monotonic()
        while not self._is_woken(1.0):
            if time.monotonic() - returned > _RETURN_MEMORY_S:
                return_free_memory()
                returned = time.monotonic()
            stuck = self.learner.stalled(limit_s)
            if stuck is not None:
                self._fail(StageFailed(f"{stuck} made no progress for {limit_s:g} s", hint="restart; see the log"))
            else:
                heartbeat()

    def _is_woken(self, timeout_s: float) -> bool:
        try:
            self._wake.get(timeout=timeout_s)
        except Empty:
            return False
        return True

    def request_stop(self) -> None:
        """Sets a flag; safe in a signal handler."""
        self._wake.put(None)

    def stop(self) -> None:
        """Ends what was started, in order, each step with a deadline. Raises what failed, if anything did."""
        if self.state != "failed":
            self.state = "stopping"
        deadline = time.monotonic() + self.config.shutdown.drain_timeout_s
        late = []
        for step in sorted(self._steps):
            if not step.end(max(0.1, deadline - time.monotonic())):
                late.append(step.name)
        log.info("stopped late=%s", ",".join(late) or "none")
        if self.failure is not None:
            raise self.failure
        if late:
            raise DeadlineExceeded(f"did not stop in time: {', '.join(late)}", hint="nothing acked is lost")

    def _end_learner(self, timeout_s: float) -> bool:
        """After a failure there is no state worth keeping: recovery begins at the last checkpoint."""
        return self.learner.stop(timeout_s) if self.failure is None else self.learner.abort(timeout_s)

    def _end_commands(self, timeout_s: float) -> bool:
        """A command that waits holds a thread, and Python does not exit before its threads."""
        self._ending = True
        self.snapshots.close()
        return True

    def _end_context(self, timeout_s: float) -> bool:
        """Sends what lingers, at most a second long. A loop that is still alive has a socket: then it stays open."""
        if any(loop.thread.is_alive() for loop in (self.learn, self.predict, self.control)):
            return False
        self._context.term()
        return True

    def _close_journal(self, timeout_s: float) -> bool:
        self.journal.close()
        return True

    def _unlock(self, timeout_s: float) -> bool:
        self._lock.close()
        return True


def _lock(state: Path) -> IO[str]:
    """Makes the state folder and holds it for this process. Raises ConfigError when another one has it."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (state / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"{state}: {error.strerror}", hint="--state names a folder to write to") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(f"{state} is in use by another daemon", hint="stop it, or use --state") from error
    return file


def return_free_memory() -> None:
    """Gives the system back what nobody uses: buffers of a crowd lie between what stays, and glibc keeps them all.

    Takes milliseconds. Does nothing where the C library is another one.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _stops(state: str) -> Unavailable:
    return Unavailable(f"the daemon stops; {state}", hint="ask again after its restart")


def _seconds(arguments: dict[str, Any], *, default: float) -> float:
    value = arguments.get("timeout_s", default)
    if not isinstance(value, int | float) or not 0 <= value <= 86_400:
        raise ConfigError("timeout_s is not a number of seconds", hint="0 to 86400")
    return float(value)
