"""A prediction replica: follows a daemon, and answers the predict protocol with its newest snapshot.

    control socket of the daemon → follower → snapshots → predict loop

It keeps nothing on disk. If the daemon is gone, the last snapshot predicts on: `/readyz` and `pong` say so, and the
metric `ffstream_replica_staleness_seconds` says for how long. It takes up the daemon's next start by itself.
"""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any

import zmq
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ffstream import __version__
from ffstream.client import CurveKeys
from ffstream.config import Config
from ffstream.daemon.follower import Follower
from ffstream.daemon.shutdown import ReplicaOrder, Shutdown
from ffstream.errors import ConfigError, DeadlineExceeded, FFStreamError, StageFailed
from ffstream.metrics import Metrics
from ffstream.pipeline.device import bound_compiled_products
from ffstream.server.access import Access
from ffstream.server.answers import answer
from ffstream.server.http import HttpServer
from ffstream.server.http_app import make_app
from ffstream.server.predict import PredictLoop
from ffstream.server.probes import probe_routes
from ffstream.server.readiness import Readiness
from ffstream.server.resources import check_free_files, raise_file_limit, return_free_memory
from ffstream.serving.predictor import Predictor
from ffstream.util.os_errors import as_start_errors
from ffstream.util.threads import find_stuck, use_one_core
from ffstream.wire.images import ImageChecker

log = logging.getLogger(__name__)

SOCKETS = ("predict",)
_POLL_S = 1.0
_RETURN_MEMORY_S = 10.0
_FROZEN_S = 2.0  # a poll that is later means that the process, or the machine, was stopped


class _Wake(Enum):
    """Why a wait is interrupted."""

    STOP = 1
    RELOAD = 2
    FIRST = 3


