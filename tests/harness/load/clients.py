"""Very many clients at once, round after round, each time under new names.

All of a round greet first, so that all are connected together; then each sends its samples, and predicts once.
"""

import resource
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any

import zmq

from ffstream.client import Control
from tests.harness.daemon import DaemonProcess, temporary_daemon
from tests.harness.load.figures import Figures, Tolerance, Watcher, at_rest, judge, look, until_level
from tests.harness.load.peer import INPUTS, SHAPE, Peer, samples
from tests.harness.load.polite import WARM_SAMPLES, warm_up
from tests.harness.load.report import grown
from tests.harness.load.timeline import Timeline
from tests.harness.load.workers import Worker, shared_count

SETTINGS = ("network.preset=fast", "checkpoint.every_s=5", "checkpoint.keep=2")
MESSAGES = 5
SAMPLES = 4  # in a message

RSS = Tolerance(
    30.0, 0.05, "at rest it varies by 25 MB over a run, mostly with checkpoints; what 1,000 connections use is 60"
)
DESCRIPTORS = Tolerance(4, 0.0, "a scrape, a query of the journal or a checkpoint may be under way")

_PER_PROCESS = 250
_SETTLE_S = 30.0
_WATCH_S = 0.1
_WORST = 10


@dataclass
class Attendance:
    """What one process of clients saw."""

    served: int = 0
    acked: int = 0
    acks: Timeline = field(default_factory=Timeline)
    errors: list[str] = field(default_factory=list)

    def add(self, part: "Attendance") -> None:
        """Adds what another process saw."""
        self.served += part.served
        self.acked += part.acked
        self.acks.ended_s += part.acks.ended_s
        self.acks.took_ms += part.acks.took_ms
        self.errors += part.errors


class _Client:
    """One producer and predictor: greets, waits for the others, sends, is acked, predicts, is done."""

    def __init__(
        self, name: str, endpoints: Mapping[str, str], context: "zmq.Context[Any]", seen: Attendance
    ) -> None:
        self.name = name
        self.predicted = False
        self.learn = Peer(endpoints["learn"], context=context)
        self.predict = Peer(endpoints["predict"], context=context)
        self._sent_s: dict[int, float] = {}  # of what is not acked
        self._acked = 0
        self._seen = seen
        self._awaited = {"welcome", "pong"}
        self.learn.send("hello", client=name)
        self.predict.send("ping")  # a connection that was never answered on may not be there yet

    @property
    def greeted(self) -> bool:
        """Whether both its connections are there."""
        return not self._awaited

    @property
    def done(self) -> bool:
        return self.predicted and self._acked == MESSAGES

    def begin(self) -> None:
        """Sends everything: a few messages are within any window."""
        for n in range(1, MESSAGES + 1):
            self._send(n)
        self.predict.send("predict", bytes(INPUTS), id=1, count=1, dtype="uint8", shape=SHAPE)

    def _send(self, n: int) -> None:
        self._sent_s.setdefault(n, time.monotonic())
        self.learn.say(*samples(self.name, n, 1, SAMPLES))

    def hear(self) -> None:
        """Takes the answers that wait."""
        for answer in self.learn.hear_all() + self.predict.hear_all():
            match answer["type"]:
                case "welcome" | "pong" as greeting:
                    self._awaited.discard(greeting)
                case "ack":
                    self._take(answer["acks"])
                case "prediction":
                    self.predicted = True
                case _:
                    self._seen.errors.append(f"{self.name}: {answer}")

    def _take(self, acks: list[tuple[int, int, int]]) -> None:
        for n, _, count in acks:
            self._seen.acks.add(self._sent_s.pop(n))
            self._seen.acked += count
            self._acked += 1

    def close(self) -> None:
        """Closes both sockets."""
        self.learn.close()
        self.predict.close()


def attend(
    stop: Event, endpoints: Mapping[str, str], names: list[str], greeted: Any, go: Any, timeout_s: float
) -> Attendance:
    """So many clients in one process. Counts in `greeted` those that are welcome; they begin once `go` is not 0."""
    _raise_descriptor_limit()
    deadline = time.monotonic() + timeout_s
    seen, begun = Attendance(), False
    with zmq.Context() as context:
        context.max_sockets = 2 * len(names) + 10
        clients = [_Client(name, endpoints, context, seen) for name in names]
        by_socket = {peer.socket: client for client in clients for peer in (client.learn, client.predict)}
        poller = zmq.Poller()
        for socket in by_socket:
            poller.register(socket, zmq.POLLIN)
        while not all(client.done for client in clients) and not stop.is_set():
            if time.monotonic() > deadline:
                missing = [client.name for client in clients if not client.done]
                seen.errors.append(f"{len(missing)} clients are not served after {timeout_s:g} s, as {missing[0]}")
                break
            for socket, _ in poller.poll(50):
                by_socket[socket].hear()
            greeted.value = sum(client.greeted for client in clients)
            if go.value and not begun:
                begun = True
                for client in clients:
                    client.begin()
        seen.served = sum(client.done for client in clients)
        for client in clients:
            client.close()
    return seen


