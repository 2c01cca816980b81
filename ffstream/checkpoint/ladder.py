"""Which checkpoints stay on disk: the newest few, and a ladder of older ones for rollback.

    newest `keep`  |  one per steps_s[0] up to the age steps_s[1]  |  one per steps_s[1] up to steps_s[2]  |  …

Invariants, whatever clocks, sizes and options say:

- The newest `keep` always stay. Recovery and the journal rely on these alone.
- All others together with them take at most `max_bytes`, or there are no others.

A checkpoint's age is the time that daemons have run on the state folder since it was written (`clock_s` in its
manifest), not the time of day: that may jump by years, and would then remove the whole ladder at once. A daemon that
is stopped does not age its checkpoints.

Each step divides the running time into slots of equal length, and the oldest checkpoint of a slot stays. So the
choice depends on the checkpoint alone and not on what was removed before. When the budget is exceeded, the checkpoint
goes whose neighbours are closest, relative to their age: the ladder gets sparser and reaches as far back as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Rung(NamedTuple):
    """One whole checkpoint: the sample it has learned up to, running time when it was written, size of its files."""

    seq: int
    clock_s: float
    bytes: int


@dataclass(frozen=True)
class Ladder:
    """`keep` ≥ 1; `steps_s` ascending seconds, the last one only ends the ladder; `max_bytes` of all checkpoints."""

    keep: int
    steps_s: Sequence[float] = ()
    max_bytes: int = 0

    def surplus(self, rungs: Sequence[Rung]) -> list[Rung]:
        """The checkpoints to remove, oldest first. `rungs`: all whole ones, oldest first."""
        newest, older = rungs[-self.keep :], rungs[: -self.keep]
        if not older:
            return []
        stay = self._in_budget([*self._chosen(older, newest[-1].clock_s), *newest])
        return [rung for rung in older if rung not in stay]

    def sparser(self, rungs: Sequence[Rung]) -> list[Rung]:
        """At least one checkpoint to remove so that these take less space; none when only the newest are left."""
        used = sum(rung.bytes for rung in rungs)
        return Ladder(self.keep, self.steps_s, min(used - 1, self.max_bytes)).surplus(rungs)

    def _chosen(self, older: Sequence[Rung], now_s: float) -> list[Rung]:
        """The oldest of each slot, at each step that reaches its age."""
        chosen = []
        used: set[tuple[float, float]] = set()
        for rung in older:
            slots = {
                (step_s, rung.clock_s // step_s)
                for step_s, reach_s in pairwise(self.steps_s)
                if now_s - rung.clock_s < reach_s
            }
            if slots - used:
                chosen.append(rung)
            used |= slots
        return chosen

    def _in_budget(self, rungs: list[Rung]) -> set[Rung]:
        """Removes what matters least until the rest fits, or only the newest are left."""
        now_s = rungs[-1].clock_s
        used = sum(rung.bytes for rung in rungs)
        while used > self.max_bytes and len(rungs) > self.keep:
            least = min(range(len(rungs) - self.keep), key=lambda at: _relative_gap(rungs, at, now_s))
            used -= rungs.pop(least).bytes
        return set(rungs)


def _relative_gap(rungs: Sequence[Rung], at: int, now_s: float) -> float:
    """How far apart its neighbours are, as a share of the older one's age; the oldest goes last."""
    if at == 0:
        return float("inf")
    older_s, newer_s = rungs[at - 1].clock_s, rungs[at + 1].clock_s
    return (newer_s - older_s) / max(now_s - older_s, 1e-9)
