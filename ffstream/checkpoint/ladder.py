"""Which checkpoints are kept: the newest few, and a ladder of older ones for rollback.

    newest `keep`  |  one per steps_s[0] up to the age steps_s[1]  |  one per steps_s[1] up to steps_s[2]  |  …

Invariants, for any clocks, sizes and options:

- The newest `keep` are always kept. Recovery and the journal rely on these only.
- There are no others, or all together take at most `max_bytes`.

The age of a checkpoint is the time that daemons have run on the state folder since it was written (`clock_s` in its
manifest). The time of day may jump by years, which would remove the whole ladder at once. While no daemon runs,
checkpoints do not age.

Each step divides the running time into slots of equal length, and the oldest checkpoint of each slot is kept. So the
choice depends on the checkpoints only and not on what was removed before. If they take more than `max_bytes`, the
checkpoint whose neighbours are closest, relative to their age, is removed first. The ladder becomes sparser but
reaches back as far as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Rung(NamedTuple):
    """A whole checkpoint: its sequence number, the running time when it was written, the size of its files."""

    seq: int
    clock_s: float
    bytes: int


@dataclass(frozen=True)
class Ladder:
    """`keep` ≥ 1; `steps_s`: ascending seconds, of which the last is the end of the ladder; `max_bytes`: of all
    checkpoints."""

    keep: int
    steps_s: Sequence[float] = ()
    max_bytes: int = 0

    def surplus(self, rungs: Sequence[Rung]) -> list[Rung]:
        """The checkpoints to remove, oldest first. `rungs` are all whole checkpoints, oldest first."""
        newest, older = rungs[-self.keep :], rungs[: -self.keep]
        if not older:
            return []
        stay = self._in_budget([*self._chosen(older, newest[-1].clock_s), *newest])
        return [rung for rung in older if rung not in stay]

    def sparser(self, rungs: Sequence[Rung]) -> list[Rung]:
        """At least one checkpoint to remove, so that they take less space. Empty if only the newest are left."""
        used = sum(rung.bytes for rung in rungs)
        return Ladder(self.keep, self.steps_s, min(used - 1, self.max_bytes)).surplus(rungs)

    def _chosen(self, older: Sequence[Rung], now_s: float) -> list[Rung]:
        """The oldest checkpoint of each slot, for each step that reaches back to it."""
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
        """Removes the least useful ones until the rest fits into `max_bytes`, or only the newest are left."""
        now_s = rungs[-1].clock_s
        used = sum(rung.bytes for rung in rungs)
        while used > self.max_bytes and len(rungs) > self.keep:
            least = min(range(len(rungs) - self.keep), key=lambda at: _relative_gap(rungs, at, now_s))
            used -= rungs.pop(least).bytes
        return set(rungs)


def _relative_gap(rungs: Sequence[Rung], at: int, now_s: float) -> float:
    """The gap that removing it would leave, relative to the age of the gap. The oldest is removed last."""
    if at == 0:
        return float("inf")
    older_s, newer_s = rungs[at - 1].clock_s, rungs[at + 1].clock_s
    return (newer_s - older_s) / max(now_s - older_s, 1e-9)
