"""Kills a daemon with SIGKILL again and again while a producer sends.

Two of three kills happen at a failpoint (`ffstream.util.failpoints`): all failpoints in turn, each at a randomly
chosen occurrence. The others happen at a random time, either during start and recovery or while the daemon serves.
Most daemons are forks; one in twenty is started as a user starts it, and one in twenty-one kills happens while
another daemon stands by, which then takes over. The failpoints within a rollback are reached by rollbacks to a random
sequence number that learn later samples again, so the state at the end must be the same whether or not a rollback was
completed.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from ffstream.checkpoint import manifest
from ffstream.client import Control
from ffstream.errors import FFStreamError
from ffstream.util.failpoints import FAILPOINTS
from tests.harness.crashing.audit import Audit, FinalState, audit
from tests.harness.crashing.fork_server import CrashDirectory, ForkServer, start_as_user, stop_cleanly
from tests.harness.crashing.instrumented import Instrumentation
from tests.harness.crashing.stream import KEPT_CHECKPOINTS, Sender, Stream, connect, send_all
from tests.harness.daemon import START_S, DaemonProcess

_MESSAGES_PER_S = 250.0
_REACH_S = 60.0  # from when the daemon serves: how long a start takes depends on the machine
_SERVING_S = 0.4
_AS_USER_EVERY = 20
_ENDS_AS_USER = 10  # the last daemon of a run of so many kills is started as a user starts it, which takes seconds
_STANDBY_EVERY = 21  # a multiple of three, so that the daemon that serves is one that is killed at a random time
# Reached with each message or microbatch; the others only with each checkpoint.
_FREQUENT = ("commit", "ack", "pass_on", "learned")
_ROLLBACK = "rollback."
_ANSWER_S = 0.5  # a daemon that is killed by the request does not answer
_POLL_S = 0.01
_CHANGES_THE_STREAM = {
    "rollback.skipped": "skipped samples are not learned, so the state at the end differs",
    "sleep.before": "when to sleep is decided by the clock, so the state at the end differs",
    "sleep.recorded": "when to sleep is decided by the clock, so the state at the end differs",
}


@dataclass
class KillResult:
    """The outcome of a run."""

    audit: Audit
    different: list[str]  # from a run that is never killed
    by_failpoint: Counter[str] = field(default_factory=Counter)
    not_reached: dict[str, str] = field(default_factory=dict)  # why, for each failpoint at which no kill happened
    starts: Counter[str] = field(default_factory=Counter)
    before_first_checkpoint: int = 0
    resent: int = 0


def reason_to_leave_out(failpoint: str) -> str | None:
    """Why no daemon is to be killed at this failpoint; None when it is to be."""
    return _CHANGES_THE_STREAM.get(failpoint)


class KillRun:
    """One producer and one state folder, on which one daemon after another is killed, at `failpoints` in turn."""

    def __init__(
        self, folder: Path, stream: Stream, forks: ForkServer, failpoints: Sequence[str] = FAILPOINTS
    ) -> None:
        self._folder = folder
        self._stream = stream
        self._forks = forks
        self._random = random.Random(stream.seed)
        self._directory = CrashDirectory(folder / "state", stream.settings)
        self._failpoints = failpoints
        self._start_s = 1.0
        self._daemon: DaemonProcess | None = None
        self._standby: DaemonProcess | None = None
        self.by_failpoint: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.before_first_checkpoint = 0
        self.not_reached = {each: why for each in failpoints if (why := reason_to_leave_out(each))}

    def run(self, kills: int, report: Callable[[str], None]) -> KillResult:
        """Kills that often, reports the place of each kill, and audits the result. Raises DaemonFailed."""
        sender = Sender(self._directory.learn, self._stream, _MESSAGES_PER_S)
        places = self._places()
        upcoming = next(places)
        try:
            for number in range(kills):
                failpoint, upcoming = upcoming, next(places)
                # Not at the end: the last daemon, which learns the rest of the stream, must not kill itself.
                has_standby = number % _STANDBY_EVERY == 8 and number + 1 < kills
                standby = self._instrument(upcoming) if has_standby else None
                as_user = number % _AS_USER_EVERY == _AS_USER_EVERY - 1
                place = self._kill(failpoint, as_user=as_user, standby=standby)
                self.by_failpoint[place] += 1
                self.before_first_checkpoint += not self._has_checkpoint()
                sender.check()
                report(place)
            self._daemon, self._standby = self._standby or self._start(None, as_user=kills >= _ENDS_AS_USER), None
            self._daemon.await_ready()
            sender.finish()
            stop_cleanly(self._daemon)
        finally:
            for daemon in (self._daemon, self._standby):
                if daemon is not None:
                    daemon.kill()
        final = FinalState.read(self._directory.state)
        without_kills = self._folder / "without-kills"
        expected = run_without_kills(without_kills, self._stream, sender.sizes, self._forks)
        return KillResult(
            audit=audit(sender.sizes, sender.acks, final),
            different=final.differences(expected),
            by_failpoint=self.by_failpoint,
            not_reached=self.not_reached,
            starts=self.starts,
            before_first_checkpoint=self.before_first_checkpoint,
            resent=sender.resent,
        )

    def _places(self) -> Iterator[str | None]:
        """Two failpoints, then None for a random time, and so on.

        The first is a failpoint, because the first kill is to happen long before the first checkpoint.
        """
        for number, failpoint in enumerate(self._reachable()):
            yield failpoint
            if number % 2:
                yield None

    def _reachable(self) -> Iterator[str | None]:
        for failpoint in cycle(self._failpoints):
            if failpoint not in self.not_reached:
                yield failpoint
            elif len(self.not_reached) == len(self._failpoints):
                yield None

    def _kill(self, failpoint: str | None, *, as_user: bool, standby: Instrumentation | None) -> str:
        """Starts one daemon, unless one stands by, and kills it. Returns the place of the kill.

        `standby`: the instrumentation of a daemon that stands by meanwhile; None for no such daemon.
        """
        daemon, self._standby = self._standby or self._start(self._instrument(failpoint), as_user=as_user), None
        self._daemon = daemon
        if standby is not None:
            place = self._wait_with_standby(daemon, standby)
        elif failpoint is None:
            place = self._wait_random_time(daemon, as_user=as_user)
        elif self._dies_at(failpoint, daemon):
            place = failpoint
        else:
            place = "random.serving"
            if not self.by_failpoint[failpoint]:
                self.not_reached[failpoint] = f"not reached in {_REACH_S:g} s"
        code = daemon.kill()
        self._daemon = None
        if code != -signal.SIGKILL:
            raise daemon.failure(f"a daemon ended by itself with exit code {code}")
        return place

    def _instrument(self, failpoint: str | None) -> Instrumentation | None:
        return None if failpoint is None else Instrumentation(failpoint, self._occurrence(failpoint))

    def _dies_at(self, failpoint: str, daemon: DaemonProcess) -> bool:
        """Whether it kills itself there: during its start, or within the deadline after it serves."""
        if failpoint.startswith(_ROLLBACK) and _serves_before_it_ends(daemon):
            self._roll_back(daemon)
        return not _serves_before_it_ends(daemon) or daemon.exits_within(_REACH_S)

    def _roll_back(self, daemon: DaemonProcess) -> None:
        """Requests rollbacks until the daemon ends, or until the deadline."""
        deadline = time.monotonic() + _REACH_S
        with Control(daemon.control) as control:
            while not daemon.exits_within(0) and time.monotonic() < deadline:
                oldest = min(manifest.seqs(daemon.state / "checkpoints")[-KEPT_CHECKPOINTS:], default=0)
                with suppress(FFStreamError):  # the daemon may be dead, or the oldest checkpoint deleted
                    to = self._random.randint(oldest, max(oldest, control.status(_ANSWER_S)["applied_seq"]))
                    control.request("rollback", {"to": to, "later": "relearn"}, _ANSWER_S)

    def _occurrence(self, failpoint: str) -> int:
        if not self.by_failpoint[failpoint] or failpoint.startswith(_ROLLBACK):
            return 1
        return self._random.randint(1, 40 if failpoint.startswith(_FREQUENT) else 3)

    def _wait_random_time(self, daemon: DaemonProcess, *, as_user: bool) -> str:
        if self._random.random() < 0.5:
            daemon.exits_within(self._random.uniform(0, self._start_s * (8 if as_user else 1)))
            return "random.starting"
        ready_s = daemon.await_ready()
        if not as_user:
            self._start_s = ready_s
        daemon.exits_within(self._random.uniform(0, _SERVING_S))
        return "random.serving"

    def _wait_with_standby(self, daemon: DaemonProcess, instrumentation: Instrumentation) -> str:
        daemon.await_ready()
        self.starts["standby"] += 1
        self._standby = start_as_user(self._directory, instrumentation, standby=True)
        self._standby.await_standby()
        daemon.exits_within(self._random.uniform(0, _SERVING_S))
        return "random.serving"

    def _start(self, instrumentation: Instrumentation | None, *, as_user: bool) -> DaemonProcess:
        self.starts["as_user" if as_user else "fork"] += 1
        if as_user:
            return start_as_user(self._directory, instrumentation)
        return self._forks.start(self._directory, instrumentation or Instrumentation())

    def _has_checkpoint(self) -> bool:
        return any((self._directory.state / "checkpoints").glob("*/manifest.json"))


def _serves_before_it_ends(daemon: DaemonProcess) -> bool:
    """Waits until it serves or has ended. Raises DaemonFailed when neither happens."""
    deadline = time.monotonic() + START_S
    while not daemon.is_serving():
        if daemon.exits_within(_POLL_S):
            return False
        if time.monotonic() > deadline:
            raise daemon.failure(f"a daemon does not serve after {START_S:g} s")
    return True


def run_without_kills(state: Path, stream: Stream, sizes: Sequence[int], forks: ForkServer) -> FinalState:
    """What a daemon leaves that learns the same stream and is never killed."""
    directory = CrashDirectory(state, stream.settings)
    with forks.start(directory) as daemon:
        daemon.await_ready()
        with connect(directory.learn) as producer:
            send_all(producer, stream, sizes)
        stop_cleanly(daemon)
    return FinalState.read(state)
