"""The stages of one training run, as the daemon sees them: it starts them, hears their reports and their parts of
barriers, and notices when one is lost.

    feeder ─→ inbox ─→ stage 0 ─→ stage 1 … ─→ stage n        activities and barriers, from actor to actor
                 thread ff-cluster ←──── a control socket for each stage

A stage that is lost ends all of them: another run begins, from a checkpoint. A stage that reports an error of its own
fails the daemon, as a thread does.
"""

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import zmq
from torch import Tensor
from zmq.utils.monitor import recv_monitor_message

from ffstream.errors import FFStreamError, StageFailed, StagesLost
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Closed, Item
from ffstream.pipeline.cluster.figures import unpacked
from ffstream.pipeline.cluster.frames import Message, pack, unpack
from ffstream.pipeline.cluster.hops import HopOut
from ffstream.pipeline.cluster.keeper_process import KeeperProcess
from ffstream.pipeline.cluster.requests import Place, Slot, Spot
from ffstream.pipeline.cluster.sockets import LINGER_MS, Keys, Socket, connected, monitor_of
from ffstream.pipeline.messages import Barrier, Part
from ffstream.pipeline.stage_gauges import StageGauges
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)

# What a loss was noticed by: the keeper misses the actor, its connection is gone, it says nothing.
LossReason = Literal["actor", "connection", "stalled"]
_TICK_MS: Final = 100
_PING_S: Final = 1.0
_EXPLAIN_S: Final = 1.0  # in which the cause of what a stage noticed arrives: another one has failed, or is gone
_END_S: Final = 5.0  # in which stages must end when the run is over; then their actors are replaced


class StageStart(NamedTuple):
    """What a stage begins with: plain values, and the tensors of its state."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Inbox:
    """What the feeder sends to. Made before the stages are placed, so that it can be closed at any time."""

    def __init__(self) -> None:
        self.hop: HopOut | None = None
        self.barriers: dict[int, Barrier] = {}  # on their way, by version
        self._closed = self._dropped = False

    def put(self, item: Item) -> None:
        """For the feeder's thread. Raises Closed."""
        if self._closed or self.hop is None:
            raise Closed
        if isinstance(item, Barrier):
            self.barriers[item.version] = item
        self.hop.put(item)

    def close(self, *, drop: bool = False) -> None:
        """Nothing follows. With `drop`, from any thread: `put` raises Closed from now on.

        The feeder closes it at its end in any case, on the thread to which the socket belongs.
        """
        self._closed = True
        self._dropped |= drop
        if self.hop is not None and not drop:
            self.hop.close(drop=self._dropped)
            self.hop.release()

    @property
    def is_closed(self) -> bool:
        """Whether nothing follows."""
        return self._closed

    def check(self) -> None:
        """For the hop, while it waits."""
        if self._dropped:
            raise Closed


class Placement(NamedTuple):
    """How the stages are placed. `keeper` returns the one that runs now, or raises StagesLost."""

    keeper: Callable[[], KeeperProcess]
    context: "zmq.Context[Any]"
    slots: Sequence[Slot]
    encrypt: bool
    timeout_s: float


class _Line:
    """The connection to one stage."""

    def __init__(self, start: StageStart, gauges: StageGauges) -> None:
        self.start = start
        self.gauges = gauges
        self.spot: Spot | None = None
        self.device: Mapping[str, str] = {}
        self.socket: Socket
        self.monitor: Socket
        self.heard_at = time.monotonic()
        self.taken = self.sent = 0  # items, as it has last reported
        self.ended = False

    def place(self) -> dict[str, Any]:
        """For the status."""
        spot = self.spot
        where = {} if spot is None else {"node": spot.node, "host": spot.host, "pid": spot.pid}
        return {**where, **self.device}


