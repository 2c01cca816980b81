"""The checkpoints of a running daemon: store, writer thread, and waiting until one is written."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from ffstream.checkpoint.manifest import CHECKPOINTS
from ffstream.checkpoint.store import CheckpointStore, Stored
from ffstream.checkpoint.writer import CheckpointWriter, Written
from ffstream.config import Config
from ffstream.errors import DeadlineExceeded, Unavailable
from ffstream.learning.retention import Retention
from ffstream.metrics import Metrics
from ffstream.util.threads import OnFailure

_MAKE_ROOM_EVERY_S = 2.0
_NONE_WRITTEN = Written(-1, 0, 0.0, None)


def open_store(config: Config) -> CheckpointStore:
    """The checkpoints of a daemon with these options. Raises Unavailable."""
    options = config.checkpoint
    return CheckpointStore(
        config.state / CHECKPOINTS,
        keep=options.keep,
        recipe=config.network.model_dump(mode="json"),
        ladder_s=options.ladder_s,
        max_bytes=options.max_bytes,
    )


class Checkpoints:
    """`store` reads, `writer` writes, `retention` says which rows of the journal they make unnecessary."""

    def __init__(self, config: Config, metrics: Metrics, on_failure: OnFailure) -> None:
        self.store = open_store(config)
        self.retention = Retention(self.store)
        self.writer = CheckpointWriter(
            self.store, self._on_written, on_failure, bytes_per_s=config.checkpoint.write_bytes_per_s
        )
        self._metrics = metrics
        self._changed = threading.Condition()
        self._last_written = _NONE_WRITTEN
        self._writes = 0
        self._made_room_at = 0.0
        self.newest: Stored | None = None  # on disk
        self._connect_gauges()

    def begin_run(self) -> None:
        """A run begins from what is on disk. After a rollback, sequence numbers repeat."""
        with self._changed:
            self._last_written = _NONE_WRITTEN
        self.newest = self.store.newest_stored()

    def make_room(self) -> None:
        """Every two seconds: deletes one checkpoint besides the newest, if there is one. Returns at once.

        Does nothing during a rollback, which may be about to begin again from the checkpoint that would be deleted.
        """
        now = time.monotonic()
        with self.retention.unless_suspended() as allowed:
            if allowed and now - self._made_room_at >= _MAKE_ROOM_EVERY_S:
                self._made_room_at = now
                self.writer.shed()

    def wait_written(
        self, request: Callable[[], Future[int]], timeout_s: float, *, check: Callable[[], None]
    ) -> Written:
        """Requests a checkpoint and returns when it, or a later one, is durable.

        `check` is called every 0.1 s, and raises when the checkpoint will never be written. Raises DeadlineExceeded,
        and Unavailable when it could not be written.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            earlier = self._writes  # an earlier failure says nothing about this one
            requested = request()
            # A later one may be written before this thread sees the requested one. It contains everything in it.
            while not (
                requested.done()
                and self._last_written.seq >= requested.result()
                and (self._writes > earlier or self._last_written.error is None)
            ):
                check()
                if time.monotonic() >= deadline:
                    raise DeadlineExceeded("the checkpoint is not written yet", hint="see the daemon's log")
                self._changed.wait(0.1)
            written = self._last_written
        if written.error is not None:
            raise Unavailable(f"the checkpoint could not be written: {written.error}", hint="the log says why")
        return written

    def _on_written(self, written: Written) -> None:
        if written.error is not None:
            self._metrics.checkpoint_failures.inc()
        else:
            self._metrics.checkpoint_seconds.observe(written.seconds)
            self.newest = Stored(written.seq, written.bytes, time.time())
            self.retention.wrote(written.seq)
        with self._changed:
            self._last_written = written
            self._writes += 1
            self._changed.notify_all()

    def _connect_gauges(self) -> None:
        def value_of(figure: Callable[[Stored], float]) -> Callable[[], float | None]:
            return lambda: None if self.newest is None else figure(self.newest)

        self._metrics.checkpoint_seq.set_function(value_of(lambda newest: newest.seq))
        self._metrics.checkpoint_bytes.set_function(value_of(lambda newest: newest.bytes))
        self._metrics.checkpoint_timestamp.set_function(value_of(lambda newest: newest.written))
