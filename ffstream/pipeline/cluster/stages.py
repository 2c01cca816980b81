"""The stages of one training run, as the daemon sees them: it starts them, hears their reports and their parts of
barriers, and notices when one is lost.

    feeder ─→ inbox ─→ stage 0 ─→ stage 1 … ─→ stage n        activities and barriers, from actor to actor
                 thread ff-cluster ←──── a connection to each stage

With replicas there are several such rows. A stage that is lost ends all of them: another run begins, from a
checkpoint. A stage that reports an error of its own fails the daemon, as a thread does.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import zmq
from torch import Tensor
from zmq.utils.monitor import recv_monitor_message

from ffstream.errors import FFStreamError, StagesLost
from ffstream.metrics import Metrics
from ffstream.pipeline.cluster.figures import unpacked
from ffstream.pipeline.cluster.frames import Message
from ffstream.pipeline.cluster.hops import HopOut
from ffstream.pipeline.cluster.inbox import Inbox
from ffstream.pipeline.cluster.keeper_process import KeeperProcess
from ffstream.pipeline.cluster.line import TICK_MS, Line
from ffstream.pipeline.cluster.parts import Parts
from ffstream.pipeline.cluster.requests import Place, Slot, is_stopping
from ffstream.pipeline.cluster.sockets import LINGER_MS, Keys, poller_of
from ffstream.pipeline.stage_gauges import StageGauges
from ffstream.util.threads import OnFailure, Worker

log = logging.getLogger(__name__)

# What a loss was noticed by: the keeper misses the actor, its connection is gone, it says nothing.
LossReason = Literal["actor", "connection", "stalled"]
_PING_S: Final = 1.0
_EXPLAIN_S: Final = 1.0  # in which the cause of what a stage noticed arrives: another one has failed, or is gone
_END_S: Final = 5.0  # in which stages must end when the run is over; then their actors are replaced


class Placement(NamedTuple):
    """How the stages are placed. `keeper` returns the one that runs now, or raises StagesLost."""

    keeper: Callable[[], KeeperProcess]
    context: "zmq.Context[Any]"
    slots: Sequence[Slot]
    encrypt: bool
    timeout_s: float
    cancelled: threading.Event


class ClusterStages:
    """See `engine.Stages`. `rows` are the stages of each replica."""

    def __init__(
        self,
        rows: Sequence[Sequence[Line]],
        weights: Mapping[str, Tensor],
        *,
        placement: Placement,
        inbox: Inbox,
        depth: int,
        stall_s: float,
        metrics: Metrics,
        on_failure: OnFailure,
    ) -> None:
        self.inbox = inbox
        self._rows = rows
        self._lines = [line for row in rows for line in row]
        self._weights = weights
        self._placement = placement
        self._depth = depth
        self._stall_s = stall_s
        self._metrics = metrics
        self._on_failure = on_failure
        self._parts = Parts([[line.gauges.name for line in row] for row in rows], self.inbox.barriers)
        self._keeper: KeeperProcess | None = None
        self._aborting = False
        self._failed = False
        self._losing = threading.Lock()
        self._suspicion: tuple[float, Line, str] | None = None  # when which stage noticed what
        self._loss: StagesLost | None = None
        self._missed: dict[int, str] = {}  # actors that the keeper misses, and why
        self._pinged_at = 0.0
        self._counted = [(0.0, 0.0, 0.0) for _ in rows]  # of the hops from the feeder
        self.thread = Worker("ff-cluster", self._listen, on_failure)
        for number, row in enumerate(rows):
            for index, line in enumerate(row):
                line.gauges.queue_depth = self._queue_before(number, index)

    def _queue_before(self, number: int, index: int) -> Callable[[], int]:
        """Items on their way to a stage, or waiting before it, as far as is known."""
        line, row = self._rows[number][index], self._rows[number]

        def sent() -> int:
            if index:
                return row[index - 1].sent
            return self.inbox.hops[number].sent if self.inbox.hops else 0

        return lambda: max(0, sent() - line.taken)

    @property
    def gauges(self) -> list[StageGauges]:
        """Of all stages of all replicas, the first replica first."""
        return [line.gauges for line in self._lines]

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
        """Places and starts all stages. Raises StagesLost, StageFailed; then nothing of them is left."""
        placement = self._placement
        deadline = time.monotonic() + placement.timeout_s
        token, keys = secrets.token_hex(16), Keys.new()
        self._keeper = keeper = placement.keeper()
        self._missed.clear()  # each keeper numbers its actors
        self._weights = {}  # the first snapshot has them
        request = Place(
            placement.slots,
            token,
            keys.public,
            placement.encrypt,
            placement.timeout_s,
            len(self._rows),
            len(self._rows[0]),
        )
        for line, spot in zip(self._lines, keeper.place(request).spots, strict=True):
            line.connect(placement.context, spot, token, keys)
        for number, reason in list(self._missed.items()):
            self.lost(number, reason)  # before it was connected
        try:
            self._begin(keys, deadline)
        except FFStreamError:
            self._end_lines()
            raise
        feeding = [row[0].feeding_socket(placement.context, token, keys) for row in self._rows]
        self.inbox.hops = [HopOut(socket, self._depth, self.inbox.check) for socket in feeding]
        self._show_places()
        self.thread.start()

    def _begin(self, keys: Keys, deadline: float) -> None:
        """All stages get their state at the same time; then they are connected to each other."""
        for number, row in enumerate(self._rows):
            for index, line in enumerate(row):
                clients = [keys.public]
                if index:
                    clients.append(row[index - 1].spot.key)
                if not number:
                    clients += (other[index].spot.key for other in self._rows[1:])
                line.send_start({"clients": clients})
        for line in self._lines:
            line.device = line.expect("ready", deadline, self._check).fields
        self._check()
        for number, row in enumerate(self._rows):
            for index, line in enumerate(row):
                leader = self._rows[0][index].spot
                line.send(
                    "go",
                    {
                        "next": row[index + 1].spot._asdict() if index + 1 < len(row) else None,
                        "leader": {**leader._asdict(), "merger": leader.mergers[number - 1]} if number else None,
                    },
                )

    def _check(self) -> None:
        """While stages start. Raises StagesLost when that is of no use."""
        if self._loss is not None:
            raise self._loss
        if self._placement.cancelled.is_set():
            raise is_stopping()

    def _show_places(self) -> None:
        self._metrics.stage_place.clear()
        for line in self._lines:
            spot, device = line.spot, line.device["device"]
            self._metrics.stage_place.labels(line.label, spot.node, device).set(1)
            for reason in get_args(LossReason):
                self._metrics.stage_replacements.labels(line.label, reason)  # 0 from now on
            where = spot.node, spot.host, spot.pid, device
            log.info("stage placed stage=%s node=%s host=%s pid=%d device=%s", line.label, *where)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        watched = [socket for line in self._lines for socket in (line.socket, line.monitor)]
        poller = poller_of(*watched, *(hop.monitor for hop in self.inbox.hops))
        try:
            while not self._is_over():
                with self.thread.waiting():
                    ready = dict(poller.poll(TICK_MS))
                self._hear_all(ready)
                self._watch_feeding(ready)
                self._tick()
        finally:
            self.inbox.close(drop=True)
            self._count_fed()
            self._end_lines()
        if self._loss is not None and not self._aborting:
            self._on_failure(self._loss)
        for hop in self.inbox.hops:
            if hop.released.wait(_END_S):
                hop.monitor.close()

    def _hear_all(self, ready: Container[Any]) -> None:
        for number, row in enumerate(self._rows):
            for index, line in enumerate(row):
                if line.socket in ready or line.monitor in ready:
                    self._hear(number, index)
                if line.monitor in ready:
                    recv_monitor_message(line.monitor)
                    if not line.ended:
                        self._lose(line, "connection", "its connection is gone")

    def _watch_feeding(self, ready: Container[Any]) -> None:
        for row, hop in zip(self._rows, self.inbox.hops, strict=True):
            if hop.monitor in ready:
                recv_monitor_message(hop.monitor)
                if not self.inbox.is_closed:
                    self._suspect(row[0], "the connection over which it is fed is gone")

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
        was, self._pinged_at = self._pinged_at, now
        self._count_fed()
        frozen = now - was > self._stall_s and was > 0  # this process was stopped, not the stages
        for line in self._lines:
            if not line.ended:
                line.send("ping")
                if now - line.heard_at > self._stall_s and not frozen:
                    self._lose(line, "stalled", f"it has said nothing for {self._stall_s:g} s")

    def _hear(self, number: int, index: int) -> None:
        line = self._rows[number][index]
        for message in line.received():
            match message.kind:
                case "report":
                    self._report(number, index, message.fields)
                case "part":
                    self._parts.add(number, index, message)
                case "failed" if message.fields["code"] == StagesLost.code:
                    self._suspect(line, message.fields["message"])
                case "failed":
                    self._fail(line, message)
                case "ended":
                    line.ended = True
                    line.send("bye")
                    if not self.inbox.is_closed:
                        self._suspect(line, "it has ended, because it heard nothing from the daemon")

    def _report(self, number: int, index: int, fields: Mapping[str, Any]) -> None:
        row = self._rows[number]
        line = row[index]
        for seconds, seq, fresh in fields["steps"]:
            line.gauges.on_step(seconds, seq, fresh)
        if "figures" in fields:
            line.gauges.on_barrier(unpacked(fields["figures"]))
        if "hops" not in fields:
            return
        received_s, merged_s, *sent = fields["hops"]
        line.taken, line.sent = fields["taken"], fields["sent"]
        self._metrics.hop_seconds.labels(line.label, "receive").inc(received_s)
        if len(self._rows) > 1:
            self._metrics.hop_seconds.labels(line.label, "merge").inc(merged_s)
        if index + 1 < len(row):
            self._count_hop(row[index + 1], *sent)

    def _count_fed(self) -> None:
        for number, hop in enumerate(self.inbox.hops):
            figures = (float(hop.bytes), hop.send_s, hop.wait_s)
            sent = [new - old for new, old in zip(figures, self._counted[number], strict=True)]
            self._counted[number] = figures
            self._count_hop(self._rows[number][0], *sent)

    def _count_hop(self, to: Line, sent_bytes: float, sent_s: float, waited_s: float) -> None:
        metrics = self._metrics
        metrics.hop_bytes.labels(to.label).inc(sent_bytes)
        metrics.hop_seconds.labels(to.label, "send").inc(sent_s)
        metrics.hop_seconds.labels(to.label, "wait").inc(waited_s)

    def _fail(self, line: Line, message: Message) -> None:
        if not self._failed:
            self._failed = True
            self._on_failure(line.failure(message))

    # --- end --------------------------------------------------------------------------------------------------------

    def lost(self, number: int | None, reason: str) -> None:
        """The keeper misses an actor, or is gone itself. Any thread may call it, at any time."""
        if number is None and self._keeper is not None:
            with self._losing:
                self._loss = self._loss or StagesLost(reason, hint="learning begins again when a cluster is there")
        if number is not None:
            self._missed[number] = reason  # before the stages are looked at: it may be connected just now
        for line in self._lines:
            if line.is_placed and line.spot.number == number and not line.ended:
                self._lose(line, "actor", reason)

    def _suspect(self, line: Line, what: str) -> None:
        """A stage noticed that others are gone. If nothing says why, its run is lost."""
        if self._suspicion is None:
            self._suspicion = time.monotonic(), line, what

    def _lose(self, line: Line, kind: LossReason, reason: str) -> None:
        with self._losing:
            if self._loss is not None or self._aborting or self._failed:
                return
            self._loss = StagesLost(
                f"{line.gauges.name} is lost ({line.where}): {reason}", hint="learning begins again from a checkpoint"
            )
        self._metrics.stage_replacements.labels(line.label, kind).inc()
        where = line.spot.node, line.spot.pid
        log.warning("stage lost stage=%s node=%s pid=%d reason=%s error=%r", line.label, *where, kind, reason)
        if self._keeper is not None and not line.ended:
            self._keeper.kill([line.spot.number])

    def _end_lines(self) -> None:
        """Ends the stages that have not ended, and replaces the actors of those that do not."""
        for line in self._lines:
            if not line.ended:
                line.send("end")
        is_lost, deadline = self._loss is not None, time.monotonic() + _END_S
        while not is_lost and not all(line.ended for line in self._lines) and time.monotonic() < deadline:
            for number, row in enumerate(self._rows):
                for index, line in enumerate(row):
                    if not line.ended and line.socket.poll(TICK_MS):
                        self._hear(number, index)
        for line in self._lines:
            line.close(0 if line.ended else LINGER_MS)
        late = [line.spot.number for line in self._lines if not line.ended]
        if late and self._keeper is not None and not is_lost:
            self._keeper.kill(late)

    def abort(self) -> None:
        """Drops what is queued; each stage ends after its current item."""
        self._aborting = True
        self.inbox.close(drop=True)

    def join(self, timeout_s: float) -> bool:
        """False if they have not ended by then."""
        return self.thread.join(timeout_s)
