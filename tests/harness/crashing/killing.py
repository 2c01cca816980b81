"""kill -9, again and again, while a producer sends.

Two of three kills come at a failpoint (`ffstream.util.failpoints`), each as often as the others, at a passing that
chance chooses; the rest come at any time: during start and recovery, or while it serves. One life in twenty begins
as a user's does, and another one stands by while the one before it is killed; the others are forks. The failpoints of
a rollback are met in one that goes back to anywhere and learns again what came later: whatever becomes of it, the
state at the end is the same.
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
from tests.harness.crashing.accounts import Account, Remains, settle
from tests.harness.crashing.lives import ForkServer, Home, Life, start_really
from tests.harness.crashing.stream import KEPT, Sender, connect, send_all
from tests.harness.crashing.victim import Death
from tests.harness.daemon_process import DaemonFailed, log_tail

_MESSAGES_PER_S = 250.0
_REACH_S = 60.0  # once it serves: a start takes as long as the machine is slow
_SERVING_S = 0.4
_REAL_EVERY = 20
_HEIR_EVERY = 21  # a multiple of three: the life before it ends at any time
# Passed with each message or microbatch; the others with each checkpoint.
_OFTEN = ("commit", "ack", "hand_on", "learned")
_ROLLBACK = "rollback."
_ANSWER_S = 0.5  # who dies does not answer
_CHANGES_THE_STREAM = {"rollback.skipped": "what is skipped is not learned: another state at the end"}


@dataclass
class Killed:
    """What came of it."""

    account: Account
    different: list[str]  # from a run that nobody killed
    by_failpoint: Counter[str] = field(default_factory=Counter)
    passed_over: dict[str, str] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    before_first_checkpoint: int = 0
    resent: int = 0


def reason_to_pass_over(failpoint: str) -> str | None:
    """Why nothing here reaches that failpoint, if so."""
    return _CHANGES_THE_STREAM.get(failpoint)


class Killing:
    """One producer, one state folder, as many kills as wanted."""

    def __init__(self, folder: Path, seed: int, forks: ForkServer) -> None:
        self._folder = folder
        self._seed = seed
        self._forks = forks
        self._chance = random.Random(seed)
        self._home = Home(folder / "state")
        self._start_s = 1.0
        self._life: Life | None = None
        self._heir: Life | None = None  # stands by for it
        self.by_failpoint: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.before_first_checkpoint = 0
        self.passed_over = {each: why for each in FAILPOINTS if (why := reason_to_pass_over(each))}

    def run(self, kills: int, tell: Callable[[str], None]) -> Killed:
        """Kills that often, tells each time how, and settles accounts. Raises DaemonFailed."""
        sender = Sender(self._home.learn, self._seed, _MESSAGES_PER_S)
        deaths = self._deaths()
        upcoming = next(deaths)
        try:
            for number in range(kills):
                failpoint, upcoming = upcoming, next(deaths)
                heir = self._death(upcoming) if number % _HEIR_EVERY == 8 else None
                way = self._kill(failpoint, really=number % _REAL_EVERY == _REAL_EVERY - 1, heir=heir)
                self.by_failpoint[way] += 1
                self.before_first_checkpoint += not self._has_checkpoint()
                sender.check()
                tell(way)
            self._life, self._heir = self._heir or self._start(None, really=True), None
            self._life.await_ready()
            sender.finish()
            end_in_order(self._home, self._life)
            self._life = None
        finally:
            for life in (self._life, self._heir):
                if life is not None:
                    life.send(signal.SIGKILL)
        remains = Remains.of(self._home.state)
        expected = never_killed(self._folder / "alive", self._seed, sender.sizes, self._forks)
        return Killed(
            account=settle(sender.sizes, sender.heard, remains),
            different=remains.differs_from(expected),
            by_failpoint=self.by_failpoint,
            passed_over=self.passed_over,
            starts=self.starts,
            before_first_checkpoint=self.before_first_checkpoint,
            resent=sender.resent,
        )

    def _deaths(self) -> Iterator[str | None]:
        """Two failpoints, then any time, and so on. The first death is at a failpoint, long before a checkpoint."""
        for number, failpoint in enumerate(self._failpoints()):
            yield failpoint
            if number % 2:
                yield None

    def _failpoints(self) -> Iterator[str | None]:
        for failpoint in cycle(FAILPOINTS):
            if failpoint not in self.passed_over:
                yield failpoint
            elif len(self.passed_over) == len(FAILPOINTS):
                yield None

    def _kill(self, failpoint: str | None, *, really: bool, heir: Death | None) -> str:
        """One life; returns how it ended. `heir`: how the one ends that takes over from it."""
        life, self._heir = self._heir or self._start(self._death(failpoint), really=really), None
        self._life = life
        if heir is not None:
            way = self._await_heir(life, heir)
        elif failpoint is None:
            way = self._await_chance(life, really=really)
        elif self._meets(failpoint, life):
            way = failpoint
        else:
            way = "random.serving"
            if not self.by_failpoint[failpoint]:
                self.passed_over[failpoint] = f"not reached in {_REACH_S:g} s"
        code = life.end(signal.SIGKILL)
        self._life = None
        if code != -signal.SIGKILL:
            raise DaemonFailed(f"a daemon ended by itself, exit code {code}\n{log_tail(self._home.log)}")
        return way

    def _death(self, failpoint: str | None) -> Death | None:
        return None if failpoint is None else Death(failpoint, self._passing(failpoint))

    def _meets(self, failpoint: str, life: Life) -> bool:
        """Whether it dies of that failpoint."""
        if failpoint.startswith(_ROLLBACK) and not life.ended_serving(0):
            self._roll_back(life)
        return life.ended_serving(_REACH_S)

    def _roll_back(self, life: Life) -> None:
        """Asks until it dies of it, for as long as a failpoint may take to come."""
        deadline = time.monotonic() + _REACH_S
        with Control(self._home.control) as control:
            while not life.ended(0) and time.monotonic() < deadline:
                oldest = min(manifest.seqs(self._home.state / "checkpoints")[-KEPT:], default=0)
                with suppress(FFStreamError):  # it may be dead by now, or the oldest checkpoint another one
                    to = self._chance.randint(oldest, max(oldest, control.status(_ANSWER_S)["applied_seq"]))
                    control.request("rollback", {"to": to, "later": "relearn"}, _ANSWER_S)

    def _passing(self, failpoint: str) -> int:
        if not self.by_failpoint[failpoint]:
            return 1
        if failpoint.startswith(_ROLLBACK):
            return 1
        often = failpoint.startswith(_OFTEN)
        return self._chance.randint(1, 40 if often else 3)

    def _await_chance(self, life: Life, *, really: bool) -> str:
        if self._chance.random() < 0.5:
            life.ended(self._chance.uniform(0, self._start_s * (8 if really else 1)))
            return "random.starting"
        ready_s = life.await_ready()
        if not really:
            self._start_s = ready_s
        life.ended(self._chance.uniform(0, _SERVING_S))
        return "random.serving"

    def _await_heir(self, life: Life, death: Death) -> str:
        life.await_ready()
        self.starts["standby"] += 1
        self._heir = start_really(self._home, death, standby=True)
        self._heir.await_standing_by()
        life.ended(self._chance.uniform(0, _SERVING_S))
        return "random.serving"

    def _start(self, death: Death | None, *, really: bool) -> Life:
        self.starts["real" if really else "fork"] += 1
        return start_really(self._home, death) if really else self._forks.start(self._home, death or Death())

    def _has_checkpoint(self) -> bool:
        return any((self._home.state / "checkpoints").glob("*/manifest.json"))


def end_in_order(home: Home, life: Life) -> None:
    """Lets it learn what it has, checkpoint and stop. Raises DaemonFailed when it does not leave with 0."""
    home.settle()
    code = life.end(signal.SIGTERM)
    if code:
        raise DaemonFailed(f"a daemon that was asked to stop left with exit code {code}\n{log_tail(home.log)}")


def never_killed(state: Path, seed: int, sizes: Sequence[int], forks: ForkServer) -> Remains:
    """What is left of a life on the same stream that nobody ended."""
    home = Home(state)
    life = forks.start(home)
    with life.or_dies():
        life.await_ready()
        with connect(home.learn) as producer:
            send_all(producer, seed, sizes)
        end_in_order(home, life)
    return Remains.of(state)