def _raise_descriptor_limit() -> None:
    """A client has two sockets, and each of those two descriptors; many systems allow a process 1024 at first."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Round:
    """One round: what its clients saw and what the daemon held."""

    seen: Attendance
    seconds: float
    before: Figures
    peak_mb: float
    descriptors_peak: int
    after: Figures

    def describe(self) -> dict[str, float]:
        """The figures of a report."""
        return {
            "served": self.seen.served,
            "acked": self.seen.acked,
            "seconds": round(self.seconds, 2),
            "p99_ack_ms": round(self.seen.acks.percentile(99), 1),
            "rss_before_mb": round(self.before.rss_mb, 1),
            "rss_peak_mb": round(self.peak_mb, 1),
            "rss_after_mb": round(self.after.rss_mb, 1),
            "descriptors_peak": self.descriptors_peak,
            "descriptors_after": self.after.descriptors,
        }


def run(
    clients: int,
    rounds: int = 3,
    *,
    settings: tuple[str, ...] = (),
    warm_samples: int = WARM_SAMPLES,
    rest_s: float = 2.0,
    timeout_s: float = 120.0,
) -> dict[str, Any]:
    """The whole measurement. Its `broken` lists what went wrong."""
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        warm_up(daemon.endpoints, warm_samples)
        # A crowd leaves behind what any crowd needs: buffers, allocator arenas. The next ones must do with it.
        _round(daemon, clients, "warm", look(daemon.pid), 0.0, timeout_s)
        started = at_rest(daemon.pid, seconds=rest_s)
        done = [_round(daemon, clients, f"round{at}", started, rest_s, timeout_s) for at in range(rounds)]
        alive = daemon.process.poll() is None
    expected = clients * MESSAGES * SAMPLES
    broken = [error for each in done for error in each.seen.errors[:_WORST]]
    if not alive or daemon.wait():
        broken.append(f"the daemon ended with exit code {daemon.wait()}")
    for at, each in enumerate(done):
        if each.seen.served != clients or each.seen.acked != expected:
            broken.append(
                f"round {at}: {each.seen.served} clients served, {each.seen.acked} of {expected} samples acked"
            )
    last = done[-1].after
    broken += grown(
        [
            judge("memory (MB)", started.rss_mb, last.rss_mb, RSS),
            judge("descriptors", started.descriptors, last.descriptors, DESCRIPTORS),
        ]
    )
    return {
        "clients": clients,
        **done[-1].describe(),
        "served": min(each.seen.served for each in done),
        "acked": sum(each.seen.acked for each in done),
        "rss_before_mb": round(started.rss_mb, 1),
        "rss_peak_mb": round(max(each.peak_mb for each in done), 1),
        "rounds": [each.describe() for each in done],
        "broken": broken,
    }


def _round(
    daemon: DaemonProcess, clients: int, name: str, started: Figures, rest_s: float, timeout_s: float
) -> Round:
    pid = daemon.pid
    names = [f"{name}-{at}" for at in range(clients)]
    shares = [names[at : at + _PER_PROCESS] for at in range(0, clients, _PER_PROCESS)]
    before = look(pid)
    go = shared_count()
    with Watcher(pid, every_s=_WATCH_S) as watcher, ExitStack() as stack:
        crowd = []
        for share in shares:
            greeted = shared_count()
            work = Worker(attend, daemon.endpoints, share, greeted, go, timeout_s)
            crowd.append((stack.enter_context(work), greeted))
        deadline = time.monotonic() + timeout_s / 2
        while sum(greeted.value for _, greeted in crowd) < clients and time.monotonic() < deadline:
            time.sleep(0.02)
        together = look(pid)  # all are here; they may be done before the watcher looks again
        begun = time.monotonic()
        go.value = 1
        parts: list[Attendance] = [worker.result(timeout_s + 30) for worker, _ in crowd]
    seen = Attendance()
    for part in parts:
        seen.add(part)
    seconds = max(seen.acks.ended_s, default=begun) - begun
    with Control(daemon.endpoints["control"]) as control:
        control.wait_idle(timeout_s)
    until_level(
        pid,
        descriptors=DESCRIPTORS.allows(started.descriptors),
        rss_mb=RSS.allows(started.rss_mb),
        timeout_s=_SETTLE_S,
    )
    after = at_rest(pid, seconds=rest_s)
    figures = [before, together, *watcher.figures, after]
    return Round(
        seen,
        seconds,
        before,
        max(each.rss_mb for each in figures),
        max(each.descriptors for each in figures),
        after,
    )
