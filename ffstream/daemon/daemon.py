"""The only place where parts are wired: recover, start, serve, drain, stop.

    learn loop → journal → learner → snapshots → predict loop
                              └→ checkpoints

What happens if the process dies at any line: samples that were acked are in the journal; the newest whole checkpoint
says up to which one they were learned; recovery begins there. Nothing else is durable, and nothing else needs to be.
"""

import gc
import logging
import math
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, IntEnum
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import zmq

from ffstream import __version__
from ffstream.config import Config
from ffstream.daemon.commands import Commands
from ffstream.daemon.state import JOURNAL, StateLock, has_journal, is_missing
from ffstream.errors import DeadlineExceeded, FFStreamError, StageFailed, StartBlocked
from ffstream.ff import kernels
from ffstream.journal.journal import Journal
from ffstream.learning.checkpoints import open_store
from ffstream.learning.learner import Learner
from ffstream.metrics import Metrics
from ffstream.server.access import Access
from ffstream.server.admission import Admission
from ffstream.server.control import ControlLoop
from ffstream.server.housekeeping import Housekeeping
from ffstream.server.http import HttpServer
from ffstream.server.http_app import make_app
from ffstream.server.learn import LearnLoop
from ffstream.server.predict import PredictLoop
from ffstream.server.readiness import Readiness, of_predictions, of_samples
from ffstream.server.resources import Resources, check_free_files, raise_file_limit, return_free_memory
from ffstream.server.router import RouterLoop
from ffstream.serving.predictor import Predictor
from ffstream.util.durable import fsync_entry, fsync_tree
from ffstream.util.os_errors import as_start_errors, path_error
from ffstream.util.threads import find_stuck, use_one_core
from ffstream.wire.images import ImageChecker

log = logging.getLogger(__name__)

_RETURN_MEMORY_S = 10.0
_LOOK_S = 1.0
_STANDBY_LOOK_S = 0.02
_FROZEN_S = 2.0  # that a look may come late; more, and the process was stopped, or its machine


class _Order(IntEnum):
    """The steps of a stop."""

    ACCEPT_NO_MORE = 1  # what was acked is in the journal
    LEARN_WHAT_IS_QUEUED = 2  # the last barrier takes the state
    EVALUATE_WHAT_IS_QUEUED = 3  # the evaluator's part completes the last barrier
    WRITE_CHECKPOINT = 4
    END_COMMANDS = 5  # those that wait get an answer
    ANSWER_NO_MORE = 6  # predictions and control went on until here
    ADMIT_NO_MORE = 7  # no socket is left that would admit without asking
    CLOSE_CONTEXT = 8
    CLOSE_JOURNAL = 9
    RELEASE_STATE = 10


class _Wake(Enum):
    """Why a wait is interrupted."""

    STOP = 1
    RELOAD = 2


class _Step(NamedTuple):
    """How to end one part: gets the seconds that are left, says whether it was in time."""

    order: _Order
    name: str
    end: Callable[[float], bool]


