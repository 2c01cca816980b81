"""A flood of malformed messages on all sockets while others go on as ever.

Each kind has a connection of its own and up to a window of messages under way, so every answer can be held against
the codes that fit. A message that cannot be answered (too large, or no ZMTP at all) ends its connection instead.
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
from tests.harness.load import polite, rude
from tests.harness.load.figures import Figures, Tolerance, Verdict, at_rest, judge, look, until_level
from tests.harness.load.malformed import KINDS, Frames, Kind
from tests.harness.load.peer import Peer
from tests.harness.load.report import grown
from tests.harness.load.timeline import Timeline
from tests.harness.load.workers import Worker

MESSAGE_MAX_BYTES = 1 << 20  # a smaller limit than the default: what is over it is quicker to send
SETTINGS = (
    "network.preset=fast",
    f"limits.message_max_bytes={MESSAGE_MAX_BYTES}",
    "checkpoint.every_s=5",  # the polite producer's samples are forgotten again meanwhile
    "checkpoint.keep=2",
)

RSS = Tolerance(
    40.0, 0.05, "at rest it varies by 25 MB over a run, mostly with checkpoints; more threads bring more arenas"
)
DESCRIPTORS = Tolerance(4, 0.0, "a scrape, a query of the journal or a checkpoint may be under way")
THREADS = Tolerance(
    104, 0.0, "the control socket makes up to 64 threads when needed, Starlette 40, and they are kept"
)

_WINDOW = 32  # messages of a kind under way: all replies fit in its queue at the daemon
_POOL = 32  # different messages of a kind
_SILENCE_S = 60.0
_SETTLE_S = 45.0  # a half-open connection is dropped after ten seconds, a mute one after fifteen
_CUT_S = 20.0
_CUT_BYTES = (
    2 * MESSAGE_MAX_BYTES + 1
)  # a frame that is less far over the limit gets an answer; see SPEC.md, "Limits"
_WORST = 10  # complaints that are kept
_ACKS = 10  # that a quiet time has at least: what the flood does to others is told by comparison
_ACKS_S = 60.0


@dataclass
class Poured:
    """What one flood sent and heard."""

    answerable: int = 0
    raw_connections: int = 0
    oversize: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def complain(self, what: str) -> None:
        """Keeps the first few."""
        if len(self.complaints) < _WORST:
            self.complaints.append(what)


class _Channel:
    """One kind on its own connection."""

    def __init__(self, kind: Kind, endpoint: str, chance: random.Random) -> None:
        self.kind = kind
        self.peer = Peer(endpoint)
        self.unanswered = 0
        self._pool: list[Frames] = [kind.make(chance) for _ in range(_POOL)]
        self._at = 0

    def send(self, most: int) -> int:
        """Fills the window; returns how many went."""
        sent = 0
        while sent < most and self.unanswered < _WINDOW and self.peer.say(*self._pool[self._at]):
            self._at = (self._at + 1) % _POOL
            self.unanswered += 1
            sent += 1
        return sent

    def hear(self, poured: Poured) -> int:
        """Takes the answers that wait; returns how many."""
        answers = self.peer.hear_all()
        for answer in answers:
            code = answer.get("code", answer["type"])
            poured.codes[code] += 1
            if code not in self.kind.codes:
                poured.complain(f"{self.kind.socket}, {self.kind.name}: answered with {code}")
        self.unanswered -= len(answers)
        return len(answers)


def pour(stop: Event, endpoints: Mapping[str, str], messages: int, seed: int, old: bool) -> Poured:
    """Sends so many malformed messages as fast as they are answered, or until `stop`.

    With `old`, some bare connections speak what ZeroMQ may take for messages, and more is rejected than was sent.
    """
    poured = Poured()
    begun = time.monotonic()
    sockets = [endpoints[name] for name in ("learn", "predict", "control")]
    raw, oversize = _shares(messages)
    ending = threading.Event()

    def others() -> None:
        poured.raw_connections = rude.garble(rude.RAW + rude.OLD if old else rude.RAW, sockets, raw, seed, ending)
        poured.oversize = _oversize(sockets, oversize, poured, ending)

    thread = threading.Thread(target=others, daemon=True)
    thread.start()
    _pour_answerable(stop, endpoints, messages - raw - oversize, seed, poured)
    if stop.is_set():
        ending.set()
    thread.join()
    poured.seconds = time.monotonic() - begun
    return poured


def _shares(messages: int) -> tuple[int, int]:
    """How many are bare connections, and how many are over the byte limit: each costs a connection."""
    return min(max(messages // 200, len(rude.RAW)), 2000), min(max(messages // 2000, 3), 300)


def _pour_answerable(stop: Event, endpoints: Mapping[str, str], messages: int, seed: int, poured: Poured) -> None:
    chance = random.Random(seed)
    channels = [_Channel(kind, endpoints[kind.socket], chance) for kind in KINDS]
    poller = zmq.Poller()
    for channel in channels:
        poller.register(channel.peer.socket, zmq.POLLIN)
    heard_at = time.monotonic()
    try:
        while True:
            heard = 0
            for channel in channels:
                if not stop.is_set():
                    poured.answerable += channel.send(messages - poured.answerable)
                heard += channel.hear(poured)
            missing = sum(channel.unanswered for channel in channels)
            if not missing:
                return
            if heard:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > _SILENCE_S:
                silent = {f"{each.kind.socket}, {each.kind.name}" for each in channels if each.unanswered}
                poured.complain(f"{missing} messages have no answer after {_SILENCE_S:g} s: {sorted(silent)}")
                return
            else:
                poller.poll(100)
    finally:
        for channel in channels:
            channel.peer.close()


def _oversize(endpoints: list[str], messages: int, poured: Poured, ending: threading.Event) -> int:
    """Sends frames so far over the byte limit that each must end its connection."""
    sent = 0
    while sent < messages and not ending.is_set():
        with Peer(endpoints[sent % len(endpoints)]) as peer:
            monitor = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            peer.say(b"\x80", bytes(_CUT_BYTES + sent))
            sent += 1
            if not monitor.poll(int(1000 * _CUT_S)):
                poured.complain(f"a frame far over the byte limit did not end its connection in {_CUT_S:g} s")
            peer.socket.disable_monitor()
    return sent


def rejected(daemon: DaemonProcess) -> int:
    """Messages that the daemon says it answered with an error."""
    return _counted(daemon, "messages_rejected_total")


def _counted(daemon: DaemonProcess, name: str) -> int:
    text = polite.scrape(f"http://{daemon.endpoints['http']}/metrics")
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"ffstream_{name}"
        )
    )


def _await_acks(daemon: DaemonProcess, since: int) -> None:
    """Returns once others were acked enough since so many samples were. Raises RuntimeError."""
    deadline = time.monotonic() + _ACKS_S
    # One more: the last ack that is counted may still be on its way.
    while _counted(daemon, "samples_acked_total") < since + (_ACKS + 1) * polite.SAMPLES:
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody attacks, and others have not {_ACKS} acks after {_ACKS_S:g} s")
        time.sleep(0.05)


def run(
    messages: int,
    *,
    quiet_s: float = 10.0,
    seed: int = 1,
    settings: tuple[str, ...] = (),
    warm_samples: int = polite.WARM_SAMPLES,
    warm_messages: int | None = None,
    rest_s: float = 2.0,
) -> dict[str, Any]:
    """The whole measurement. Its `broken` lists what went wrong."""
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        pid = daemon.pid
        warmed = polite.warm_up(daemon.endpoints, warm_samples)
        with Worker(polite.serve_all, daemon.endpoints, "polite", 0.005) as others:
            _await_acks(daemon, warmed)
            calm = look(pid)
            # A first flood makes what is made once: buffers of connections, allocator arenas, threads.
            _poured(daemon, warm_messages or max(20_000, messages // 4), seed + 1, old=True)
            # Memory is where that flood has brought it; its connections must not count among those of the others.
            until_level(
                pid,
                descriptors=DESCRIPTORS.allows(calm.descriptors),
                rss_mb=math.inf,
                timeout_s=_SETTLE_S,
            )
            begun, acked = time.monotonic(), _counted(daemon, "samples_acked_total")
            before = at_rest(pid, daemon.state, seconds=quiet_s)  # the others alone
            _await_acks(daemon, acked)
            flooded = time.monotonic()
            counted = rejected(daemon)
            poured = _poured(daemon, messages, seed, old=False)
            ended = time.monotonic()
            after = _await_quiet(daemon, before, rest_s)
            counted = rejected(daemon) - counted
            seen: polite.Polite = others.finish()
        alive = daemon.process.poll() is None
    quiet, busy = _latencies(seen, begun, flooded), _latencies(seen, flooded, ended)
    verdicts = verdicts_of(before, after)
    broken = [*grown(verdicts), *poured.complaints, *seen.errors[:_WORST]]
    if not alive or daemon.wait():
        broken.append(f"the daemon ended with exit code {daemon.wait()}")
    if counted != poured.answerable:
        broken.append(f"{poured.answerable} messages were answered with an error, {counted} were counted")
    if seen.acked != seen.sent:
        broken.append(f"of {seen.sent} good samples {seen.acked} were acked")
    return {
        "messages": poured.answerable + poured.raw_connections + poured.oversize,
        "answerable": poured.answerable,
        "raw_connections": poured.raw_connections,
        "oversize": poured.oversize,
        "kinds": len(KINDS) + len(rude.RAW) + 1,
        "rejected_counted": counted,
        "codes": dict(poured.codes),
        "seconds": round(poured.seconds, 2),
        "messages_per_second": round(messages / poured.seconds, 1),
        "rss_before_mb": round(before.rss_mb, 1),
        "rss_after_mb": round(after.rss_mb, 1),
        "descriptors_before": before.descriptors,
        "descriptors_after": after.descriptors,
        "threads_before": before.threads,
        "threads_after": after.threads,
        "others_errors": len(seen.errors),
        "others_p99_ms": round(max(each["p99_ms"] for each in busy.values()), 2),
        "others_quiet": quiet,
        "others_flooded": busy,
        "ack_rate_ratio": round(busy["acks"]["per_second"] / quiet["acks"]["per_second"], 3),
        "ack_p99_ratio": round(busy["acks"]["p99_ms"] / quiet["acks"]["p99_ms"], 2),
        "broken": broken,
    }


def verdicts_of(before: Figures, after: Figures) -> list[Verdict]:
    """Memory, descriptors and threads, before and after."""
    return [
        judge("memory (MB)", before.rss_mb, after.rss_mb, RSS),
        judge("descriptors", before.descriptors, after.descriptors, DESCRIPTORS),
        judge("threads", before.threads, after.threads, THREADS),
    ]


def _poured(daemon: DaemonProcess, messages: int, seed: int, *, old: bool) -> Poured:
    with Worker(pour, daemon.endpoints, messages, seed, old) as flood:
        poured: Poured = flood.result(timeout_s=_SILENCE_S + messages / 100)
    return poured


def _await_quiet(daemon: DaemonProcess, before: Figures, rest_s: float) -> Figures:
    """A look once the flood's connections are gone, or the time for that is over."""
    pid = daemon.pid
    until_level(
        pid,
        descriptors=DESCRIPTORS.allows(before.descriptors),
        rss_mb=RSS.allows(before.rss_mb),
        timeout_s=_SETTLE_S,
    )
    return at_rest(pid, daemon.state, seconds=rest_s)


def _latencies(seen: polite.Polite, first_s: float, last_s: float) -> dict[str, dict[str, float]]:
    def summary(timeline: Timeline) -> dict[str, float]:
        within = timeline.between(first_s, last_s)
        return {
            "per_second": round(within.per_second(last_s - first_s), 1),
            "p50_ms": round(within.percentile(50), 2),
            "p99_ms": round(within.percentile(99), 2),
        }

    return {name: summary(getattr(seen, name)) for name in ("acks", "predictions", "commands")}
