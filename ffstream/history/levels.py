"""Levels of the history: the same stream in intervals of different lengths. Each holds a bounded number of points.

    1 s for 10 min, 10 s for 3 h, 60 s for a day, 600 s for 30 days      the oldest point leaves
    the whole stream                                                     intervals double when there are too many

Points are kept packed, which needs a fifth of the memory of arrays.
"""

from collections import deque
from typing import NamedTuple

from ffstream.history.points import Points, no_points


class Changes(NamedTuple):
    """What is to be stored. `replace`: nothing that was stored counts any more."""

    replace: bool
    oldest: int | None  # points with smaller numbers are gone
    rows: list[tuple[int, bytes]]


class Level:
    """Points of intervals of `interval_s` seconds, in the order of time. The last one is still growing."""

    def __init__(self, interval_s: int, points_max: int, layers: int) -> None:
        self.interval_s = interval_s
        self._points_max = points_max
        self._layers = layers
        self._full: deque[tuple[int, bytes]] = deque()
        self._last: Points | None = None
        self._replaced = True
        self._stored_below = 0  # points with smaller numbers are stored

    @property
    def points(self) -> Points:
        """All points."""
        return Points.unpack([*self._full], self._layers).followed_by(self._last or no_points(self._layers))

    def restore(self, rows: list[tuple[int, bytes]]) -> None:
        """Continues from stored points in the order of time. Raises ValueError for invalid ones."""
        if not rows:
            return
        Points.unpack(rows, self._layers)
        self._full = deque(rows[:-1])
        self._last = Points.unpack(rows[-1:], self._layers)
        self._replaced = False
        self._stored_below = rows[-1][0]
        self._drop_old()

    def add(self, second: Points) -> None:
        """One point of one second."""
        later = second._replace(numbers_N=second.numbers_N // self.interval_s)
        number = int(later.numbers_N[0])
        self._drop_later_than(number)
        if self._last is None:
            self._last = later
        elif number == self._last.numbers_N[0]:
            self._last = self._last.followed_by(later).coarser(1)
        else:
            self._full.extend(self._last.pack())
            self._last = later
        self._drop_old()

    def _drop_later_than(self, number: int) -> None:
        """The clock was set back: points in what is now the future are wrong."""
        while self._last is not None and self._last.numbers_N[0] > number:
            self._last = Points.unpack([self._full.pop()], self._layers) if self._full else None
            self._replaced = True

    def _drop_old(self) -> None:
        assert self._last is not None
        while self._full and self._full[0][0] <= self._last.numbers_N[0] - self._points_max:
            self._full.popleft()

    def changes(self) -> Changes:
        """What has changed since the last `stored`."""
        if self._last is None:
            return Changes(self._replaced, None, [])
        oldest = self._full[0][0] if self._full else int(self._last.numbers_N[0])
        below = 0 if self._replaced else self._stored_below
        rows = [row for row in self._full if row[0] >= below]
        return Changes(self._replaced, oldest, rows + self._last.pack())

    def stored(self) -> None:
        """Everything is stored."""
        self._replaced = False
        if self._last is not None:
            self._stored_below = int(self._last.numbers_N[0])

    def lost(self) -> None:
        """Nothing is stored: the file is a new one, or a transaction failed."""
        self._replaced = True


class WholeStream(Level):
    """A level whose intervals become twice as long when there are too many points."""

    def _drop_old(self) -> None:
        while len(self._full) >= self._points_max:
            self.interval_s *= 2
            *full, last = self.points.coarser(2).pack()
            self._full = deque(full)
            self._last = Points.unpack([last], self._layers)
            self._replaced = True
