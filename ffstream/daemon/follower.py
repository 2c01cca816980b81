"""Follows a daemon: a thread that asks for its newest snapshot again and again, and publishes it for predictions.

A daemon that does not answer, answers nonsense, or has another kind of images or labels changes nothing: the last
snapshot predicts on, and the trouble is logged, counted and shown. After a restart of the daemon, which its `boot`
tells, any version is taken, also of another network for the same images and labels.

Staleness is bounded without comparing clocks. An answer says how long after the request was received (`as_of_s`) its
snapshot was the newest. The request was sent before it was received, so since then no more time has passed than since
the sending plus `as_of_s`.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ffstream.client import Control, CurveKeys
from ffstream.errors import (
    BadHeader,
    Busy,
    CheckpointDamaged,
    CheckpointIncompatible,
    ConfigError,
    DeadlineExceeded,
    FFStreamError,
    ProtocolError,
    RequestRefused,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from ffstream.ff.recipe import Recipe, stored_recipe
from ffstream.metrics import Metrics
from ffstream.serving.replication import Decoder
from ffstream.serving.snapshot import Snapshot, Snapshots
from ffstream.util.option_errors import OptionError
from ffstream.util.threads import OnFailure, Worker
from ffstream.wire.messages import SnapshotInfo, Welcome

log = logging.getLogger(__name__)

_HELLO_S: Final = 1.0  # then it is tried again
_ANSWER_S: Final = 60.0  # for a large snapshot over a slow link
_WAIT_S: Final = 0.25  # without a newer snapshot the daemon answers after that time, which bounds the staleness
_RETRY_S: Final = 0.5
_SILENT_S: Final = 3.0  # without an answer, after which the daemon counts as gone
_REMOTE_CODES: Final = frozenset(each.code for each in (BadHeader, Busy, Unauthorized, Unavailable))


class Follower:
    """Thread `ff-follow`. It asks at most every `every_s` seconds."""

    name = "ff-follow"

    def __init__(
        self,
        endpoint: str,
        *,
        keys: CurveKeys | None,
        every_s: float,
        metrics: Metrics,
        on_failure: OnFailure,
        on_boot: Callable[[str], None] = lambda boot: None,
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_boot` gets the `boot` of the daemon before the first snapshot of it is published. `on_first` is called
        when there is a first snapshot, or a `failure` because of which there will be none. Raises ConfigError."""
        self.endpoint = endpoint
        self.trouble: FFStreamError | None = None  # with the last request; None if it was answered
        self.failure: FFStreamError | None = None  # why there will be no first snapshot
        self._control = Control(endpoint, keys=keys)
        self._every_s = every_s
        self._metrics = metrics
        self._on_boot = on_boot
        self._on_first = on_first
        self._stopping = threading.Event()
        self._boot = ""
        self._has_restarted = False  # since the welcome
        self._decoder: Decoder | None = None
        self._snapshots: Snapshots | None = None
        self._confirmed_at: float | None = None
        self._answered_at = time.monotonic()
        self._info: SnapshotInfo | None = None
        self.thread = Worker(self.name, self._follow, on_failure)
        metrics.replica_connected.set_function(lambda: float(self._info is not None and not self.is_gone()))
        metrics.replica_staleness.set_function(self.staleness_s)
        metrics.replica_behind.set_function(self.behind_samples)

    # --- for other threads ------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The network that is followed now. Not before the first snapshot."""
        assert self._decoder is not None
        return self._decoder.recipe

    @property
    def snapshots(self) -> Snapshots:
        """The snapshot that predicts. Not before the first one."""
        assert self._snapshots is not None
        return self._snapshots

    @property
    def boot(self) -> str:
        """The start of the daemon that the current snapshot comes from."""
        return self._boot

    def has_snapshot(self) -> bool:
        """Whether there is a snapshot to predict with."""
        return self._snapshots is not None

    def staleness_s(self) -> float | None:
        """The current weights were the daemon's newest that long ago, at most. None: there are none."""
        confirmed_at = self._confirmed_at
        return None if confirmed_at is None else max(0.0, time.monotonic() - confirmed_at)

    def behind_samples(self) -> float | None:
        """Samples that the daemon had learned when it last answered, and the current weights have not."""
        info = self._info
        return None if info is None else float(max(0, info.applied_seq - self.snapshots.current.seq))

    def is_gone(self) -> bool:
        """Whether the daemon has given no usable answer for some seconds. An answer that takes long over a connection
        that is up is on its way."""
        is_late = time.monotonic() - self._answered_at > _SILENT_S
        return is_late and (self.trouble is not None or not self._control.is_connected)

    def status(self) -> dict[str, Any]:
        """For people."""
        info, trouble = self._info, self.trouble
        return {
            "follows": self.endpoint,
            "boot": self._boot,
            "daemon_version": info and info.version,
            "daemon_seq": info and info.seq,
            "daemon_applied_seq": info and info.applied_seq,
            "staleness_s": self.staleness_s(),
            "behind_samples": self.behind_samples(),
            "trouble": trouble and str(trouble),
        }

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread. False if the deadline passed."""
        self._stopping.set()
        if not self.thread.was_started:
            self._control.close()
        return self.thread.join(timeout_s)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                try:
                    self._ask()
                    pause_s = self._every_s
                except FFStreamError as error:
                    if self._stopping.is_set():
                        return
                    self._note(error)
                    if self._snapshots is None and _is_final(error):
                        self.failure = error
                        self._on_first()
                        return
                    pause_s = max(self._every_s, _RETRY_S)
                with self.thread.waiting():
                    self._stopping.wait(max(0.0, began + pause_s - time.monotonic()))
        finally:
            self._control.close()

    def _ask(self) -> None:
        with self.thread.waiting():
            welcome = self._control.hello(_HELLO_S)
        self._check(welcome)
        is_known = self._decoder is not None and welcome.boot == self._boot and not self._has_restarted
        asked_at = time.monotonic()
        with self.thread.waiting():
            info, frames = self._control.snapshot(
                after=(self._boot, self.snapshots.current.version) if is_known else None,
                wait_s=_WAIT_S,
                recipe=not is_known,
                timeout_s=_ANSWER_S,
                give_up=lambda: self._must_give_up(asked_at),
            )
        if info.bytes:
            self._take(info, frames)
        if info.boot == self._boot and self._snapshots is not None:
            self._info = info
            if info.version == self._snapshots.current.version:
                self._confirmed_at = asked_at + info.as_of_s
        self._answered_at = time.monotonic()
        if self.trouble is not None:
            log.info("the daemon answers again endpoint=%s", self.endpoint)
            self.trouble = None

    def _must_give_up(self, asked_at: float) -> bool:
        is_lost = not self._control.is_connected and time.monotonic() - asked_at > _HELLO_S
        return is_lost or self._stopping.is_set()

    def _check(self, of: Welcome | Recipe) -> None:
        """Raises CheckpointIncompatible for images or labels other than those that are served."""
        if self._decoder is None:
            return
        ours = (list(self.recipe.image_shape), self.recipe.labels)
        theirs = (list(of.image_shape), of.labels)
        if ours != theirs:
            raise CheckpointIncompatible(
                f"the daemon at {self.endpoint} has images of shape {theirs[0]} and {theirs[1]} labels, and this"
                f" replica serves {ours[0]} and {ours[1]}",
                hint="start the replica again to serve the other network",
            )

    def _take(self, info: SnapshotInfo, frames: list[bytes]) -> None:
        decoder = self._decoder
        if info.boot != self._boot:
            self._has_restarted = info.recipe is None
            if info.recipe is None:  # it restarted after the welcome: the next request asks for its recipe
                raise Unreachable(f"the daemon at {self.endpoint} has restarted", hint="it is asked again")
            decoder = self._make_decoder(info.recipe)
        assert decoder is not None
        snapshot = decoder.decode(frames, info.checksum, info.version, info.seq)
        self._metrics.replica_received.inc()
        self._metrics.replica_received_bytes.inc(info.bytes)
        self._publish(info.boot, decoder, snapshot)

    def _make_decoder(self, stored: dict[str, Any]) -> Decoder:
        try:
            recipe = stored_recipe(stored)
        except OptionError as error:
            raise CheckpointIncompatible(
                f"the network of the daemon at {self.endpoint} cannot be used here: {error}",
                hint=error.hint or "are the daemon and this program of the same version?",
            ) from error
        self._check(recipe)
        return Decoder(recipe)

    def _publish(self, boot: str, decoder: Decoder, snapshot: Snapshot) -> None:
        self._decoder = decoder
        if boot == self._boot:
            self.snapshots.publish(snapshot)
            return
        was, self._boot = self._boot, boot
        self._on_boot(boot)
        is_first = self._snapshots is None
        snapshots = self._snapshots or Snapshots(self._metrics)
        snapshots.replace(snapshot)
        self._snapshots = snapshots
        log.info(
            "follows endpoint=%s boot=%s before=%s version=%d seq=%d",
            self.endpoint,
            boot,
            was or "none",
            snapshot.version,
            snapshot.seq,
        )
        if is_first:
            self._on_first()

    def _note(self, error: FFStreamError) -> None:
        """Logs a trouble once, until another one or an answer comes."""
        code = failure_code(error)
        self._metrics.replica_failures.labels(code).inc()
        before, self.trouble = self.trouble, error
        if before is None or failure_code(before) != code:
            level = (
                logging.ERROR
                if isinstance(error, ConfigError | CheckpointDamaged | ProtocolError)
                else logging.WARNING
            )
            if isinstance(error, DeadlineExceeded) and before is None and self._snapshots is None:
                level = logging.INFO  # it waits for a daemon that starts
            log.log(
                level, "the daemon is not followed now reason=%s error=%r hint=%r", code, error.message, error.hint
            )


def failure_code(error: FFStreamError) -> str:
    """Why a request failed: the code that the daemon has sent if it is one that a daemon sends to replicas."""
    if isinstance(error, RequestRefused) and error.remote_code in _REMOTE_CODES:
        return error.remote_code
    return error.code


def _is_final(error: FFStreamError) -> bool:
    """Whether another try does not help at the start: a wrong endpoint or key, a daemon that knows no snapshots."""
    if isinstance(error, RequestRefused):
        return error.remote_code in (Unauthorized.code, BadHeader.code)
    return isinstance(error, ConfigError)
