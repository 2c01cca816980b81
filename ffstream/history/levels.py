"""Levels of the history: the same stream in intervals of different lengths. Each holds a bounded number of points.

1 s for 10 min, 10 s for 3 h, 60 s for a day, 600 s for 30 days      the oldest point leaves
the whole stream                                                     intervals double when there are too many
"""

from typing import NamedTuple

import numpy as np

from ffstream.history.points import Packed, Points, packed_kind


class Changes(NamedTuple):
    """What is to be stored. `replace`: nothing that was stored counts any more."""

    replace: bool
    oldest: int | None  # points with smaller numbers are gone
    rows: Packed


class _Ring:
    """A queue of packed points in one array."""

    def __init__(self, capacity: int, layers: int) -> None:
        self._rows = np.zeros(capacity, packed_kind(layers))
        self._begin = 0
        self.count = 0

    def __getitem__(self, index: int) -> Packed:
        """One point, as an array."""
        at = (self._begin + index % self.count) % len(self._rows)
        return self._rows[at : at + 1]

    def all(self) -> Packed:
        """A copy of all points in order."""
        return self._rows.take(np.arange(self._begin, self._begin + self.count), mode="wrap")

    def replace(self, rows: Packed) -> None:
        """These points and no others."""
        self._begin, self.count = 0, len(rows)
        self._rows[: len(rows)] = rows

    def append(self, row: Packed) -> None:
        """Adds a point."""
        self._rows[(self._begin + self.count) % len(self._rows)] = row[0]
        self.count += 1

    def drop_first(self) -> None:
        """Removes the first point."""
        self._begin = (self._begin + 1) % len(self._rows)
        self.count -= 1

    def drop_last(self) -> None:
        """Removes the last point."""
        self.count -= 1


class Level:
    """Points of intervals of `interval_s` seconds, in the order of time. The last one is still growing."""

    def __init__(self, interval_s: int, points_max: int, layers: int) -> None:
        self.interval_s = interval_s
        self._points_max = points_max
        self._ring = _Ring(points_max + 1, layers)
        self._replaced = True
        self._stored_below = 0  # points with smaller numbers are stored

    @property
    def points(self) -> Points:
        """All points."""
        return Points.unpack(self._ring.all())

    @property
    def _newest(self) -> int | None:
        return int(self._ring[-1]["number"][0]) if self._ring.count else None

    def restore(self, rows: Packed) -> None:
        """Continues from stored points. Raises ValueError if they are not in the order of time, or too many."""
        if len(rows) > self._points_max or (np.diff(rows["number"]) <= 0).any():
            raise ValueError(f"{len(rows)} points of {self.interval_s} s are not in order, or too many")
        self._ring.replace(rows)
        if len(rows):
            self._replaced = False
            self._stored_below = int(rows["number"][-1])

    def add(self, second: Points) -> None:
        """One point of one second."""
        later = second._replace(numbers_N=second.numbers_N // self.interval_s)
        number = int(later.numbers_N[0])
        while self._newest is not None and self._newest > number:
            self._ring.drop_last()  # the clock was set back: points in what is now the future are wrong
            self._replaced = True
        if self._newest == number:
            later = Points.unpack(self._ring[-1]).followed_by(later).coarser(1)
            self._ring.drop_last()
        self._ring.append(later.pack())
        self._drop_old(number)

    def _drop_old(self, newest: int) -> None:
        while self._ring[0]["number"][0] <= newest - self._points_max:
            self._ring.drop_first()

    def changes(self) -> Changes:
        """What has changed since the last `stored`."""
        rows = self._ring.all()
        oldest = int(rows["number"][0]) if len(rows) else None
        return Changes(self._replaced, oldest, rows if self._replaced else rows[rows["number"] >= self._stored_below])

    def stored(self) -> None:
        """Everything is stored."""
        self._replaced = False
        self._stored_below = self._newest or 0

    def lost(self) -> None:
        """Nothing is stored: the file is a new one, or a transaction failed."""
        self._replaced = True


class WholeStream(Level):
    """A level whose intervals become twice as long when there are too many points."""

    def _drop_old(self, newest: int) -> None:
        while self._ring.count > self._points_max:
            self.interval_s *= 2
            self._ring.replace(self.points.coarser(2).pack())
            self._replaced = True
