"""kill -9, again and again, while a producer sends.

Two of three kills come at a named moment (`ffstream.moments`), each as often as the others, at a passing that chance
chooses; the rest come at any time: during start and recovery, or while it serves. One life in twenty begins as a
user's does; the others are forks.
"""

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from ffstream.moments import MOMENTS
from tools.crashing.accounts import Account, Remains, settle
from tools.crashing.lives import ForkServer, Home, Life, start_really
from tools.crashing.stream import Sender, connect, send_all
from tools.crashing.victim import Death
from tools.daemon_process import DaemonFailed, log_tail

_MESSAGES_PER_S = 250.0
_REACH_S = 20.0  # once it serves: a start takes as long as the machine is slow
_SERVING_S = 0.4
_REAL_EVERY = 20
# Passed with each message or microbatch; the others with each checkpoint.
_OFTEN = ("commit", "ack", "hand_on", "learned")
_NEEDS_A_COMMAND = {"rollback": "only passed when somebody asks for a rollback"}


@dataclass
class Killed:
    """What came of it."""

    account: Account
    different: list[str]  # from a run that nobody killed
    by_moment: Counter[str] = field(default_factory=Counter)
    passed_over: dict[str, str] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    before_first_checkpoint: int = 0
    resent: int = 0


def reason_to_pass_over(moment: str) -> str | None:
    """Why nothing here reaches that moment, if so."""
    return next((why for prefix, why in _NEEDS_A_COMMAND.items() if moment.startswith(prefix)), None)


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
        self.by_moment: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.before_first_checkpoint = 0
        self.passed_over = {each: why for each in MOMENTS if (why := reason_to_pass_over(each))}

    def run(self, kills: int, tell: Callable[[str], None]) -> Killed:
        """Kills that often, tells each time how, and settles accounts. Raises DaemonFailed."""
        sender = Sender(self._home.learn, self._seed, _MESSAGES_PER_S)
        deaths = self._deaths()
        try:
            for number in range(kills):
                way = self._kill(next(deaths), really=number % _REAL_EVERY == _REAL_EVERY - 1)
                self.by_moment[way] += 1
                self.before_first_checkpoint += not self._has_checkpoint()
                sender.check()
                tell(way)
            self._life = self._start(None, really=True)
            self._life.await_ready()
            sender.finish()
            end_in_order(self._home, self._life)
            self._life = None
        finally:
            if self._life is not None:
                self._life.send(signal.SIGKILL)
        remains = Remains.of(self._home.state)
        expected = never_killed(self._folder / "alive", self._seed, sender.sizes, self._forks)
        return Killed(
            account=settle(sender.sizes, sender.heard, remains),
            different=remains.differs_from(expected),
            by_moment=self.by_moment,
            passed_over=self.passed_over,
            starts=self.starts,
            before_first_checkpoint=self.before_first_checkpoint,
            resent=sender.resent,
        )

    def _deaths(self) -> Iterator[str | None]:
        """Two moments, then any time, and so on. The first death is at a moment, long before a checkpoint."""
        for number, moment in enumerate(self._moments()):
            yield moment
            if number % 2:
                yield None

    def _moments(self) -> Iterator[str | None]:
        for moment in cycle(MOMENTS):
            if moment not in self.passed_over:
                yield moment
            elif len(self.passed_over) == len(MOMENTS):
                yield None

    def _kill(self, moment: str | None, *, really: bool) -> str:
        """One life; returns how it ended."""
        death = None if moment is None else Death(moment, self._passing(moment))
        self._life = life = self._start(death, really=really)
        if moment is None:
            way = self._await_chance(life, really=really)
        elif life.ended_serving(_REACH_S):
            way = moment
        else:
            way = "random.serving"
            if not self.by_moment[moment]:
                self.passed_over[moment] = f"not reached in {_REACH_S:g} s"
        code = life.end(signal.SIGKILL)
        self._life = None
        if code != -signal.SIGKILL:
            raise DaemonFailed(f"a daemon ended by itself, exit code {code}\n{log_tail(self._home.log)}")
        return way

    def _passing(self, moment: str) -> int:
        if not self.by_moment[moment]:
            return 1
        often = moment.startswith(_OFTEN)
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
