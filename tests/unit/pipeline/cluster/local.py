"""The engine `ray` without Ray: real actors, each on threads of this process, behind a stand-in for the keeper."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Literal

import pytest

from ffstream.config import Config
from ffstream.errors import StagesLost
from ffstream.metrics import Metrics
from ffstream.pipeline.cluster import engine
from ffstream.pipeline.cluster.actor import StageActor
from ffstream.pipeline.cluster.engine import ClusterEngine
from ffstream.pipeline.cluster.requests import Place, Placed, Spot
from tests.unit.pipeline.run import DEADLINE_S

Connection = Literal["control", "inlet"]


class Wire:
    """Forwards the TCP connections to a port, until they are cut."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.recorded = bytearray()  # what was sent, in both directions
        self.holds = False  # swallows what is sent
        self.swallowed = 0  # bytes
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, sink), daemon=True))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.recorded += data
                if self.holds:
                    self.swallowed += len(data)
                    continue
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Ends the connections. New ones are forwarded."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the connections, and forwards no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for each in self._sockets:
            each.close()


class _Held:
    def __init__(self) -> None:
        self.actor = StageActor()
        self.thread = threading.Thread(target=int)  # of its run
        self.thread.start()
        self.wires: list[Wire] = []
        self.usable = True

    @property
    def is_idle(self) -> bool:
        return self.usable and not self.thread.is_alive()


class LocalKeeper:
    """Places actors as the keeper does: those that are idle are used again.

    With `wired`, a wire leads to each socket of an actor.
    """

    def __init__(self, *, wired: bool = False) -> None:
        self.is_gone = False
        self.pid = 0
        self.killed: list[int] = []
        self.placed: list[list[int]] = []  # numbers of actors, by run
        self.refusals: list[str] = []  # reasons for which the next placements fail
        self._wired = wired
        self._held: dict[int, _Held] = {}
        self._numbers = count(1)
        self._wires: list[Wire] = []

    def place(self, request: Place) -> Placed:
        """Raises StagesLost if that was asked for."""
        if self.refusals:
            raise StagesLost(self.refusals.pop(0), hint="")
        for held in self._held.values():
            if held.usable:  # the run that is over ends soon
                held.thread.join(DEADLINE_S)
        idle = [number for number, held in self._held.items() if held.is_idle]
        spots = [
            self._listen(idle.pop(0) if idle else self._new(), request, request.followers(index))
            for index in range(len(request.slots))
        ]
        self.placed.append([spot.number for spot in spots])
        return Placed(spots)

    def _new(self) -> int:
        number = next(self._numbers)
        self._held[number] = _Held()
        return number

    def _listen(self, number: int, request: Place, followers: int) -> Spot:
        held = self._held[number]
        reply = held.actor.listen(
            request.token, "127.0.0.1", request.client, encrypt=request.encrypt, followers=followers
        )
        control, inlet = reply["control"], reply["inlet"]
        if self._wired:
            held.wires = [Wire(control), Wire(inlet)]
            self._wires += held.wires
            control, inlet = (wire.port for wire in held.wires)
        held.thread = threading.Thread(target=held.actor.run, name=f"actor-{number}", daemon=True)
        held.thread.start()
        return Spot(number, "node", 0, reply["host"], control, inlet, reply["key"], reply["mergers"])

    def wire(self, stage: int, to: Connection) -> Wire:
        """The one to the actor that runs this stage."""
        return self._held[self.placed[-1][stage]].wires[("control", "inlet").index(to)]

    @property
    def is_busy(self) -> bool:
        """Whether an actor is in a run."""
        return any(held.thread.is_alive() for held in self._held.values())

    def kill(self, numbers: Sequence[int]) -> None:
        """Their actors are not used again."""
        self.killed += numbers
        for number in numbers:
            self._held[number].usable = False

    def stop(self, timeout_s: float) -> bool:
        """All actors must have ended by themselves."""
        for held in self._held.values():
            held.thread.join(timeout_s)
            assert not held.thread.is_alive(), f"{held.thread.name} has not ended"
            if held.actor._authenticator is not None:
                held.actor._authenticator.stop()
            held.actor._context.destroy(linger=0)
        for wire in self._wires:
            wire.close()
        return True


class LocalEngine(ClusterEngine):
    """Its keeper is a LocalKeeper."""

    def __init__(self, config: Config, metrics: Metrics, *, wired: bool = False) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "check_installed", lambda: None)
            super().__init__(config, metrics)
        self.local = LocalKeeper(wired=wired)

    def _start_keeper(self) -> Any:
        return self.local


class Engines:
    """Makes engines for runs, and ends them."""

    def __init__(self) -> None:
        self.made: list[LocalEngine] = []

    def __call__(self, config: Config, metrics: Metrics) -> LocalEngine:
        """A new engine, connected."""
        return self._make(config, metrics, wired=False)

    def wired(self, config: Config, metrics: Metrics) -> LocalEngine:
        """One whose connections can be cut."""
        return self._make(config, metrics, wired=True)

    def _make(self, config: Config, metrics: Metrics, *, wired: bool) -> LocalEngine:
        self.made.append(LocalEngine(config, metrics, wired=wired))
        self.made[-1].connect()
        return self.made[-1]

    @property
    def keeper(self) -> LocalKeeper:
        """Of the engine that was made last."""
        return self.made[-1].local


@contextmanager
def ended_engines() -> Iterator[Engines]:
    """The engines that are made in the block are ended after it."""
    engines = Engines()
    yield engines
    for each in engines.made:
        each.stop(DEADLINE_S)
