"""The daemon's connection to one stage."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import zmq
from torch import Tensor

from ffstream.errors import StageFailed, StagesLost
from ffstream.pipeline.cluster.frames import Message, pack, unpack
from ffstream.pipeline.cluster.requests import Spot
from ffstream.pipeline.cluster.sockets import Keys, Socket, connected, monitor_of
from ffstream.pipeline.stage_gauges import StageGauges

TICK_MS: Final = 100


class StageStart(NamedTuple):
    """What a stage begins with: plain values, and the tensors of its state."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Line:
    """`connect` once the stage is placed."""

    def __init__(self, label: str, start: StageStart, gauges: StageGauges) -> None:
        self.label = label
        self.gauges = gauges
        self.device: Mapping[str, str] = {}
        self.heard_at = time.monotonic()
        self.taken = self.sent = 0  # items, as it has last reported
        self.ended = False
        self._start = start
        self._spot: Spot | None = None
        self.socket: Socket
        self.monitor: Socket
        gauges.place = self.place

    @property
    def spot(self) -> Spot:
        """Where the stage is. Not before it is placed."""
        assert self._spot is not None
        return self._spot

    def place(self) -> dict[str, Any]:
        """For the status."""
        spot = self._spot
        where = {} if spot is None else {"node": spot.node, "host": spot.host, "pid": spot.pid}
        return {**where, **self.device}

    @property
    def is_placed(self) -> bool:
        """Whether `connect` was called."""
        return self._spot is not None

    @property
    def where(self) -> str:
        """For messages."""
        return f"process {self.spot.pid} on node {self.spot.node}"

    def connect(self, context: "zmq.Context[Any]", spot: Spot, token: str, keys: Keys) -> None:
        """To a stage that listens."""
        self._spot = spot
        self.socket = _to(spot, spot.control, context, token, keys)
        self.monitor = monitor_of(self.socket)

    def feeding_socket(self, context: "zmq.Context[Any]", token: str, keys: Keys) -> Socket:
        """One that leads to the stage's inlet."""
        return _to(self.spot, self.spot.inlet, context, token, keys)

    def send(self, kind: str, fields: Mapping[str, Any] | None = None) -> None:
        """A message without tensors."""
        self.socket.send_multipart(pack(kind, fields))

    def send_start(self, fields: Mapping[str, Any]) -> None:
        """Its state, which is not kept here, and what else it needs."""
        frames = pack("start", {**self._start.fields, **fields}, self._start.tensors)
        self.socket.send_multipart(frames, copy=False)
        self._start = StageStart(self._start.fields, {})

    def expect(self, kind: str, deadline: float, check: Callable[[], None]) -> Message:
        """The next message of this kind. `check` is called while it waits. Raises StagesLost at the deadline, or when
        the stage is gone; StageFailed."""
        while True:
            left = deadline - time.monotonic()
            self.socket.poll(max(0, min(TICK_MS, int(left * 1000))))
            for message in self.received():
                if message.kind == kind:
                    return message
                if message.kind == "failed":
                    raise self.failure(message)
                if message.kind == "ended":
                    self.ended = True
                    raise StagesLost(f"{self.gauges.name} has ended ({self.where})", hint="it is placed again")
            check()
            if self.monitor.poll(0):
                raise StagesLost(f"{self.gauges.name} is gone ({self.where})", hint="it is placed again")
            if left <= 0:
                hint = "cluster.start_timeout_s is the limit"
                raise StagesLost(f"{self.gauges.name} is not ready in time ({self.where})", hint=hint)

    def received(self) -> Iterator[Message]:
        """What has arrived."""
        while True:
            try:
                frames: list[Any] = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.heard_at = time.monotonic()
            yield unpack(frames)

    def failure(self, message: Message) -> StageFailed | StagesLost:
        """The error that the stage reports."""
        fields = message.fields
        kind = StagesLost if fields["code"] == StagesLost.code else StageFailed
        return kind(f"{self.gauges.name} ({self.where}): {fields['message']}", hint=fields["hint"])

    def close(self, linger_ms: int) -> None:
        """Not connected from now on."""
        self.socket.disable_monitor()
        self.socket.close(linger=linger_ms)
        self.monitor.close()


def _to(spot: Spot, port: int, context: "zmq.Context[Any]", token: str, keys: Keys) -> Socket:
    return connected(context, spot.host, port, token, keys if spot.key else None, spot.key)
