"""Kills the processes of a daemon whose stages run in a Ray cluster on this machine, while a producer sends.

Victims are drawn by a seed. After each kill learning must go on by itself, except that a daemon that was killed is
started again. Every sixth kill does not wait for that: the next one hits a cluster that is being started, or whatever
is there. While a daemon serves, samples are acked and predictions are answered, also while nothing learns.
"""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from tests.harness.cluster_processes import Learning, descendants, left_after, parts_of, read_learning
from tests.harness.crashing.audit import Audit, FinalState, audit
from tests.harness.crashing.fork_server import CrashDirectory, ForkServer, stop_cleanly
from tests.harness.crashing.killing import run_without_kills
from tests.harness.crashing.observing import Asker, Outage, longest_gap
from tests.harness.crashing.stream import Sender, Stream
from tests.harness.daemon import DaemonProcess
from tests.harness.daemon_directory import free_port

SETTINGS: Final = ("pipeline.engine=ray", "cluster.spares=1")
# `stopped actor` stands still for so long that it must be replaced, and goes on after that; `slow actor` does not.
# `actor and spare`: the spare actor, too, whose end is noticed only when it is needed.
_DECK: Final = (
    "daemon",
    "actor",
    "actor",
    "actor and spare",
    "stopped actor",
    "slow actor",
    "keeper",
    "raylet",
    "gcs",
)

_MESSAGES_PER_S: Final = 10.0  # so few that learning, which stands still most of the time, keeps up
_OVERLAP_EVERY: Final = 6
_OVERLAP_S: Final = 4.0
_BETWEEN_S: Final = 2.0
_SLOW_S: Final = (0.1, 1.5)
_RECOVER_S: Final = 240.0
_POLL_S: Final = 0.03
_LEFT_S: Final = 90.0  # Ray's agents notice that they are alone after up to a minute
_RUN_COUNTS_SNAPSHOTS: Final = "progress.version"  # a training run publishes one more when it begins


@dataclass
class ClusterKillResult:
    """The outcome of a run."""

    audit: Audit
    different: list[str]  # from a run on threads that is never killed
    recovery_s: Mapping[str, Sequence[float]]  # by victim: from the kill until a microbatch is learned again
    by_victim: Counter[str]
    resent: int
    acks_gap_s: float  # the longest time without an ack while a daemon served
    without_acks: list[str]  # the victims after whose kill no sample was acked until learning went on
    predictions: int
    predictions_gap_s: float
    unanswered: list[str]
    left: list[str] = field(default_factory=list)  # processes and files

    def recovery(self) -> dict[str, Any]:
        """Median and worst, in seconds."""
        return {
            victim: {"median": round(statistics.median(each), 2), "worst": round(max(each), 2)}
            for victim, each in sorted(self.recovery_s.items())
            if each
        }


class _Strike(NamedTuple):
    """A kill, and what must be gone before learning can be said to go on."""

    victim: str
    at_s: float
    gone: frozenset[int]  # pids of actors
    keeper: int  # pid; 0: it may be the same as before


