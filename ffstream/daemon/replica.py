"""A prediction replica: follows a daemon, and answers the predict protocol with its newest snapshot.

    control socket of the daemon → follower → snapshots → predict loop

It keeps nothing on disk. If the daemon is gone, the last snapshot predicts on: `/readyz` and `pong` say so, and the
metric `ffstream_replica_staleness_seconds` says for how long. It takes up the daemon's next start by itself.
"""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import zmq
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ffstream import __version__
from ffstream.client import CurveKeys
from ffstream.config import Config
from ffstream.daemon.follower import Follower, failure_code
from ffstream.daemon.foreground import POLL_S, Foreground, Wake
from ffstream.daemon.shutdown import ReplicaOrder
from ffstream.daemon.website import http_server
from ffstream.errors import Busy, ConfigError, DeadlineExceeded, FFStreamError, Unauthorized
from ffstream.pipeline.device import bound_compiled_products
from ffstream.server.answers import answer
from ffstream.server.predict import PredictLoop
from ffstream.server.probes import probe_routes
from ffstream.server.readiness import Readiness
from ffstream.server.resources import check_free_files, raise_file_limit
from ffstream.serving.predictor import Predictor
from ffstream.util.os_errors import as_start_errors
from ffstream.util.threads import Worker, use_one_core
from ffstream.wire.images import ImageChecker

log = logging.getLogger(__name__)

_SOCKETS = ("predict",)


class Replica(Foreground):
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
        super().__init__(config, _SOCKETS)
        self._max_staleness_s = max_staleness_s
        self._must_stop = False  # by request
        self.predict: PredictLoop | None = None
        self.follower = Follower(
            follow,
            keys=keys,
            every_s=every_s,
            metrics=self.metrics,
            on_failure=self._fail,
            on_boot=self._take_boot,
            on_first=lambda: self._wake.put(Wake.FIRST),
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
        log.info(
            "waiting for a first snapshot endpoint=%s pid=%d http=%s",
            self.follower.endpoint,
            os.getpid(),
            self.http.address,
        )
        self.follower.start()
        while not self.follower.has_snapshot():
            if self._is_woken(POLL_S):
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
        routes = [
            *probe_routes(
                self.metrics.registry,
                alive=lambda: self.failure is None,
                predicts=self.readiness,
                learns=lambda: Readiness(False, "replica: send samples to the daemon that it follows"),
            ),
            Route("/status", self._show_status),
        ]
        self.http = http_server(self.config, self._access, routes, self._fail)
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
        return f"{_reason(self.follower.trouble)}; {_age(self.follower.staleness_s() or 0.0)}"

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

    # --- stop -------------------------------------------------------------------------------------------------------

    def _threads(self) -> Iterable[Worker]:
        parts = (self.predict, self.http, self.follower, self._access.zap)
        return [each.thread for each in parts if each is not None]

    def request_stop(self) -> None:
        """Also before the first snapshot, which ends the same wait."""
        self._must_stop = True
        super().request_stop()

    def _end_context(self, timeout_s: float) -> bool:
        """Sends pending replies for at most a second. Stays open if the loop is still alive and has a socket."""
        if self.predict is not None and self.predict.thread.is_alive():
            return False
        self._context.term()
        if self.predict is not None:
            self.predict.release()
        return True


def _reason(trouble: FFStreamError | None) -> str:
    if trouble is None or isinstance(trouble, DeadlineExceeded):
        return "the daemon does not answer"
    if isinstance(trouble, ConfigError):
        return "the daemon serves another network"
    code = failure_code(trouble)
    if code == Unauthorized.code:
        return "the daemon rejects the key of this replica"
    if code == Busy.code:
        return "the daemon has too many replicas"
    return "the daemon gives no usable snapshot"


def _age(staleness_s: float) -> str:
    return f"its weights were the newest {staleness_s:.1f} s ago"
