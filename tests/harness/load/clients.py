"""Very many clients at the same time, round after round, each time with new names.

All clients of a round greet the daemon first, so that all are connected at the same time. Then each sends its samples
and one query.
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
from tests.harness.load.report import growth
from tests.harness.load.timeline import Timeline
from tests.harness.load.usage import (
    Tolerance,
    Usage,
    UsageSampler,
    compare,
    lowest_usage,
    read_usage,
    wait_for_usage,
)
from tests.harness.load.well_behaved import WARM_SAMPLES, warm_up
from tests.harness.load.workers import Worker, shared_count
from tests.harness.raw_client import INPUTS, SHAPE, RawClient, samples

SETTINGS = ("network.preset=fast", "checkpoint.every_s=5", "checkpoint.keep=2")
MESSAGES = 5
SAMPLES = 4  # in a message

RSS = Tolerance(
    30.0, 0.05, "an idle daemon varies by 25 MB, mostly because of checkpoints; 1,000 connections use 60 MB"
)
DESCRIPTORS = Tolerance(4, 0.0, "a scrape, a query of the journal or a checkpoint may be in progress")

_PER_PROCESS = 250
_SETTLE_S = 30.0
_SAMPLE_S = 0.1
_MAX_ERRORS = 10  # in the report


@dataclass
class Observations:
    """What the clients of one process observed."""

    served: int = 0
    acked: int = 0
    acks: Timeline = field(default_factory=Timeline)
    errors: list[str] = field(default_factory=list)

    def add(self, other: "Observations") -> None:
        """Adds what another process observed."""
        self.served += other.served
        self.acked += other.acked
        self.acks.ended_s += other.acks.ended_s
        self.acks.took_ms += other.acks.took_ms
        self.errors += other.errors


class _Client:
    """A producer and a predictor. It greets, waits for all others, sends, and is done when everything is answered."""

    def __init__(
        self, name: str, endpoints: Mapping[str, str], context: "zmq.Context[Any]", observed: Observations
    ) -> None:
        self.name = name
        self.predicted = False
        self.learn = RawClient(endpoints["learn"], context=context)
        self.predict = RawClient(endpoints["predict"], context=context)
        self._sent_s: dict[int, float] = {}  # by message number, until it is acked
        self._acked = 0
        self._observed = observed
        self._awaited = {"welcome", "pong"}
        self.learn.send("hello", client=name)
        self.predict.send("ping")  # only an answer shows that the connection is there

    @property
    def greeted(self) -> bool:
        """Whether both connections are there."""
        return not self._awaited

    @property
    def done(self) -> bool:
        return self.predicted and self._acked == MESSAGES

    def send_all(self) -> None:
        """Sends all messages and the query. They are few enough for any window."""
        for n in range(1, MESSAGES + 1):
            self._sent_s.setdefault(n, time.monotonic())
            self.learn.send_frames(*samples(self.name, n, 1, SAMPLES))
        self.predict.send("predict", bytes(INPUTS), id=1, count=1, dtype="uint8", shape=SHAPE)

    def receive(self) -> None:
        """Handles the answers that have arrived."""
        for answer in self.learn.receive_all() + self.predict.receive_all():
            match answer["type"]:
                case "welcome" | "pong" as greeting:
                    self._awaited.discard(greeting)
                case "ack":
                    self._handle_acks(answer["acks"])
                case "prediction":
                    self.predicted = True
                case _:
                    self._observed.errors.append(f"{self.name}: {answer}")

    def _handle_acks(self, acks: list[tuple[int, int, int]]) -> None:
        for n, _, count in acks:
            self._observed.acks.add(self._sent_s.pop(n))
            self._observed.acked += count
            self._acked += 1

    def close(self) -> None:
        """Closes both sockets."""
        self.learn.close()
        self.predict.close()


def run_clients(
    stop: Event, endpoints: Mapping[str, str], names: list[str], greeted: Any, go: Any, timeout_s: float
) -> Observations:
    """Runs clients in one process. Sets `greeted` to how many are connected; they send once `go` is not 0."""
    _raise_descriptor_limit()
    deadline = time.monotonic() + timeout_s
    observed, started = Observations(), False
    with zmq.Context() as context:
        context.max_sockets = 2 * len(names) + 10
        clients = [_Client(name, endpoints, context, observed) for name in names]
        by_socket = {raw.socket: client for client in clients for raw in (client.learn, client.predict)}
        poller = zmq.Poller()
        for socket in by_socket:
            poller.register(socket, zmq.POLLIN)
        while not all(client.done for client in clients) and not stop.is_set():
            if time.monotonic() > deadline:
                missing = [client.name for client in clients if not client.done]
                observed.errors.append(
                    f"{len(missing)} clients are not served after {timeout_s:g} s, among them {missing[0]}"
                )
                break
            for socket, _ in poller.poll(50):
                by_socket[socket].receive()
            greeted.value = sum(client.greeted for client in clients)
            if go.value and not started:
                started = True
                for client in clients:
                    client.send_all()
        observed.served = sum(client.done for client in clients)
        for client in clients:
            client.close()
    return observed


def _raise_descriptor_limit() -> None:
    """A client has two sockets of two descriptors each, and many systems allow a process 1024 by default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Round:
    """What the clients of a round observed, and what the daemon used."""

    observed: Observations
    seconds: float
    before: Usage
    peak_mb: float
    descriptors_peak: int
    after: Usage

    def describe(self) -> dict[str, float]:
        """The values for the report."""
        return {
            "served": self.observed.served,
            "acked": self.observed.acked,
            "seconds": round(self.seconds, 2),
            "p99_ack_ms": round(self.observed.acks.percentile(99), 1),
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
    """Runs all rounds. `broken` in the result lists the promises that are broken."""
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        warm_up(daemon.endpoints, warm_samples)
        # The first clients make the daemon allocate buffers and arenas that later ones must be able to reuse.
        _round(daemon, clients, "warm", read_usage(daemon.pid), 0.0, timeout_s)
        started = lowest_usage(daemon.pid, seconds=rest_s)
        done = [_round(daemon, clients, f"round{at}", started, rest_s, timeout_s) for at in range(rounds)]
        alive = daemon.process.poll() is None
    expected = clients * MESSAGES * SAMPLES
    broken = [error for each in done for error in each.observed.errors[:_MAX_ERRORS]]
    if not alive or daemon.wait():
        broken.append(f"the daemon ended with exit code {daemon.wait()}")
    for at, each in enumerate(done):
        if each.observed.served != clients or each.observed.acked != expected:
            broken.append(
                f"round {at}: {each.observed.served} clients served, "
                f"{each.observed.acked} of {expected} samples acked"
            )
    last = done[-1].after
    broken += growth(
        [
            compare("memory (MB)", started.rss_mb, last.rss_mb, RSS),
            compare("descriptors", started.descriptors, last.descriptors, DESCRIPTORS),
        ]
    )
    return {
        "clients": clients,
        **done[-1].describe(),
        "served": min(each.observed.served for each in done),
        "acked": sum(each.observed.acked for each in done),
        "rss_before_mb": round(started.rss_mb, 1),
        "rss_peak_mb": round(max(each.peak_mb for each in done), 1),
        "rounds": [each.describe() for each in done],
        "broken": broken,
    }


def _round(daemon: DaemonProcess, clients: int, name: str, started: Usage, rest_s: float, timeout_s: float) -> Round:
    names = [f"{name}-{at}" for at in range(clients)]
    shares = [names[at : at + _PER_PROCESS] for at in range(0, clients, _PER_PROCESS)]
    before = read_usage(daemon.pid)
    go = shared_count()
    with UsageSampler(daemon.pid, every_s=_SAMPLE_S) as sampler, ExitStack() as stack:
        workers = []
        for share in shares:
            greeted = shared_count()
            worker = Worker(run_clients, daemon.endpoints, share, greeted, go, timeout_s)
            workers.append((stack.enter_context(worker), greeted))
        deadline = time.monotonic() + timeout_s / 2
        while sum(greeted.value for _, greeted in workers) < clients and time.monotonic() < deadline:
            time.sleep(0.02)
        connected = read_usage(daemon.pid)  # with all clients; they may be done before the next regular reading
        begun = time.monotonic()
        go.value = 1
        parts: list[Observations] = [worker.result(timeout_s + 30) for worker, _ in workers]
    observed = Observations()
    for part in parts:
        observed.add(part)
    seconds = max(observed.acks.ended_s, default=begun) - begun
    with Control(daemon.control) as control:
        control.wait_idle(timeout_s)
    wait_for_usage(
        daemon.pid,
        descriptors=DESCRIPTORS.limit(started.descriptors),
        rss_mb=RSS.limit(started.rss_mb),
        timeout_s=_SETTLE_S,
    )
    after = lowest_usage(daemon.pid, seconds=rest_s)
    values = [before, connected, *sampler.values, after]
    return Round(
        observed,
        seconds,
        before,
        max(each.rss_mb for each in values),
        max(each.descriptors for each in values),
        after,
    )