class ClusterKillRun:
    """One producer and one state folder. `deck`: the victims of so many kills, in random order, again and again.

    `temporary` is the folder for temporary files of the daemons that `forks` starts.
    """

    def __init__(
        self, folder: Path, temporary: Path, stream: Stream, forks: ForkServer, deck: Sequence[str] = _DECK
    ) -> None:
        self._folder = folder
        self._temporary = temporary
        self._stream = stream
        self._forks = forks
        self._deck = deck
        self._random = random.Random(stream.seed)
        predict = f"tcp://127.0.0.1:{free_port()}"
        settings = (*stream.settings, *SETTINGS, f"listen.predict={predict}")
        self._directory = CrashDirectory(folder / "state", settings)
        self._predict = predict
        self._outages: list[Outage] = []
        self._recoveries: list[tuple[_Strike, float]] = []
        self._by_victim: Counter[str] = Counter()
        self._daemon: DaemonProcess

    def run(self, kills: int, report: Callable[[str], None]) -> ClusterKillResult:
        """Kills that often, reports each victim, and audits the result. Raises DaemonFailed, FFStreamError."""
        self._daemon = self._forks.start(self._directory)
        try:
            self._daemon.await_ready()
            sender = Sender(self._directory.learn, self._stream, _MESSAGES_PER_S)
            asker = Asker(self._predict, self._stream)
            self._await_learning(_Strike("start", time.monotonic(), frozenset(), 0))
            victims = self._victims()
            for number in range(1, kills + 1):
                victim = next(victims)
                self._kill(victim, overlap=number % _OVERLAP_EVERY == 0 and number < kills)
                sender.check()
                report(victim)
            sender.finish()
            asker.finish()
            stop_cleanly(self._daemon)
        except BaseException:
            left_after(lambda: descendants(self._forks.pid), 0.0)
            raise
        return self._result(sender, asker)

    def _result(self, sender: Sender, asker: Asker) -> ClusterKillResult:
        final = FinalState.read(self._directory.state)
        expected = run_without_kills(self._folder / "without-kills", self._stream, sender.sizes, self._forks)
        left = left_after(lambda: descendants(self._forks.pid), _LEFT_S)
        left += sorted(each.name for each in self._temporary.iterdir())
        recovery_s: dict[str, list[float]] = {victim: [] for victim in self._deck}
        for strike, ended_s in self._recoveries:
            recovery_s[strike.victim].append(ended_s - strike.at_s)
        return ClusterKillResult(
            audit=audit(sender.sizes, sender.acks, final),
            different=[each for each in final.differences(expected) if each != _RUN_COUNTS_SNAPSHOTS],
            recovery_s=recovery_s,
            by_victim=self._by_victim,
            resent=sender.resent,
            acks_gap_s=longest_gap(sender.acked_s, self._outages),
            without_acks=self._without_acks(sender.acked_s),
            predictions=len(asker.answered_s),
            predictions_gap_s=longest_gap(asker.answered_s, self._outages),
            unanswered=asker.errors(self._outages),
            left=left,
        )

    def _victims(self) -> Iterator[str]:
        while True:
            yield from self._random.sample(self._deck, len(self._deck))

    def _without_acks(self, acked_s: Sequence[float]) -> list[str]:
        return [
            strike.victim
            for strike, ended_s in self._recoveries
            if strike.victim not in ("daemon", "slow actor") and not any(strike.at_s < at < ended_s for at in acked_s)
        ]

    # --- one kill ---------------------------------------------------------------------------------------------------

    def _kill(self, victim: str, *, overlap: bool) -> None:
        strike, stopped = self._strike(victim)
        self._by_victim[victim] += 1
        if overlap:
            self._idle(_OVERLAP_S)
        else:
            ended_s = self._await_learning(strike)
            self._recoveries.append((strike, ended_s))
            self._idle(_BETWEEN_S)
        if stopped is not None:
            _signal(stopped.resume)  # it must not disturb those that have taken its place

    def _idle(self, at_most_s: float) -> None:
        if self._daemon.exits_within(self._random.uniform(0, at_most_s)):
            self._daemon.check()

    def _strike(self, victim: str) -> tuple[_Strike, psutil.Process | None]:
        """Kills it. Returns the process that is stopped instead, if any."""
        if victim == "daemon":
            return self._kill_daemon(), None
        process, parts, learning = self._find(victim)
        at_s = time.monotonic()
        if victim == "slow actor":
            _signal(process.suspend)
            self._daemon.exits_within(self._random.uniform(*_SLOW_S))
            _signal(process.resume)
            return _Strike(victim, at_s, frozenset(), 0), None
        if victim == "stopped actor":
            _signal(process.suspend)
            return _Strike(victim, at_s, frozenset({process.pid}), 0), process
        if victim == "actor and spare":
            for part, spare in parts.items():
                if part.startswith("spare"):
                    _signal(spare.kill)
        _signal(process.kill)
        if victim.startswith("actor"):
            return _Strike(victim, at_s, frozenset({process.pid}), 0), None
        return _Strike(victim, at_s, frozenset(learning.actors), parts["keeper"].pid), None

    def _kill_daemon(self) -> _Strike:
        at_s = time.monotonic()
        self._daemon.kill()
        self._daemon = self._forks.start(self._directory)
        self._daemon.await_ready()
        self._outages.append(Outage(at_s, time.monotonic()))
        return _Strike("daemon", at_s, frozenset(), 0)

    def _find(self, victim: str) -> tuple[psutil.Process, Mapping[str, psutil.Process], Learning]:
        """The process, which may be about to start, all that there are, and what the daemon says."""
        deadline = time.monotonic() + _RECOVER_S
        while time.monotonic() < deadline:
            learning = read_learning(self._daemon)
            parts = parts_of(self._daemon, learning.actors)
            found = [
                part for part in sorted(parts) if part == victim or (part.startswith("actor") and "actor" in victim)
            ]
            if found and "keeper" in parts:
                return parts[self._random.choice(found)], parts, learning
            time.sleep(_POLL_S)
        raise self._daemon.failure(f"there is no {victim} after {_RECOVER_S:g} s")

    def _await_learning(self, strike: _Strike) -> float:
        """Waits until a microbatch is learned after the kill. Returns when that was. Raises DaemonFailed."""
        deadline = time.monotonic() + _RECOVER_S
        first: Learning | None = None
        while time.monotonic() < deadline:
            now = read_learning(self._daemon)
            if not now.actors or strike.gone & {*now.actors}:
                first = None
            elif first is None or first.actors != now.actors:
                parts = parts_of(self._daemon)
                first = now if "keeper" in parts and parts["keeper"].pid != strike.keeper else None
            elif now.applied > first.applied:
                return time.monotonic()
            time.sleep(_POLL_S)
        raise self._daemon.failure(f"learning does not go on {_RECOVER_S:g} s after the kill of the {strike.victim}")


def _signal(send: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):  # the kill before has ended it, too
        send()
