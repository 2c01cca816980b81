"""Requests for snapshots, which prediction replicas send over the control socket: a request waits for newer weights.

They are answered in rounds. A round sends the newest snapshot to each follower that has an older one, and encodes it
once for all. `limits.followers_every_s` lies between two rounds, so many requests cost no more than few. A connection
has one request at a time, and gets no other snapshot while it has not read the last one. A snapshot stays in memory
until it is read, so `limits.followers_max_bytes` limits how many different ones may wait.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import zmq

from ffstream.config import Limits
from ffstream.errors import Busy, FFStreamError
from ffstream.metrics import Metrics
from ffstream.serving.replication import Encoded, encode
from ffstream.serving.snapshot import Snapshot
from ffstream.wire.codec import snapshot_request
from ffstream.wire.messages import Request, SnapshotInfo, SnapshotRequest

COMMAND = "snapshot"
_WAIT_MAX_S = 30.0  # then the answer is that there is nothing newer: a peer that is gone keeps no place for long


class Source(NamedTuple):
    """What followers follow."""

    newest: Callable[[], Snapshot]
    applied_seq: Callable[[], int]
    recipe: Callable[[], dict[str, Any]]


class Answer(NamedTuple):
    """A result for a peer. `encoded`: its payload."""

    peer: bytes
    id: int
    sender: str
    key: str
    result: dict[str, Any]
    encoded: Encoded | None


class Rejection(NamedTuple):
    """An error for a peer."""

    peer: bytes
    id: int
    sender: str
    error: BaseException


class _Waiting(NamedTuple):
    peer: bytes
    id: int
    sender: str
    key: str
    request: SnapshotRequest
    since: float


class _Round(NamedTuple):
    """A snapshot that is being encoded. It was the newest at `at`, when `applied_seq` was learned."""

    at: float
    applied_seq: int
    encoded: Future[Encoded]


class Followers:
    """For the thread of the control loop. `submit` encodes on another thread."""

    def __init__(
        self,
        source: Source,
        limits: Limits,
        metrics: Metrics,
        *,
        boot: str,
        submit: Callable[[Callable[[], Encoded]], Future[Encoded]],
    ) -> None:
        self._source = source
        self._limits = limits
        self._metrics = metrics
        self._boot = boot
        self._submit = submit
        self._waiting: dict[bytes, _Waiting] = {}
        self._sent: dict[bytes, tuple[zmq.MessageTracker, Encoded]] = {}  # and not read
        self._round: _Round | None = None
        self._last: Encoded | None = None
        self._next_round = 0.0
        metrics.followers.set_function(lambda: len(self._waiting.keys() | self._sent.keys()))

    @property
    def waits(self) -> bool:
        """Whether requests wait."""
        return bool(self._waiting)

    def add(self, peer: bytes, request: Request, sender: str, key: str = "") -> None:
        """Takes a request. `key`: of the client, empty without one. Raises BadHeader, Busy."""
        arguments = snapshot_request(request.arguments)
        self._forget_read()
        if peer in self._waiting:
            raise Busy("this connection has a request for a snapshot already", hint="wait for the answer")
        if peer not in self._sent and len(self._waiting.keys() | self._sent.keys()) >= self._limits.followers_max:
            raise Busy(f"{self._limits.followers_max} replicas follow this daemon", hint="raise limits.followers_max")
        self._waiting[peer] = _Waiting(peer, request.id, sender, key, arguments, time.monotonic())

    def poll(self) -> Iterator[Answer | Rejection]:
        """What can be answered now. The caller sends it, and passes an answer's tracker to `sent`."""
        self._forget_read()
        if not self._waiting:
            return
        if self._round is not None and self._round.encoded.done():
            done, self._round = self._round, None
            yield from self._end_round(done)
        now = time.monotonic()
        if self._round is None and now >= self._next_round:
            self._begin_round(now)
        for each in [each for each in self._waiting.values() if self._is_late(each, now)]:
            newest = self._source.newest()
            if self._round is None or not self._wants(each, newest):
                yield self._answer(each, newest, self._source.applied_seq(), now, None)

    def sent(self, answer: Answer, tracker: zmq.MessageTracker | None) -> None:
        """The answer is on its way; None: it was dropped."""
        if answer.encoded is None or tracker is None:
            return
        self._sent[answer.peer] = (tracker, answer.encoded)
        self._metrics.snapshots_sent.inc()
        self._metrics.snapshots_sent_bytes.inc(answer.encoded.bytes)

    def reject_all(self, error: FFStreamError) -> Iterator[Rejection]:
        """Ends every wait."""
        while self._waiting:
            _, each = self._waiting.popitem()
            yield Rejection(each.peer, each.id, each.sender, error)

    def _begin_round(self, now: float) -> None:
        newest = self._source.newest()
        if not any(self._wants(each, newest) for each in self._waiting.values()) or not self._has_room(newest):
            return
        self._next_round = now + self._limits.followers_every_s
        last = self._last
        if last is not None and last.snapshot is newest:
            encoded: Future[Encoded] = Future()
            encoded.set_result(last)
        else:
            encoded = self._submit(lambda: encode(newest))
        self._round = _Round(now, self._source.applied_seq(), encoded)

    def _end_round(self, done: _Round) -> Iterator[Answer | Rejection]:
        error = done.encoded.exception()
        encoded = None if error else done.encoded.result()
        self._last = encoded
        for each in list(self._waiting.values()):
            if error is not None:
                del self._waiting[each.peer]
                yield Rejection(each.peer, each.id, each.sender, error)
            elif encoded is not None and self._wants(each, encoded.snapshot):
                yield self._answer(each, encoded.snapshot, done.applied_seq, done.at, encoded)

    def _answer(
        self, waiting: _Waiting, newest: Snapshot, applied_seq: int, at: float, encoded: Encoded | None
    ) -> Answer:
        del self._waiting[waiting.peer]
        info = SnapshotInfo(
            boot=self._boot,
            version=newest.version,
            seq=newest.seq,
            applied_seq=max(applied_seq, newest.seq),
            as_of_s=at - waiting.since,
            bytes=encoded.bytes if encoded else 0,
            checksum=encoded.checksum if encoded else "",
            recipe=self._source.recipe() if waiting.request.recipe else None,
        )
        return Answer(waiting.peer, waiting.id, waiting.sender, waiting.key, info.model_dump(), encoded)

    def _wants(self, waiting: _Waiting, newest: Snapshot) -> bool:
        """Whether that snapshot is newer than what the follower has, and the follower reads. Another start of the
        daemon counts anew."""
        request = waiting.request
        if waiting.peer in self._sent:
            return False
        return request.after is None or request.boot != self._boot or newest.version > request.after

    def _is_late(self, waiting: _Waiting, now: float) -> bool:
        return now - waiting.since >= min(waiting.request.timeout_s, _WAIT_MAX_S)

    def _has_room(self, newest: Snapshot) -> bool:
        """Whether it may be sent: sizes are those of the last snapshot, since all are of one network."""
        unread = {id(encoded): encoded.bytes for _, encoded in self._sent.values() if encoded.snapshot is not newest}
        if not unread or any(encoded.snapshot is newest for _, encoded in self._sent.values()):
            return True
        return sum(unread.values()) + max(unread.values()) <= self._limits.followers_max_bytes

    def _forget_read(self) -> None:
        for peer in [peer for peer, (tracker, _) in self._sent.items() if tracker.done]:
            del self._sent[peer]
