"""A flood of malformed messages on all sockets while well-behaved clients continue.

Each kind of malformed message has its own connection with up to a window of unanswered messages, so every answer can
be compared with the error codes that fit this kind. A message that cannot be answered (much too large, or no ZMTP at
all) must end its connection instead.
"""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any

import zmq
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.daemon import DaemonProcess, temporary_daemon
from tests.harness.load import misbehaving, well_behaved
from tests.harness.load.malformed import KINDS, Frames, Kind
from tests.harness.load.report import growth
from tests.harness.load.timeline import Timeline
from tests.harness.load.usage import (
    Comparison,
    Tolerance,
    Usage,
    compare,
    lowest_usage,
    read_usage,
    wait_for_usage,
)
from tests.harness.load.workers import Worker
from tests.harness.raw_client import RawClient

MESSAGE_MAX_BYTES = 1 << 20  # lower than the default, so that larger messages are sent quickly
SETTINGS = (
    "network.preset=fast",
    f"limits.message_max_bytes={MESSAGE_MAX_BYTES}",
    "checkpoint.every_s=5",  # so that the journal is trimmed during the run
    "checkpoint.keep=2",
)

RSS = Tolerance(
    40.0, 0.05, "an idle daemon varies by 25 MB, mostly because of checkpoints; more threads use more arenas"
)
DESCRIPTORS = Tolerance(4, 0.0, "a scrape, a query of the journal or a checkpoint may be in progress")
THREADS = Tolerance(
    104, 0.0, "the control socket starts up to 64 threads when it needs them, Starlette 40, and they are kept"
)

_WINDOW = 32  # unanswered messages of a kind; the daemon can queue as many replies to one client
_POOL = 32  # different messages of a kind
_SILENCE_S = 60.0
_SETTLE_S = 45.0  # the daemon drops a half-open connection after ten seconds, a silent one after fifteen
_CUT_S = 20.0
_CUT_BYTES = 2 * MESSAGE_MAX_BYTES + 1  # a smaller frame over the limit is answered; see SPEC.md, "Limits"
_MAX_PROBLEMS = 10  # in the report
_ACKS = 10  # at least in the time without a flood, with which the time of the flood is compared
_ACKS_S = 60.0


