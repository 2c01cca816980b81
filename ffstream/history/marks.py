"""Marks: events in the history that are drawn beside its curves. The newest of each kind are kept."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, get_args

Kind = Literal[
    "start",
    "gap",
    "checkpoint",
    "rollback",
    "drift",
    "pause",
    "resume",
    "wake",
    "sleep",
    "interruption",
    "continuation",
]
KINDS: Final = get_args(Kind)
MARKS_MAX: Final = 256  # of each kind
_TEXT_MAX = 200


class Mark(NamedTuple):
    """`time` in seconds since 1970. `seq` is the sample that it is about."""

    time: float
    seq: int
    kind: str
    text: str


class Marks:
    """The marks of one history. `unstored` are those that are not on disk yet."""

    def __init__(self) -> None:
        self._by_kind: dict[str, deque[Mark]] = {kind: deque(maxlen=MARKS_MAX) for kind in KINDS}
        self.unstored: deque[Mark] = deque(maxlen=len(KINDS) * MARKS_MAX)

    def restore(self, marks: Iterable[Mark]) -> None:
        """Continues from stored marks in the order of time. Raises ValueError for invalid ones."""
        for mark in marks:
            if mark.kind not in self._by_kind:
                raise ValueError(f"mark of the kind {mark.kind!r}")
            self._by_kind[mark.kind].append(mark)

    def add(self, mark: Mark) -> None:
        """A new mark."""
        mark = mark._replace(text=mark.text[:_TEXT_MAX])
        self._by_kind[mark.kind].append(mark)
        self.unstored.append(mark)

    def between(self, begin_s: float = 0.0, end_s: float = math.inf) -> list[Mark]:
        """The marks of that time, in its order. There are later ones if the clock was set back."""
        return sorted(mark for marks in self._by_kind.values() for mark in marks if begin_s <= mark.time <= end_s)

    def lost(self) -> None:
        """Nothing is stored."""
        self.unstored.clear()
        self.unstored.extend(self.between())
