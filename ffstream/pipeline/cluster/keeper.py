"""The keeper: the process that holds Ray. It places the actors of stages, replaces lost ones, and says what is lost.

A process that uses Ray exits when the node's part of Ray or the head of the cluster dies. So the daemon never does:
this child of it does, and the daemon starts another one. It ends when its connection to the daemon ends.

    python -m ffstream.pipeline.cluster.keeper DESCRIPTOR
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from ffstream import __version__
from ffstream.pipeline.cluster import folders
from ffstream.pipeline.cluster.actor import StageActor
from ffstream.pipeline.cluster.requests import Connect, Connected, Failed, Kill, Lost, Place, Placed, Slot, Spot

_WATCH_S: Final = 0.5  # between two looks at the node
_HEAD_S: Final = 5.0  # in which a head accepts a connection
_END_S: Final = 5.0  # in which an actor must end a run that is over
_LOCAL: Final = "local"


@dataclass
class _Held:
    """An actor. `idle` is set while it runs no stage, and when it is lost."""

    number: int
    kind: Slot
    handle: ActorHandle[Any]
    node: str
    pid: int
    idle: threading.Event = field(default_factory=threading.Event)
    lost: bool = False


class _Begun(NamedTuple):
    """An actor that may not have a process yet. `described` is its answer, once it is ready."""

    kind: Slot
    handle: ActorHandle[Any]
    described: Any


class Keeper:
    """Answers the daemon's requests one after the other."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._actors: list[_Held] = []
        self._numbers = 0
        self._host = ""  # on which actors listen, if the cluster is local
        self._folder = ""
        self._spares = 0
        self._unready: list[_Begun] = []  # spares
        self._ending = threading.Event()

    def serve(self) -> None:
        """Returns when the daemon closes the connection, or is gone."""
        try:
            while True:
                request = self._connection.recv()
                match request:
                    case Connect():
                        self._answer(self._connect, request)
                    case Place():
                        self._answer(self._place, request)
                        with contextlib.suppress(RayError, RuntimeError):
                            self._make_spares(request)
                    case Kill():
                        self._kill(request.numbers)
        except (EOFError, OSError):
            pass

    def _answer(self, work: Any, request: Any) -> None:
        try:
            reply = work(request)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            reply = Failed(f"{type(error).__name__}: {error}".splitlines()[0])
        self._say(reply)

    def _say(self, message: Any) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(message)

    # --- Ray --------------------------------------------------------------------------------------------------------

    def _connect(self, request: Connect) -> Connected:
        self._spares = request.spares
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "namespace": "ffstream"}
        if request.address == _LOCAL:
            self._host = "127.0.0.1"
            self._folder = folders.make()
            options |= {
                "address": "local",
                "num_cpus": request.cpus,
                "resources": dict(request.resources),
                "include_dashboard": False,
                "object_store_memory": 80 << 20,  # activities do not pass through it
                "_node_ip_address": self._host,
                "_temp_dir": self._folder,
            }
        else:
            _expect_head(request.address)
            options["address"] = request.address
        ray.init(**options)
        threading.Thread(
            target=self._end_with_node, args=(ray.get_runtime_context().get_node_id(),), daemon=True
        ).start()
        return Connected(len(ray.nodes()))  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Ends all actors, and a local cluster."""
        self._ending.set()
        ray.shutdown()
        self._remove_folder()

    def give_up(self) -> None:
        """Ends this process at once."""
        self._remove_folder()
        os._exit(1)

    def _end_with_node(self, node: str) -> None:
        """Ends this process when the cluster says that its node is gone: nothing can be placed from here any more.
        Ray itself may take long to notice."""
        while not self._ending.wait(_WATCH_S):
            # The head may be busy, or back soon.
            with contextlib.suppress(RayError, RuntimeError, ValueError, OSError):
                nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
                if any(each["NodeID"] == node and not each["Alive"] for each in nodes):
                    break
        if not self._ending.is_set():  # else its node ends with it
            self.give_up()

    def _remove_folder(self) -> None:
        if self._folder:
            folders.remove(self._folder)

    # --- placing ----------------------------------------------------------------------------------------------------

    def _place(self, request: Place) -> Placed | Failed:
        deadline = time.monotonic() + request.timeout_s
        chosen = self._choose(request.slots, deadline)
        listening = [
            held.handle.listen.remote(
                request.token,
                self._host,
                request.client,
                encrypt=request.encrypt,
                followers=request.followers(index),
            )
            for index, held in enumerate(chosen)
        ]
        try:
            replies: list[dict[str, Any]] = ray.get(listening, timeout=max(0.1, deadline - time.monotonic()))
        except GetTimeoutError:
            self._kill([held.number for held in chosen])
            return Failed("actors do not answer")
        except RayActorError as error:
            self._forget_dead(chosen, listening)  # it was idle, so nobody has noticed
            return Failed(str(error).splitlines()[0])
        for held in chosen:
            held.idle.clear()
            threading.Thread(target=self._watch, args=(held, held.handle.run.remote()), daemon=True).start()
        return Placed(
            [Spot(held.number, held.node, held.pid, **reply) for held, reply in zip(chosen, replies, strict=True)]
        )

    def _choose(self, slots: Sequence[Slot], deadline: float) -> list[_Held]:
        """An idle actor for each slot. Those that are there are used again, so that stages stay in place."""
        with self._lock:
            there = [held for held in self._actors if not held.lost]
        end = time.monotonic() + _END_S
        chosen: list[_Held | None] = []
        for slot in slots:
            held = next((each for each in there if each.kind == slot and self._is_idle(each, end)), None)
            if held is not None:
                there.remove(held)
            chosen.append(held)
        made = iter(self._make([slot for slot, held in zip(slots, chosen, strict=True) if held is None], deadline))
        return [held if held is not None else next(made) for held in chosen]

    def _is_idle(self, held: _Held, end: float) -> bool:
        if not held.idle.wait(max(0.0, end - time.monotonic())):
            self._kill([held.number])
            return False
        return not held.lost

    def _make(self, slots: Sequence[Slot], deadline: float) -> list[_Held]:
        """New actors, started at the same time. Raises RayError, TimeoutError, RuntimeError."""
        begun = [self._begin(slot) for slot in slots]
        if begun:
            self._give_up_spares()  # their room may be needed
        try:
            ray.get([each.described for each in begun], timeout=max(0.1, deadline - time.monotonic()))
        except GetTimeoutError:
            for each in begun:
                ray.kill(each.handle)
            raise TimeoutError(f"no node has room for {', '.join(map(str, slots))}") from None
        return [self._hold(each) for each in begun]

    def _begin(self, slot: Slot) -> _Begun:
        """A spare that is not ready yet, or a new actor."""
        found = next((each for each in self._unready if each.kind == slot), None)
        if found is not None:
            self._unready.remove(found)
            return found
        handle = _start(slot)
        return _Begun(slot, handle, handle.describe.remote())

    def _hold(self, begun: _Begun) -> _Held:
        """An actor that is ready. Raises RayError, RuntimeError."""
        reply: dict[str, Any] = ray.get(begun.described)
        if reply["version"] != __version__:
            raise RuntimeError(f"{reply['host']} has ffstream {reply['version']}, and this node {__version__}")
        with self._lock:
            self._numbers += 1
            held = _Held(self._numbers, begun.kind, begun.handle, reply["node"], reply["pid"])
            held.idle.set()
            self._actors.append(held)
        return held

    def _make_spares(self, request: Place) -> None:
        """Some for each kind of slot, if there is room. Ends when another request comes: it may need those that are
        not ready yet."""
        deadline = time.monotonic() + request.timeout_s
        with self._lock:
            idle = Counter(held.kind for held in self._actors if held.idle.is_set() and not held.lost)
        wanted = [kind for kind in dict.fromkeys(request.slots) for _ in range(self._spares - idle[kind])]
        begun = [self._begin(kind) for kind in wanted]
        self._give_up_spares()
        self._unready = begun
        while self._unready and not self._connection.poll():
            if time.monotonic() > deadline:
                self._give_up_spares()
            else:
                self._hold_spares()

    def _hold_spares(self) -> None:
        asked = [each.described for each in self._unready]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_WATCH_S)
        for each in [each for each in self._unready if each.described in ready]:
            self._unready.remove(each)
            with contextlib.suppress(RayError, RuntimeError):
                self._hold(each)

    def _give_up_spares(self) -> None:
        for each in self._unready:
            ray.kill(each.handle)
        self._unready = []

    def _watch(self, held: _Held, run: Any) -> None:
        """Thread of one run of one actor: says when it is lost."""
        try:
            ray.get(run)
        except ActorUnavailableError:
            reason = "the connection to it is lost"
        except RayActorError as error:
            reason = str(error).splitlines()[0]
        except RayError:
            reason = ""  # an exception in the stage, which it has reported itself
        else:
            reason = ""
        if not reason:
            held.idle.set()
            return
        self._forget(held)
        self._say(Lost(held.number, reason))

    def _forget_dead(self, chosen: Sequence[_Held], answers: Sequence[Any]) -> None:
        for held, answer in zip(chosen, answers, strict=True):
            try:
                ray.get(answer, timeout=_END_S)
            except RayError:
                self._kill([held.number])

    def _forget(self, held: _Held) -> None:
        with self._lock:
            held.lost = True
            held.idle.set()
            if held in self._actors:
                self._actors.remove(held)

    def _kill(self, numbers: Sequence[int]) -> None:
        with self._lock:
            held = [each for each in self._actors if each.number in numbers]
        for each in held:
            self._forget(each)
            with contextlib.suppress(RayError, ValueError):
                ray.kill(each.handle)


class _RayStage(StageActor):
    """With what Ray knows of it."""

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"node": ray.get_runtime_context().get_node_id()[:12]}

    def listen(self, token: str, host: str, client: str, *, encrypt: bool, followers: int = 0) -> dict[str, Any]:
        if not host:
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return super().listen(token, host, client, encrypt=encrypt, followers=followers)


def _expect_head(address: str) -> None:
    """Raises OSError when nothing listens there. Ray itself would try for two minutes, and not say why."""
    host, separator, port = address.rpartition(":")
    if separator:  # not `auto`
        socket.create_connection((host.strip("[]"), int(port)), _HEAD_S).close()


def _start(slot: Slot) -> ActorHandle[Any]:
    options: dict[str, Any] = {
        "num_cpus": slot.cpus,
        "num_gpus": slot.gpus,
        "resources": dict(slot.resources),
        "max_restarts": 0,  # another run begins instead, from a state that fits
        "scheduling_strategy": "SPREAD" if slot.placement == "spread" else "DEFAULT",
    }
    actor: Any = ray.remote(_RayStage)
    handle: ActorHandle[Any] = actor.options(**options).remote()
    return handle


def main() -> None:
    """The descriptor of the connection to the daemon is the only argument."""
    keeper = Keeper(Connection(int(sys.argv[1])))
    watchdog = threading.Timer(20.0, keeper.give_up)
    try:
        keeper.serve()
    finally:
        watchdog.daemon = True
        watchdog.start()  # Ray's own shutdown may hang when its other processes are gone
        keeper.end()
    os._exit(0)


if __name__ == "__main__":
    main()