@dataclass
class FloodResult:
    """What one flood sent and received."""

    answerable: int = 0
    raw_connections: int = 0
    oversize: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def messages(self) -> int:
        return self.answerable + self.raw_connections + self.oversize

    def add_problem(self, what: str) -> None:
        """Keeps the first few."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(what)


class _Channel:
    """The connection of one kind."""

    def __init__(self, kind: Kind, endpoint: str, rng: random.Random) -> None:
        self.kind = kind
        self.client = RawClient(endpoint)
        self.unanswered = 0
        self._pool: list[Frames] = [kind.make(rng) for _ in range(_POOL)]
        self._at = 0

    def send(self, limit: int) -> int:
        """Fills the window. Returns how many messages were sent."""
        sent = 0
        while sent < limit and self.unanswered < _WINDOW and self.client.send_frames(*self._pool[self._at]):
            self._at = (self._at + 1) % _POOL
            self.unanswered += 1
            sent += 1
        return sent

    def receive(self, result: FloodResult) -> int:
        """Handles the answers that have arrived. Returns how many."""
        answers = self.client.receive_all()
        for answer in answers:
            code = answer.get("code", answer["type"])
            result.codes[code] += 1
            if code not in self.kind.codes:
                result.add_problem(f"{self.kind.socket}, {self.kind.name}: answered with {code}")
        self.unanswered -= len(answers)
        return len(answers)


def send_flood(
    stop: Event, endpoints: Mapping[str, str], messages: int, seed: int, old_protocol: bool
) -> FloodResult:
    """Sends malformed messages as fast as they are answered, until all are sent or `stop` is set.

    With `old_protocol`, some plain TCP connections send what ZeroMQ may take for messages of an old peer. Then the
    daemon rejects more messages than were sent.
    """
    result = FloodResult()
    begun = time.monotonic()
    sockets = [endpoints[name] for name in ("learn", "predict", "control")]
    raw, oversize = _shares(messages)
    ending = threading.Event()
    kinds = misbehaving.CURRENT_PROTOCOL + (misbehaving.OLD_PROTOCOL if old_protocol else ())

    def send_unanswerable() -> None:
        result.raw_connections = misbehaving.open_raw_connections(kinds, sockets, raw, seed, ending)
        result.oversize = _send_oversize(sockets, oversize, result, ending)

    thread = threading.Thread(target=send_unanswerable, daemon=True)
    thread.start()
    _send_answerable(stop, endpoints, messages - raw - oversize, seed, result)
    if stop.is_set():
        ending.set()
    thread.join()
    result.seconds = time.monotonic() - begun
    return result


def _shares(messages: int) -> tuple[int, int]:
    """How many are plain TCP connections, and how many are over the byte limit. Each of these costs a connection."""
    return min(max(messages // 200, len(misbehaving.CURRENT_PROTOCOL)), 2000), min(max(messages // 2000, 3), 300)


def _send_answerable(
    stop: Event, endpoints: Mapping[str, str], messages: int, seed: int, result: FloodResult
) -> None:
    rng = random.Random(seed)
    channels = [_Channel(kind, endpoints[kind.socket], rng) for kind in KINDS]
    poller = zmq.Poller()
    for channel in channels:
        poller.register(channel.client.socket, zmq.POLLIN)
    answered_at = time.monotonic()
    try:
        while True:
            answers = 0
            for channel in channels:
                if not stop.is_set():
                    result.answerable += channel.send(messages - result.answerable)
                answers += channel.receive(result)
            missing = sum(channel.unanswered for channel in channels)
            if not missing:
                return
            if answers:
                answered_at = time.monotonic()
            elif time.monotonic() - answered_at > _SILENCE_S:
                silent = {f"{each.kind.socket}, {each.kind.name}" for each in channels if each.unanswered}
                result.add_problem(f"{missing} messages are not answered after {_SILENCE_S:g} s: {sorted(silent)}")
                return
            else:
                poller.poll(100)
    finally:
        for channel in channels:
            channel.client.close()


def _send_oversize(endpoints: list[str], messages: int, result: FloodResult, ending: threading.Event) -> int:
    """Sends frames so far over the byte limit that each must end its connection."""
    sent = 0
    while sent < messages and not ending.is_set():
        with RawClient(endpoints[sent % len(endpoints)]) as raw:
            monitor = raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            raw.send_frames(b"\x80", bytes(_CUT_BYTES + sent))
            sent += 1
            if not monitor.poll(int(1000 * _CUT_S)):
                result.add_problem(f"a frame far over the byte limit did not end its connection in {_CUT_S:g} s")
            raw.socket.disable_monitor()
    return sent


def rejected(daemon: DaemonProcess) -> int:
    """How many messages the daemon has answered with an error, as its metrics say."""
    return _metric(daemon, "messages_rejected_total")


def _metric(daemon: DaemonProcess, name: str) -> int:
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(well_behaved.scrape(f"{daemon.http}/metrics"))
            for sample in family.samples
            if sample.name == f"ffstream_{name}"
        )
    )


def _await_acks(daemon: DaemonProcess, acked: int) -> None:
    """Waits until the well-behaved producer has received some acks, after `acked` samples. Raises RuntimeError."""
    deadline = time.monotonic() + _ACKS_S
    # One more, because the last ack that the daemon has counted may not have arrived yet.
    while _metric(daemon, "samples_acked_total") < acked + (_ACKS + 1) * well_behaved.SAMPLES:
        if time.monotonic() > deadline:
            raise RuntimeError(f"without a flood, the producer has not received {_ACKS} acks after {_ACKS_S:g} s")
        time.sleep(0.05)


def run(
    messages: int,
    *,
    quiet_s: float = 10.0,
    seed: int = 1,
    settings: tuple[str, ...] = (),
    warm_samples: int = well_behaved.WARM_SAMPLES,
    warm_messages: int | None = None,
    rest_s: float = 2.0,
) -> dict[str, Any]:
    """Runs the flood. `broken` in the result lists the promises that are broken."""
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        warmed = well_behaved.warm_up(daemon.endpoints, warm_samples)
        with Worker(well_behaved.run_one_of_each, daemon.endpoints, "well-behaved", 0.005) as others:
            _await_acks(daemon, warmed)
            idle = read_usage(daemon.pid)
            # The first flood makes the daemon allocate what it then keeps: buffers, allocator arenas, threads.
            _flood(daemon, warm_messages or max(20_000, messages // 4), seed + 1, old_protocol=True)
            # Its memory stays, but its connections must be gone before the well-behaved clients are measured.
            wait_for_usage(
                daemon.pid,
                descriptors=DESCRIPTORS.limit(idle.descriptors),
                rss_mb=math.inf,
                timeout_s=_SETTLE_S,
            )
            begun, acked = time.monotonic(), _metric(daemon, "samples_acked_total")
            before = lowest_usage(daemon.pid, daemon.state, seconds=quiet_s)
            _await_acks(daemon, acked)
            flooded = time.monotonic()
            counted = rejected(daemon)
            result = _flood(daemon, messages, seed, old_protocol=False)
            ended = time.monotonic()
            after = _usage_after(daemon, before, rest_s)
            counted = rejected(daemon) - counted
            observed: well_behaved.Observations = others.finish()
        alive = daemon.process.poll() is None
    quiet, busy = _latencies(observed, begun, flooded), _latencies(observed, flooded, ended)
    broken = [*growth(compare_usage(before, after)), *result.problems, *observed.errors[:_MAX_PROBLEMS]]
    if not alive or daemon.wait():
        broken.append(f"the daemon ended with exit code {daemon.wait()}")
    if counted != result.answerable:
        broken.append(f"{result.answerable} messages were answered with an error, {counted} were counted")
    if observed.acked != observed.sent:
        broken.append(f"{observed.acked} of {observed.sent} samples of the well-behaved producer were acked")
    return {
        "messages": result.messages,
        "answerable": result.answerable,
        "raw_connections": result.raw_connections,
        "oversize": result.oversize,
        "kinds": len(KINDS) + len(misbehaving.CURRENT_PROTOCOL) + 1,
        "rejected_counted": counted,
        "codes": dict(result.codes),
        "seconds": round(result.seconds, 2),
        "messages_per_second": round(messages / result.seconds, 1),
        "rss_before_mb": round(before.rss_mb, 1),
        "rss_after_mb": round(after.rss_mb, 1),
        "descriptors_before": before.descriptors,
        "descriptors_after": after.descriptors,
        "threads_before": before.threads,
        "threads_after": after.threads,
        "others_errors": len(observed.errors),
        "others_p99_ms": round(max(each["p99_ms"] for each in busy.values()), 2),
        "others_quiet": quiet,
        "others_flooded": busy,
        "ack_rate_ratio": round(busy["acks"]["per_second"] / quiet["acks"]["per_second"], 3),
        "ack_p99_ratio": round(busy["acks"]["p99_ms"] / quiet["acks"]["p99_ms"], 2),
        "broken": broken,
    }


def compare_usage(before: Usage, after: Usage) -> list[Comparison]:
    """Memory, descriptors and threads before and after a flood."""
    return [
        compare("memory (MB)", before.rss_mb, after.rss_mb, RSS),
        compare("descriptors", before.descriptors, after.descriptors, DESCRIPTORS),
        compare("threads", before.threads, after.threads, THREADS),
    ]


def _flood(daemon: DaemonProcess, messages: int, seed: int, *, old_protocol: bool) -> FloodResult:
    with Worker(send_flood, daemon.endpoints, messages, seed, old_protocol) as worker:
        result: FloodResult = worker.result(timeout_s=_SILENCE_S + messages / 100)
    return result


def _usage_after(daemon: DaemonProcess, before: Usage, rest_s: float) -> Usage:
    """The usage once the connections of the flood are gone, or after a deadline."""
    wait_for_usage(
        daemon.pid,
        descriptors=DESCRIPTORS.limit(before.descriptors),
        rss_mb=RSS.limit(before.rss_mb),
        timeout_s=_SETTLE_S,
    )
    return lowest_usage(daemon.pid, daemon.state, seconds=rest_s)


def _latencies(observed: well_behaved.Observations, first_s: float, last_s: float) -> dict[str, dict[str, float]]:
    def summary(timeline: Timeline) -> dict[str, float]:
        within = timeline.between(first_s, last_s)
        return {
            "per_second": round(within.per_second(last_s - first_s), 1),
            "p50_ms": round(within.percentile(50), 2),
            "p99_ms": round(within.percentile(99), 2),
        }

    return {name: summary(getattr(observed, name)) for name in ("acks", "predictions", "commands")}