class ClusterStages:
    """See `engine.Stages`."""

    def __init__(
        self,
        starts: Sequence[StageStart],
        gauges: Sequence[StageGauges],
        weights: Mapping[str, Tensor],
        *,
        placement: Placement,
        depth: int,
        stall_s: float,
        metrics: Metrics,
        on_failure: OnFailure,
    ) -> None:
        self.gauges = gauges
        self._placement = placement
        self.inbox = Inbox()
        self._lines = [_Line(start, each) for start, each in zip(starts, gauges, strict=True)]
        self._weights = weights
        self._depth = depth
        self._stall_s = stall_s
        self._metrics = metrics
        self._on_failure = on_failure
        self._keeper: KeeperProcess | None = None
        self._aborting = False
        self._failed = False
        self._losing = threading.Lock()
        self._suspicion: tuple[float, _Line, str] | None = None  # when which stage noticed what
        self._loss: StagesLost | None = None
        self._parts: Counter[int] = Counter()  # that have arrived, by the version of their barrier
        self._pinged_at = 0.0
        self._fed: tuple[float, ...] = (0.0, 0.0, 0.0)
        self.thread = Worker("ff-cluster", self._listen, on_failure)
        for index, line in enumerate(self._lines):
            line.gauges.place = line.place
            line.gauges.queue_depth = self._queue_before(index)

    def _queue_before(self, index: int) -> Any:
        """Items on their way to a stage, or waiting before it, as far as is known."""
        line = self._lines[index]
        if index:
            before = self._lines[index - 1]
            return lambda: max(0, before.sent - line.taken)
        return lambda: 0 if self.inbox.hop is None else max(0, self.inbox.hop.sent - line.taken)

    @property
    def threads(self) -> list[Worker]:
        """One, for all stages."""
        return [self.thread]

    @property
    def device(self) -> Mapping[str, str]:
        """What the first stage said of it."""
        return self._lines[0].device

    def weights(self) -> dict[str, Tensor]:
        """Those that the stages begin with."""
        return dict(self._weights)

    # --- start ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Places and starts all stages. Raises StagesLost; then nothing of them is left."""
        placement = self._placement
        deadline = time.monotonic() + placement.timeout_s
        token, keys = secrets.token_hex(16), Keys.new()
        self._keeper = keeper = placement.keeper()
        placed = keeper.place(Place(placement.slots, token, keys.public, placement.encrypt, placement.timeout_s))
        context = placement.context
        for line, spot in zip(self._lines, placed.spots, strict=True):
            line.spot = spot
            line.socket = connected(context, spot.host, spot.control, token, keys if spot.key else None, spot.key)
            line.monitor = monitor_of(line.socket)
        try:
            self._begin(keys, deadline)
        except FFStreamError:
            self._end_lines()
            raise
        first = placed.spots[0]
        hop = connected(context, first.host, first.inlet, token, keys if first.key else None, first.key)
        self.inbox.hop = HopOut(hop, self._depth, self.inbox.check)
        self._show_places()
        self.thread.start()

    def _show_places(self) -> None:
        self._metrics.stage_place.clear()
        for index, line in enumerate(self._lines):
            spot, device = line.spot, line.device["device"]
            assert spot is not None
            self._metrics.stage_place.labels(str(index), spot.node, device).set(1)
            for reason in get_args(LossReason):
                self._metrics.stage_replacements.labels(str(index), reason)  # 0 from now on
            where = spot.node, spot.host, spot.pid, device
            log.info("stage placed stage=%d node=%s host=%s pid=%d device=%s", index, *where)

    def _begin(self, keys: Keys, deadline: float) -> None:
        spots = [line.spot for line in self._lines if line.spot is not None]
        for index, line in enumerate(self._lines):
            clients = [keys.public, *([spots[index - 1].key] if index else [])]
            line.socket.send_multipart(
                pack("start", {**line.start.fields, "clients": clients}, line.start.tensors), copy=False
            )
        for line in self._lines:
            line.device = self._expect(line, "ready", deadline).fields
        for index, line in enumerate(self._lines):
            following = spots[index + 1]._asdict() if index + 1 < len(spots) else None
            line.socket.send_multipart(pack("go", {"next": following}))
            line.heard_at = time.monotonic()
            # The state is with the stage now.
            line.start = StageStart(line.start.fields, {})

    def _expect(self, line: _Line, kind: str, deadline: float) -> Message:
        while True:
            left = deadline - time.monotonic()
            if line.socket.poll(max(0, min(_TICK_MS, int(left * 1000)))):
                frames: list[Any] = line.socket.recv_multipart(copy=False)
                message = unpack(frames)
                if message.kind == kind:
                    return message
                if message.kind == "failed":
                    raise self._failure(line, message)
                if message.kind == "ended":
                    line.ended = True
                    raise StagesLost(f"{line.gauges.name} has ended", hint="stages are placed again")
            if self._loss is not None:
                raise self._loss
            if left <= 0:
                raise StagesLost(
                    f"{line.gauges.name} is not ready in time", hint="cluster.start_timeout_s is the limit"
                )

    # --- the thread -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        poller = zmq.Poller()
        for line in self._lines:
            poller.register(line.socket, zmq.POLLIN)
            poller.register(line.monitor, zmq.POLLIN)
        lines = {line.socket: line for line in self._lines}
        monitors = {line.monitor: line for line in self._lines}
        hop = self.inbox.hop
        assert hop is not None
        fed = hop.monitor
        poller.register(fed, zmq.POLLIN)
        try:
            while not self._is_over():
                with self.thread.waiting():
                    ready = dict(poller.poll(_TICK_MS))
                for socket in ready:
                    if socket in lines:
                        self._hear(lines[socket])
                for socket in ready:
                    if socket in monitors:
                        recv_monitor_message(socket)
                        self._hear(monitors[socket])  # what it said last
                        if not monitors[socket].ended:
                            self._lose(monitors[socket], "connection", "its connection is gone")
                if fed in ready:
                    recv_monitor_message(fed)
                    if not self.inbox.is_closed:
                        self._suspect(self._lines[0], "the connection over which it is fed is gone")
                self._tick()
        finally:
            self.inbox.close(drop=True)
            self._count_hop(0, hop)
            self._end_lines()
        if self._loss is not None and not self._aborting:
            self._on_failure(self._loss)
        if hop.released.wait(_END_S):
            fed.close()

    def _is_over(self) -> bool:
        if self._aborting or self._loss is not None:
            return True
        explained = self._suspicion is None or self._failed
        return explained and all(line.ended for line in self._lines)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._suspicion is not None and now - self._suspicion[0] > _EXPLAIN_S:
            self._lose(self._suspicion[1], "connection", self._suspicion[2])
        if now - self._pinged_at < _PING_S:
            return
        self._pinged_at = now
        self._count_hop(0, self.inbox.hop)
        for line in self._lines:
            if not line.ended:
                line.socket.send_multipart(pack("ping"))
                if now - line.heard_at > self._stall_s:
                    self._lose(line, "stalled", f"it has said nothing for {self._stall_s:g} s")

    def _hear(self, line: _Line) -> None:
        while True:
            try:
                frames: list[Any] = line.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            line.heard_at = time.monotonic()
            message = unpack(frames)
            match message.kind:
                case "report":
                    self._report(line, message.fields)
                case "part":
                    self._contribute(line, message)
                case "failed" if message.fields["code"] == StagesLost.code:
                    self._suspect(line, message.fields["message"])
                case "failed":
                    self._failed = True
                    self._on_failure(self._failure(line, message))
                case "ended":
                    line.ended = True
                    line.socket.send_multipart(pack("bye"))
                    if not self.inbox.is_closed:
                        self._suspect(line, "it has ended, because it heard nothing from the daemon")

    def _report(self, line: _Line, fields: Mapping[str, Any]) -> None:
        for seconds, seq, fresh in fields["steps"]:
            line.gauges.on_step(seconds, seq, fresh)
        if "figures" in fields:
            line.gauges.on_barrier(unpacked(fields["figures"]))
        if "hops" in fields:
            received_s, sent_bytes, sent_s, waited_s = fields["hops"]
            index = self._lines.index(line)
            self._metrics.hop_seconds.labels(str(index), "receive").inc(received_s)
            if index + 1 < len(self._lines):
                self._count(index + 1, sent_bytes, sent_s, waited_s)
            line.taken, line.sent = fields["taken"], fields["sent"]

    def _count_hop(self, index: int, hop: HopOut | None) -> None:
        if hop is not None:
            now = (float(hop.bytes), hop.send_s, hop.wait_s)
            self._count(index, *(new - old for new, old in zip(now, self._fed, strict=True)))
            self._fed = now

    def _count(self, index: int, sent_bytes: float, sent_s: float, waited_s: float) -> None:
        metrics, label = self._metrics, str(index)
        metrics.hop_bytes.labels(label).inc(sent_bytes)
        metrics.hop_seconds.labels(label, "send").inc(sent_s)
        metrics.hop_seconds.labels(label, "wait").inc(waited_s)

    def _contribute(self, line: _Line, message: Message) -> None:
        version = message.fields["version"]
        barrier = self.inbox.barriers[version]
        self._parts[version] += 1
        if self._parts[version] == len(self._lines):
            del self._parts[version], self.inbox.barriers[version]
        tensors: dict[str, dict[str, Tensor]] = {"weights": {}, "tensors": {}}
        for name, value in message.tensors.items():
            kind, _, rest = name.partition("/")
            tensors[kind][rest] = value
        barrier.contribute(
            message.fields["name"], Part(tensors["weights"], tensors["tensors"], message.fields["progress"])
        )

    def _failure(self, line: _Line, message: Message) -> FFStreamError:
        fields, spot = message.fields, line.spot
        where = "" if spot is None else f" on node {spot.node}"
        if fields["code"] == StagesLost.code:
            return StagesLost(f"{line.gauges.name}{where}: {fields['message']}", hint=fields["hint"])
        return StageFailed(f"{line.gauges.name}{where}: {fields['message']}", hint=fields["hint"])

    # --- end --------------------------------------------------------------------------------------------------------

    def lost(self, number: int | None, reason: str) -> None:
        """The keeper misses an actor, or is gone itself. Any thread may call it."""
        for line in self._lines:
            if line.spot is not None and line.spot.number == number and not line.ended:
                self._lose(line, "actor", reason)
        if number is None and self._keeper is not None:
            with self._losing:
                self._loss = self._loss or StagesLost(reason, hint="learning begins again when a cluster is there")

    def _suspect(self, line: _Line, what: str) -> None:
        """A stage noticed that others are gone. If nothing says why, its run is lost."""
        if self._suspicion is None:
            self._suspicion = time.monotonic(), line, what

    def _lose(self, line: _Line, kind: LossReason, reason: str) -> None:
        index, spot = self._lines.index(line), line.spot
        node, pid = ("", 0) if spot is None else (spot.node, spot.pid)
        where = "" if spot is None else f" (process {pid} on node {node})"
        with self._losing:
            if self._loss is not None or self._aborting or self._failed:
                return
            self._loss = StagesLost(
                f"{line.gauges.name} is lost{where}: {reason}", hint="learning begins again from a checkpoint"
            )
        self._metrics.stage_replacements.labels(str(index), kind).inc()
        log.warning("stage lost stage=%d node=%s pid=%d reason=%s error=%r", index, node, pid, kind, reason)
        if self._keeper is not None and spot is not None and not line.ended:
            self._keeper.kill([spot.number])

    def _end_lines(self) -> None:
        """Ends the stages that have not ended, and replaces the actors of those that do not."""
        for line in self._lines:
            if not line.ended:
                line.socket.send_multipart(pack("end"))
        deadline = time.monotonic() + _END_S
        gone = self._loss is not None
        while not all(line.ended for line in self._lines) and time.monotonic() < deadline and not gone:
            for line in self._lines:
                if not line.ended and line.socket.poll(_TICK_MS):
                    self._hear(line)
        for line in self._lines:
            line.socket.disable_monitor()
            line.socket.close(linger=0 if line.ended else LINGER_MS)
            line.monitor.close()
        late = [line.spot.number for line in self._lines if not line.ended and line.spot is not None]
        if late and self._keeper is not None and not gone:
            self._keeper.kill(late)

    def abort(self) -> None:
        """Drops what is queued; each stage ends after its current item."""
        self._aborting = True
        self.inbox.close(drop=True)

    def join(self, timeout_s: float) -> bool:
        """False if they have not ended by then."""
        return self.thread.join(timeout_s)
