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
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import zmq

from ffstream import __version__
from ffstream.config import Config
from ffstream.daemon.commands import Commands
from ffstream.daemon.foreground import POLL_S, Foreground
from ffstream.daemon.reports import Reports
from ffstream.daemon.shutdown import Order
from ffstream.daemon.standby import StandbyHttp
from ffstream.daemon.state import StateLock, has_journal, is_missing
from ffstream.daemon.website import make_http
from ffstream.errors import FFStreamError, StartBlocked
from ffstream.ff import kernels
from ffstream.journal.journal import Journal
from ffstream.journal.schema import JOURNAL
from ffstream.learning.checkpoints import open_store
from ffstream.learning.learner import Learner
from ffstream.learning.origin import StreamOrigin
from ffstream.learning.recorder import Recorder
from ffstream.pipeline.engine import make_engine
from ffstream.server.admission import Admission
from ffstream.server.background import Background
from ffstream.server.control import ControlLoop
from ffstream.server.followers import Source
from ffstream.server.housekeeping import Housekeeping
from ffstream.server.learn import LearnLoop
from ffstream.server.predict import PredictLoop
from ffstream.server.resources import Resources, check_free_files, raise_file_limit
from ffstream.server.router import RouterLoop
from ffstream.serving.predictor import Predictor
from ffstream.util.durable import fsync_entry, fsync_tree
from ffstream.util.os_errors import as_start_errors, path_error
from ffstream.util.threads import Worker, use_one_core
from ffstream.wire.images import ImageChecker

log = logging.getLogger(__name__)

_STANDBY_POLL_S = 0.02