class Replica:
    """One replica. `start`, then `wait`, then `stop`.

    Of the options it uses `listen.predict`, `listen.http`, [limits], [security] and [http] as a daemon does, and
    `pipeline.stall_timeout_s` and `shutdown.drain_timeout_s`. Raises ConfigError, StartBlocked.
    """

    @as_start_errors()
    def __init__(
        self,
        config: Config,
        follow: str,
        *,
        keys: CurveKeys | None = None,
        every_s: float = 0.1,
        max_staleness_s: float = 0.0,
    ) -> None:
        """Follows the control socket `follow`, asks it at most every `every_s`. With a `max_staleness_s` it is not
        ready beyond that staleness."""
        self.config = config
        self.metrics = Metrics()
        self.failure: FFStreamError | None = None
        self._max_staleness_s = max_staleness_s
        self._phase = "starting"  # then "ready", then "stopping"
        self._must_stop = False  # by request
        self._access = Access(config, self.metrics, self._fail, SOCKETS)
        self._shutdown = Shutdown()
        # Not an Event: setting one in a signal handler deadlocks if that thread is about to wait for it.
        self._wake: SimpleQueue[_Wake] = SimpleQueue()
        self.predict: PredictLoop | None = None
        self.follower = Follower(
            follow,
            keys=keys,
            every_s=every_s,
            metrics=self.metrics,
            on_failure=self._fail,
            on_boot=self._take_boot,
            on_first=lambda: self._wake.put(_Wake.FIRST),
        )
        self._shutdown.add(ReplicaOrder.STOP_FOLLOWING, self.follower.name, self.follower.stop)

    # --- start ------------------------------------------------------------------------------------------------------

    def start(self, heartbeat: Callable[[], None] = lambda: None) -> bool:
        """Waits for the first snapshot, then serves. False if a stop was requested before.

        HTTP answers from the beginning. Calls `heartbeat` each second. Raises FFStreamError; then nothing is left
        running.
        """
        try:
            return self._start(heartbeat)
        except BaseException:
            with suppress(FFStreamError):  # the caller needs the first failure; `stop` has logged its own
                self.stop()
            raise

    @as_start_errors()
    def _start(self, heartbeat: Callable[[], None]) -> bool:
        use_one_core()
        bound_compiled_products()
        raise_file_limit()
        check_free_files()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._shutdown.add(ReplicaOrder.CLOSE_CONTEXT, "sockets", self._end_context)
        self._start_http()
        self.follower.start()
        log.info("follows endpoint=%s pid=%d http=%s", self.follower.endpoint, os.getpid(), self.http.address)
        while not self.follower.has_snapshot():
            if self._is_woken(_POLL_S):
                break
            heartbeat()
        for failure in (self.failure, self.follower.failure):
            if failure is not None:
                raise failure
        if self._must_stop:
            return False
        self._start_predicting()
        self._phase = "ready"
        current = self.follower.snapshots.current
        log.info(
            "ready version=%s predict=%s http=%s snapshot=%d seq=%d",
            __version__,
            self.endpoint,
            self.http.address,
            current.version,
            current.seq,
        )
        return True

    def _start_http(self) -> None:
        config, access = self.config, self._access
        routes = [
            *probe_routes(
                self.metrics.registry,
                alive=lambda: self.failure is None,
                predicts=self.readiness,
                learns=lambda: Readiness(False, "replica: send samples to the daemon that it follows"),
            ),
            Route("/status", self._show_status),
        ]
        self.http = HttpServer(
            make_app(routes, hosts=access.hosts, token=access.http_token, rejections=access.http_rejections),
            config.listen.http,
            config.limits.http_connections,
            config.limits.handshake_timeout_s,
            config.limits.http_keep_alive_s,
            self._fail,
            access.http_rejections,
        )
        self._shutdown.add(ReplicaOrder.STOP_ANSWERING, self.http.name, self.http.stop)
        self.http.start()

    def _start_predicting(self) -> None:
        zap = self._access.zap
        if zap is not None:
            zap.start(self._context)
            self._shutdown.add(ReplicaOrder.STOP_AUTHENTICATING, zap.name, zap.stop)
        recipe, limits = self.follower.recipe, self.config.limits
        loop = PredictLoop(
            Predictor(self.follower.snapshots),
            ImageChecker(
                recipe.image_shape, recipe.labels, limits.message_max_samples, unlabelled=recipe.learns_unlabelled
            ),
            limits,
            note=self._note,
            boot=self.follower.boot,
            metrics=self.metrics,
            on_failure=self._fail,
        )
        loop.bind(self._context, self.config.listen.predict, self._access.guards.get("predict"))
        self.predict = loop
        self._take_boot(self.follower.boot)  # it may have changed in the meantime
        self._shutdown.add(ReplicaOrder.STOP_ANSWERING, loop.name, loop.stop)
        loop.start()

    def _take_boot(self, boot: str) -> None:
        """A boot and a version name the same weights here as at the daemon."""
        if self.predict is not None:
            self.predict.boot = boot

    # --- what it says -----------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """Where predictions are answered; empty before that."""
        return self.predict.endpoint if self.predict is not None else ""

    def readiness(self) -> Readiness:
        """Whether predictions are answered, by weights that are new enough."""
        if self.failure is not None:
            return Readiness(False, "failed: a thread has died or is stuck; see its log")
        if self.predict is None or not self.predict.serves:
            text = "it waits for a first snapshot" if self._phase == "starting" else "it ends"
            return Readiness(False, f"{self._phase}: {text}")
        staleness_s, note = self.follower.staleness_s() or 0.0, self._note()
        if 0 < self._max_staleness_s < staleness_s:
            return Readiness(False, f"stale: {note or _age(staleness_s)}; predictions are still answered")
        return Readiness(True, f"ready, {note}" if note else "ready")

    def _note(self) -> str:
        """Why newer weights do not come; empty while the daemon is followed."""
        if not self.follower.is_gone():
            return ""
        if self.follower.trouble is None or isinstance(self.follower.trouble, DeadlineExceeded):
            what = "the daemon does not answer"
        elif isinstance(self.follower.trouble, ConfigError):
            what = "the daemon serves another network"
        else:
            what = "the daemon gives no usable snapshot"
        return f"{what}; {_age(self.follower.staleness_s() or 0.0)}"

    def status(self) -> dict[str, Any]:
        """What the replica is doing, as `/status` shows it."""
        readiness = self.readiness()
        current = self.follower.snapshots.current if self.follower.has_snapshot() else None
        return {
            "state": "failed" if self.failure is not None else self._phase,
            "version": __version__,
            "ready": readiness.text,
            "snapshot": current and {"version": current.version, "seq": current.seq},
            **self.follower.status(),
            "endpoints": {"predict": self.endpoint, "http": self.http.address},
        }

    def _show_status(self, request: Request) -> Response:
        return answer(self.status())

    # --- serve and stop ---------------------------------------------------------------------------------------------

    def wait(self, heartbeat: Callable[[], None] = lambda: None) -> None:
        """Returns when a stop was requested or something failed. Until then, calls `heartbeat` each second."""
        limit_s = self.config.pipeline.stall_timeout_s
        returned = polled = watched_from = time.monotonic()
        while not self._is_woken(_POLL_S):
            before, polled = polled, time.monotonic()
            self.metrics.process.refresh()
            if polled - before > _POLL_S + _FROZEN_S:
                watched_from = polled  # no thread makes progress while the whole process is stopped
            if polled - returned > _RETURN_MEMORY_S:
                return_free_memory()
                returned = polled
            stuck = self._stalled(limit_s) if polled - watched_from > limit_s else None
            if stuck is not None:
                self._fail(StageFailed(f"{stuck} made no progress for {limit_s:g} s", hint="restart; see the log"))
            else:
                heartbeat()

    def _stalled(self, limit_s: float) -> str | None:
        parts = (self.predict, self.http, self.follower, self._access.zap)
        return find_stuck([each.thread for each in parts if each is not None], limit_s)

    def _is_woken(self, timeout_s: float) -> bool:
        """Whether a stop was requested, or while it starts the first snapshot came, before the timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                reason = self._wake.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return False
            if reason is _Wake.RELOAD:
                self._access.reload()
            elif reason is _Wake.STOP or self._phase == "starting":
                return True

    def request_stop(self) -> None:
        """Sets a flag and returns; safe in a signal handler. The thread in `wait` then stops the replica."""
        self._must_stop = True
        self._wake.put(_Wake.STOP)

    def request_reload(self) -> None:
        """Sets a flag to read the client keys again."""
        self._wake.put(_Wake.RELOAD)

    def _fail(self, error: FFStreamError) -> None:
        """The first thread to die ends the replica."""
        if self.failure is None:
            self.failure = error
            log.error("failed error=%s", error)
        self._wake.put(_Wake.STOP)

    def stop(self) -> None:
        """Ends what was started, in order, each step with a deadline. Raises the failure that ended the replica."""
        served, self._phase = self._phase == "ready", "stopping"
        late = self._shutdown.run(self.config.shutdown.drain_timeout_s)
        if served or late:
            log.info("stopped late=%s", ",".join(late) or "none")
        if self.failure is not None:
            raise self.failure
        if late:
            raise DeadlineExceeded(f"did not stop in time: {', '.join(late)}", hint="nothing is lost")

    def _end_context(self, timeout_s: float) -> bool:
        """Sends pending replies for at most a second. Stays open if the loop is still alive and has a socket."""
        if self.predict is not None and self.predict.thread.is_alive():
            return False
        self._context.term()
        if self.predict is not None:
            self.predict.release()
        return True


def _age(staleness_s: float) -> str:
    return f"its weights were the newest {staleness_s:.1f} s ago"