class Daemon:
    """One daemon on one state folder. `start`, then `wait`, then `stop`. Raises ConfigError if it must not listen.

    With `existing` it never creates a new state: a folder without a journal counts as missing.
    """

    @as_start_errors()
    def __init__(self, config: Config, *, existing: bool = False) -> None:
        self.config = config
        self._existing = existing
        self.metrics = Metrics()
        self.failure: Exception | None = None
        self._phase = "starting"  # then "ready", then "stopping"
        # First of all: a daemon that must not listen need not spend minutes on recovery.
        self._access = Access(config.listen, config.security, self.metrics, self._fail)
        self._lock = StateLock(config.state, existing=existing)
        self._blocked_by = ""  # why a standby could not take the folder when it last tried
        self._loops: list[RouterLoop] = []  # those that are bound
        self._steps = [_Step(_Order.RELEASE_STATE, "lock", self._release_state)]
        # Not an Event: a signal handler that sets one deadlocks if its thread is just about to wait for it.
        self._wake: SimpleQueue[_Wake] = SimpleQueue()

    # --- start -------------------------------------------------------------------------------------------------

    @as_start_errors()
    def stand_by(self, heartbeat: Callable[[], None] = lambda: None) -> bool:
        """Waits while another daemon has the state folder: the kernel takes it from one that dies, however it dies.

        Calls `heartbeat` each second meanwhile. True when it is ours and `start` may follow, False when a stop was
        requested. Raises ConfigError, and at first StartBlocked; later, what blocks it is logged and waited for.
        """
        if self._lock.take():
            return True
        self._expect_journal()
        # What would keep it from serving is said now, and not when it is needed.
        open_store(self.config).check_recipe()
        kernels.prepare()
        log.info("stands by pid=%d state=%s", os.getpid(), self.config.state)
        beat = -math.inf
        while not self._can_take():
            if time.monotonic() - beat >= _LOOK_S:
                beat = time.monotonic()
                heartbeat()
            if self._is_woken(_STANDBY_LOOK_S):
                return False
        log.info("takes over pid=%d state=%s", os.getpid(), self.config.state)
        return True

    def _can_take(self) -> bool:
        """Whether the folder is ours now. No descriptor left, or a disk that is away, may pass: logged once each."""
        try:
            taken = self._lock.take()
        except StartBlocked as error:
            if error.message != self._blocked_by:
                log.warning("cannot take over yet error=%r hint=%s", error.message, error.hint)
            self._blocked_by = error.message
            return False
        self._blocked_by = ""
        return taken

    def start(self) -> None:
        """Recovers and serves. Raises FFStreamError; then nothing is left running."""
        try:
            self._start()
        except BaseException:
            with suppress(FFStreamError):  # `stop` has logged it; what failed first is what the caller needs
                self.stop()
            raise
        # What exists now lives as long as the daemon: the collector need not walk over it again and again, nor once.
        gc.freeze()
        gc.enable()
        self._phase = "ready"
        log.info(
            "ready version=%s learn=%s predict=%s control=%s http=%s seq=%d applied=%d precision=%s device=%s",
            __version__,
            self.learn.endpoint,
            self.predict.endpoint,
            self.control.endpoint,
            self.http.address,
            self.journal.head.seq,
            self.learner.applied_seq,
            *self.learner.hardware(),
        )

    @as_start_errors()
    def _start(self) -> None:
        use_one_core()
        raise_file_limit()
        self._open_state()
        self._recover()
        self._open_sockets()
        if self.failure is not None:  # what was started first may be dead by now
            raise self.failure

    def _open_state(self) -> None:
        state = self.config.state
        if not self._lock.take():
            raise StartBlocked(
                f"{state} is in use by another daemon", hint="stop it, or use --state; --standby waits for its end"
            )
        self._expect_journal()
        try:
            fsync_tree(state)  # before anything relies on what is there
        except OSError as error:
            raise path_error("--state", state, error) from error
        recipe = self.config.network
        journal = state / JOURNAL
        is_new = not has_journal(state)
        self.journal = Journal(journal, inputs=recipe.inputs, labels=recipe.labels)
        self._steps.append(_Step(_Order.CLOSE_JOURNAL, "journal", self._close_journal))
        if is_new:
            what = "new state folder created" if self._lock.made else "new state created in an existing folder"
            hint = "if there was a state before, stop the daemon and mount or restore it; --existing refuses this"
            log.warning("%s path=%s hint=%s", what, state.absolute(), hint)
        for path in (journal, state):
            fsync_entry(path)  # an ack must not depend on a folder that power loss can take away

    def _expect_journal(self) -> None:
        if self._existing and not has_journal(self.config.state):
            raise is_missing(self.config.state / JOURNAL)

    def _recover(self) -> None:
        self.learner = Learner(self.config, self.journal, self.metrics, self._fail)
        self._steps += [
            _Step(_Order.LEARN_WHAT_IS_QUEUED, "learner", self._end_learning),
            _Step(_Order.EVALUATE_WHAT_IS_QUEUED, "prequential", self.learner.end_evaluation),
            _Step(_Order.WRITE_CHECKPOINT, "checkpoint", self.learner.end_writing),
        ]
        self.learner.start()

    def _open_sockets(self) -> None:
        config, limits, recipe = self.config, self.config.limits, self.config.network
        checker = ImageChecker(recipe.image_shape, recipe.labels, limits.message_max_samples)
        boot = secrets.token_hex(8)
        check_free_files()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._steps.append(_Step(_Order.CLOSE_CONTEXT, "sockets", self._end_context))
        access = self._access
        if access.zap is not None:
            access.zap.start(self._context)
            self._steps.append(_Step(_Order.ADMIT_NO_MORE, access.zap.name, access.zap.stop))
        housekeeping = Housekeeping(
            self.journal, self.learner.checkpoints, limits, Resources(config.state, limits), self.metrics
        )
        self.admission = Admission(
            self.journal,
            limits,
            housekeeping,
            applied_seq=lambda: self.learner.applied_seq,
            metrics=self.metrics,
            leftover_samples=recipe.batch_size - 1 if config.learning.partial == "wait" else 0,
        )
        self.learn = LearnLoop(
            self.journal,
            checker,
            self.admission,
            housekeeping,
            limits,
            boot=boot,
            metrics=self.metrics,
            on_failure=self._fail,
        )
        self.predict = PredictLoop(
            Predictor(self.learner.snapshots),
            checker,
            limits,
            is_behind=self.learner.is_behind,
            boot=boot,
            metrics=self.metrics,
            on_failure=self._fail,
        )
        self.commands = Commands(
            config, self.learner, self.journal.head, self.admission, self.status, self.request_stop
        )
        self.control = ControlLoop(
            self.commands.table,
            limits,
            self.metrics,
            self._fail,
            checker=checker,
            boot=boot,
            waits=self.commands.waits,
        )
        self._steps.append(_Step(_Order.END_COMMANDS, "commands", self._end_commands))
        for loop, endpoint, order in (
            (self.learn, config.listen.learn, _Order.ACCEPT_NO_MORE),
            (self.predict, config.listen.predict, _Order.ANSWER_NO_MORE),
            (self.control, config.listen.control, _Order.ANSWER_NO_MORE),
        ):
            loop.bind(self._context, endpoint, access.guards.get(loop.socket_name))
            self._loops.append(loop)
            self._steps.append(_Step(order, loop.name, loop.stop))
        self.metrics.journal_seq.set_function(lambda: self.journal.head.seq)
        self.metrics.journal_backlog.set_function(lambda: self.journal.backlog(self.learner.applied_seq))
        app = make_app(
            self.metrics.registry,
            alive=lambda: self.failure is None,
            predicts=self.predict_readiness,
            learns=self.learn_readiness,
            status=self.status,
            token=access.http_token,
            rejections=access.http_rejections,
        )
        self.http = HttpServer(
            app,
            config.listen.http,
            limits.http_connections,
            limits.handshake_timeout_s,
            limits.http_keep_alive_s,
            self._fail,
            access.http_rejections,
        )
        self._steps.append(_Step(_Order.ANSWER_NO_MORE, self.http.name, self.http.stop))
        for started in (self.learn, self.predict, self.control, self.http):
            started.start()

    def _fail(self, error: Exception) -> None:
        """The first thread to die ends the daemon."""
        if self.failure is None:
            self.failure = error
            log.error("failed error=%s", error)
        self._wake.put(_Wake.STOP)

    @property
    def state(self) -> str:
        """`starting`, `ready`, `draining`, `stopping`; or `failed`, which none of these takes back."""
        if self.failure is not None:
            return "failed"
        return "draining" if self._phase == "ready" and self.admission.draining else self._phase

    def predict_readiness(self) -> Readiness:
        """Whether predictions are answered."""
        return of_predictions(
            self.state, answers=self.predict.serves, paused=self.learner.paused, refusing=self._refusing()
        )

    def learn_readiness(self) -> Readiness:
        """Whether samples are accepted."""
        return of_samples(self.state, paused=self.learner.paused, refusing=self._refusing())

    def _refusing(self) -> str | None:
        reason = self.admission.rejection_reason()
        return reason.code if reason else None

    def status(self) -> dict[str, Any]:
        """What the daemon is doing."""
        paused = self.state == "ready" and self.learner.paused
        return {
            "state": "paused" if paused else self.state,
            "refusing": self._refusing(),
            "version": __version__,
            "image_shape": list(self.config.network.image_shape),
            "labels": self.config.network.labels,
            **self.learner.status(),
            **self.admission.status(),
            "endpoints": {
                "learn": self.learn.endpoint,
                "predict": self.predict.endpoint,
                "control": self.control.endpoint,
                "http": self.http.address,
            },
        }

    # --- serve and stop ---------------------------------------------------------------------------------------------

    def wait(self, heartbeat: Callable[[], None] = lambda: None) -> None:
        """Returns when a stop was requested or something failed. Calls `heartbeat` each second while all is well."""
        limit_s = self.config.pipeline.stall_timeout_s
        returned = looked = watched_from = time.monotonic()
        while not self._is_woken(_LOOK_S):
            before, looked = looked, time.monotonic()
            if looked - before > _LOOK_S + _FROZEN_S:
                watched_from = looked  # nobody made progress while the whole process stood still
            if looked - returned > _RETURN_MEMORY_S:
                return_free_memory()
                returned = looked
            stuck = self._stalled(limit_s) if looked - watched_from > limit_s else None
            if stuck is not None:
                self._fail(StageFailed(f"{stuck} made no progress for {limit_s:g} s", hint="restart; see the log"))
            else:
                heartbeat()

    def _stalled(self, limit_s: float) -> str | None:
        """Names a thread that has had the same work in hand for that long."""
        zap = self._access.zap
        served = [each.thread for each in (self.learn, self.predict, self.control, self.http, zap) if each]
        return find_stuck([*served, *self.learner.threads], limit_s)

    def _is_woken(self, timeout_s: float) -> bool:
        """Whether a stop was requested before the timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                reason = self._wake.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return False
            if reason is _Wake.STOP:
                return True
            self._access.reload()

    def request_stop(self) -> None:
        """Sets a flag, and returns; safe in a signal handler. Whoever waits then stops the daemon."""
        self._wake.put(_Wake.STOP)

    def request_reload(self) -> None:
        """The same for client keys, which are read again. Learning and the connections go on."""
        self._wake.put(_Wake.RELOAD)

    def stop(self) -> None:
        """Ends what was started, in order, each step with a deadline. Raises what failed, if anything did."""
        served, self._phase = self._phase == "ready", "stopping"
        deadline = time.monotonic() + self.config.shutdown.drain_timeout_s
        late: list[str] = []
        for step in sorted(self._steps):
            if step.order is _Order.RELEASE_STATE and late:
                continue  # what is late may still write: the folder is ours until the process ends
            try:
                in_time = step.end(max(0.1, deadline - time.monotonic()))
            except Exception:  # the steps after it have things to end, too
                log.exception("step failed name=%s", step.name)
                in_time = False
            if not in_time:
                late.append(step.name)
        if served or late:  # a start that failed says why, and that is all there is to say
            log.info("stopped late=%s", ",".join(late) or "none")
        if self.failure is not None:
            raise self.failure
        if late:
            raise DeadlineExceeded(f"did not stop in time: {', '.join(late)}", hint="nothing acked is lost")

    def _end_learning(self, timeout_s: float) -> bool:
        return self.learner.end_learning(timeout_s, failed=self.failure is not None)

    def _end_commands(self, timeout_s: float) -> bool:
        """A command that waits holds a thread, and Python does not exit before its threads."""
        self.learner.end_waits()
        return True

    def _end_context(self, timeout_s: float) -> bool:
        """Sends what lingers, at most a second long. A loop that is still alive has a socket: then it stays open."""
        if any(loop.thread.is_alive() for loop in self._loops):
            return False
        self._context.term()
        for loop in self._loops:
            loop.release()
        return True

    def _close_journal(self, timeout_s: float) -> bool:
        self.journal.close()
        return True

    def _release_state(self, timeout_s: float) -> bool:
        self._lock.release()
        return True