class Daemon(Foreground):
    """One daemon on one state folder. `start`, then `wait`, then `stop`. Raises ConfigError if it must not listen.

    With `existing` it never creates a new state: a folder without a journal counts as missing. With `start_from` a
    new stream begins from these weights: see `learning.origin`.
    """

    after_late_stop = "nothing acked is lost"

    @as_start_errors()
    def __init__(self, config: Config, *, existing: bool = False, start_from: Path | None = None) -> None:
        self._origin = StreamOrigin(start_from, config) if start_from is not None else None
        super().__init__(config)
        self._existing = existing
        self._standby = StandbyHttp(config, self._access, self.metrics, self._fail)
        self._lock = StateLock(config.state, existing=existing)
        self._blocked_by = ""  # why a standby could not take the folder when it last tried
        self._loops: list[RouterLoop] = []  # those that are bound
        self._shutdown.add(Order.RELEASE_STATE, "lock", self._release_state)

    # --- start -------------------------------------------------------------------------------------------------

    @as_start_errors()
    def stand_by(self, heartbeat: Callable[[], None] = lambda: None) -> bool:
        """Waits while another daemon has the state folder. The kernel releases its lock when that process ends.

        Calls `heartbeat` each second meanwhile. True once this daemon has the folder and `start` may follow, False
        when a stop was requested. Raises ConfigError. Raises StartBlocked at first; later, a lock that cannot be
        taken is logged, and tried again.
        """
        if self._lock.take():
            return True
        self._expect_journal()
        # Fail fast: validate before waiting, not at takeover.
        open_store(self.config).check_recipe()
        self._check_origin()
        kernels.prepare()
        self.metrics.standby.set(1)
        self._shutdown.add(Order.STOP_ANSWERING, "standby", self._standby.stop)
        taken = False
        try:
            taken = self._wait_for_state(heartbeat)
        finally:
            if not taken:
                self._standby.stop()
        if self.failure is not None:
            raise self.failure
        return taken

    def _wait_for_state(self, heartbeat: Callable[[], None]) -> bool:
        self._standby.listen()
        log.info("standing by pid=%d state=%s", os.getpid(), self.config.state)
        beat = -math.inf
        while not self._can_take():
            if time.monotonic() - beat >= POLL_S:
                beat = time.monotonic()
                heartbeat()
                self.metrics.process.refresh()
                self._standby.listen()
            if self._is_woken(_STANDBY_POLL_S):
                return False
        log.info("taking over pid=%d state=%s", os.getpid(), self.config.state)
        return True

    def _can_take(self) -> bool:
        """Whether this daemon holds the folder now. A temporary error, such as no free descriptor, is logged once."""
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
            with suppress(FFStreamError):  # the caller needs the first failure; `stop` has logged its own
                self.stop()
            raise
        # These objects live as long as the daemon: the garbage collector need not traverse them.
        gc.freeze()
        gc.enable()
        self._phase = "ready"
        self._standby.release()
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
        self.metrics.standby.set(0)
        use_one_core()
        raise_file_limit()
        self._check_origin()  # before a state folder is created
        self._open_state()
        self._recover()
        self._open_sockets()
        if self.failure is not None:  # a thread that was started first may have died by now
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
        self._shutdown.add(Order.CLOSE_JOURNAL, "journal", self._close_journal)
        if is_new:
            what = "new state folder created" if self._lock.made else "new state created in an existing folder"
            hint = "if there was a state before, stop the daemon and mount or restore it; --existing prevents this"
            log.warning("%s path=%s hint=%s", what, state.absolute(), hint)
        for path in (journal, state):
            fsync_entry(path)  # without it, power loss could remove the folder that an ack depends on

    def _expect_journal(self) -> None:
        if self._existing and not has_journal(self.config.state):
            raise is_missing(self.config.state / JOURNAL)

    def _check_origin(self) -> None:
        if self._origin is not None:
            self._origin.check(self.config.state / JOURNAL)

    def _recover(self) -> None:
        if self._origin is not None:
            self._origin.begin(self.journal, open_store(self.config))
        engine = make_engine(self.config, self.metrics)
        self._shutdown.add(Order.END_ENGINE, "engine", engine.stop)
        self.learner = Learner(self.config, engine, self.journal, self.metrics, self._fail)
        self._shutdown.add(Order.LEARN_QUEUED, "learner", self._end_learning)
        self._shutdown.add(Order.EVALUATE_QUEUED, "prequential", self.learner.end_evaluation)
        self._shutdown.add(Order.WRITE_CHECKPOINT, "checkpoint", self.learner.end_writing)
        self.learner.start()

    def _open_sockets(self) -> None:
        check_free_files()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._shutdown.add(Order.CLOSE_CONTEXT, "sockets", self._end_context)
        zap = self._access.zap
        if zap is not None:
            zap.start(self._context)
            self._shutdown.add(Order.STOP_AUTHENTICATING, zap.name, zap.stop)
        self._make_loops()
        self._shutdown.add(Order.END_COMMANDS, "commands", self._end_commands)
        listen = self.config.listen
        self._bind(self.learn, listen.learn, Order.STOP_ACCEPTING)
        self._bind(self.predict, listen.predict, Order.STOP_ANSWERING)
        self._bind(self.control, listen.control, Order.STOP_ANSWERING)
        self._make_http()
        self.recorder.start()
        self._shutdown.add(Order.STOP_RECORDING, self.recorder.name, self.recorder.stop)
        self._shutdown.add(Order.STOP_ANSWERING, self.http.name, self.http.stop)
        for server in (self.learn, self.predict, self.control, self.http):
            server.start()

    def _bind(self, loop: RouterLoop, endpoint: str, order: Order) -> None:
        loop.bind(self._context, endpoint, self._access.guards.get(loop.socket_name))
        self._loops.append(loop)
        self._shutdown.add(order, loop.name, loop.stop)

    def _make_loops(self) -> None:
        config, limits, recipe, metrics = self.config, self.config.limits, self.config.network, self.metrics
        checker = ImageChecker(
            recipe.image_shape, recipe.labels, limits.message_max_samples, unlabelled=recipe.learns_unlabelled
        )
        boot = secrets.token_hex(8)
        housekeeping = Housekeeping(
            self.journal, self.learner.checkpoints, limits, Resources(config.state, limits), metrics
        )
        self.admission = Admission(
            self.journal,
            limits,
            housekeeping,
            applied_seq=lambda: self.learner.applied_seq,
            metrics=metrics,
            leftover_samples=recipe.batch_size - 1 if config.learning.partial == "wait" else 0,
        )
        self.learn = LearnLoop(
            self.journal,
            checker,
            self.admission,
            housekeeping,
            limits,
            boot=boot,
            metrics=metrics,
            on_failure=self._fail,
        )
        self.predict = PredictLoop(
            Predictor(self.learner.snapshots),
            checker,
            limits,
            is_behind=self.learner.is_behind,
            boot=boot,
            metrics=metrics,
            on_failure=self._fail,
        )
        self.recorder = Recorder(config.state, self.learner, self.journal.head, metrics, len(recipe.layers))
        self.reports = Reports(
            config,
            self.learner,
            self.admission,
            state=lambda: self.state,
            failed=lambda: self.failure is not None,
            predicts=lambda: self.predict.serves,
            rates=lambda: self.recorder.rates,
            endpoints=self._endpoints,
        )
        self.commands = Commands(
            config, self.learner, self.journal.head, self.admission, self.reports.status, self.request_stop
        )
        self.control = ControlLoop(
            self.commands.table,
            limits,
            metrics,
            self._fail,
            checker=checker,
            boot=boot,
            waits=self.commands.waits,
            source=Source(
                newest=lambda: self.learner.snapshots.current,
                applied_seq=lambda: self.learner.applied_seq,
                recipe=lambda: recipe.model_dump(mode="json"),
            ),
        )
        metrics.journal_seq.set_function(lambda: self.journal.head.seq)
        metrics.journal_backlog.set_function(lambda: self.learner.backlog)
        metrics.backlog_seconds.set_function(self.reports.lag_s)

    def _make_http(self) -> None:
        background = Background()
        self._shutdown.add(Order.STOP_ANSWERING, background.name, background.stop)
        self.http = make_http(
            self.config,
            self._access,
            self.metrics,
            self.reports,
            self.learner,
            history=self.recorder.history,
            lessons=self.learn.lessons,
            background=background,
            on_failure=self._fail,
        )

    def _endpoints(self) -> dict[str, str]:
        loops = {loop.socket_name: loop.endpoint for loop in (self.learn, self.predict, self.control)}
        return {**loops, "http": self.http.address}

    @property
    def state(self) -> str:
        """`starting`, `ready`, `draining`, `stopping`; or `failed`, which is final."""
        if self.failure is not None:
            return "failed"
        return "draining" if self._phase == "ready" and self.admission.draining else self._phase

    # --- stop -------------------------------------------------------------------------------------------------------

    def _threads(self) -> Iterable[Worker]:
        zap = self._access.zap
        served = [each.thread for each in (self.learn, self.predict, self.control, self.http, zap) if each]
        return (*served, *self.learner.threads)

    def _end_learning(self, timeout_s: float) -> bool:
        return self.learner.end_learning(timeout_s, failed=self.failure is not None)

    def _end_commands(self, timeout_s: float) -> bool:
        """Python does not exit while a waiting command occupies a thread."""
        self.learner.end_waits()
        return True

    def _end_context(self, timeout_s: float) -> bool:
        """Sends pending replies for at most a second. Stays open if a loop is still alive and has a socket."""
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
