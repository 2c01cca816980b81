"""A stage's connection to the daemon: it gets its start and its end, and sends reports and its parts of barriers.

Used by one thread at a time: by the one that starts the stage, then by the stage's own, then by the first again.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import zmq
from torch import Tensor

from ffstream.errors import FFStreamError, StagesLost
from ffstream.pipeline.channel import Closed
from ffstream.pipeline.cluster.figures import packed
from ffstream.pipeline.cluster.frames import Message, pack, unpack
from ffstream.pipeline.cluster.hops import HopIn, HopOut
from ffstream.pipeline.cluster.merger import StateMerger
from ffstream.pipeline.cluster.sockets import Opened, Socket
from ffstream.pipeline.messages import Barrier, Part
from ffstream.pipeline.stage_gauges import BarrierFigures

SILENT_S: Final = 30.0  # the daemon says something each second; after such a silence it is gone
_FINISH_S: Final = 3.0  # in which the daemon hears that the stage has ended
_POLL_MS: Final = 100
_REPORT_S: Final = 0.2  # between two reports of a stage that learns
_IDLE_REPORT_S: Final = 1.0  # … that waits


class Control:
    """The stage's end. It is the observer of the stage, too."""

    def __init__(self, socket: Socket, token: str) -> None:
        self.socket = socket
        self._line = Opened(socket, token)
        self._heard_at = self._reported_at = time.monotonic()
        self._steps: list[tuple[float, int, int]] = []
        self._hops: tuple[HopIn, HopOut | None, StateMerger] | None = None
        self._reported: tuple[float, ...] = (0.0,) * 5

    def expect(self, kind: str, timeout_s: float) -> Message:
        """The next message. Raises StagesLost if none comes, and Closed if the daemon ends the run instead."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.socket.poll(_POLL_MS)
            while (message := self._receive()) is not None:
                if message.kind == kind:
                    return message
                if message.kind == "end":
                    raise Closed
        raise StagesLost(f"no {kind!r} from the daemon", hint="see its log")

    def watch(self, inbox: HopIn, outbox: HopOut | None, merger: StateMerger) -> None:
        """Reports what these carry, too."""
        self._hops = inbox, outbox, merger

    def check(self) -> None:
        """Called before and while the stage waits. Raises Closed when the daemon ends the run, or is gone; StagesLost
        when the connection to the next stage is."""
        while (message := self._receive()) is not None:
            if message.kind == "end":
                raise Closed
        if self._hops is not None and self._hops[1] is not None and self._hops[1].is_cut:
            raise StagesLost("its connection to the next stage is gone", hint="see the network")
        now = time.monotonic()
        if now - self._heard_at > SILENT_S:
            raise Closed
        if now - self._reported_at > (_REPORT_S if self._steps else _IDLE_REPORT_S):
            self._report()

    def _receive(self) -> Message | None:
        frames = self._line.receive()
        if frames is None:
            return None
        self._heard_at = time.monotonic()
        return unpack(frames)

    def send(self, kind: str, fields: Mapping[str, Any], part: Part | None = None) -> None:
        """Sends a message. The tensors of a part are copies, so nobody writes to them while they are sent.

        Raises Closed if the daemon is not connected: it will not connect again.
        """
        tensors: dict[str, Tensor] = {}
        if part is not None:
            tensors |= {f"weights/{name}": value for name, value in part.weights.items()}
            tensors |= {f"tensors/{name}": value for name, value in part.tensors.items()}
        try:
            self.socket.send_multipart(pack(kind, fields, tensors), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise Closed from None

    def fail(self, error: FFStreamError) -> None:
        """Reports why the stage has ended."""
        with suppress(Closed):
            self.send("failed", {"code": error.code, "message": error.message, "hint": error.hint})

    def finish(self) -> None:
        """The last report: the stage has ended. Closes the socket when the daemon has read it: what it has not read
        when the connection ends may be lost."""
        deadline = time.monotonic() + _FINISH_S
        with suppress(Closed):
            self._report()
            self.send("ended", {})
            while time.monotonic() < deadline and not self._line.is_cut:
                self.socket.poll(_POLL_MS)
                while (message := self._receive()) is not None:
                    if message.kind == "bye":
                        raise Closed
        self._line.close()

    # --- Observer ---------------------------------------------------------------------------------------------------

    def on_step(self, seconds: float, seq: int, fresh: int) -> None:
        """Reports it soon."""
        self._steps.append((seconds, seq, fresh))

    def on_barrier(self, figures: BarrierFigures) -> None:
        """Reports at once, before its part of the barrier."""
        self._report(figures)

    def contributed(self, name: str, barrier: Barrier, part: Part) -> None:
        """Sends its part of a barrier."""
        self.send("part", {"name": name, "version": barrier.version, "progress": part.progress}, part)

    def _report(self, figures: BarrierFigures | None = None) -> None:
        fields: dict[str, Any] = {"steps": self._steps}
        if figures is not None:
            fields["figures"] = packed(figures)
        if self._hops is not None:
            inbox, outbox, merger = self._hops
            sent = (0, 0.0, 0.0) if outbox is None else (outbox.bytes, outbox.send_s, outbox.wait_s)
            now = (inbox.receive_s, merger.merge_s, *sent)
            fields["hops"] = [new - old for new, old in zip(now, self._reported, strict=True)]
            fields["taken"], fields["sent"] = inbox.taken, 0 if outbox is None else outbox.sent
            self._reported = now
        self.send("report", fields)
        self._steps = []
        self._reported_at = time.monotonic()
