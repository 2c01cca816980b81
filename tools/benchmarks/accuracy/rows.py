"""Rows of runs: for each seed and figure, and for the differences to the peer over the seeds."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tools.benchmarks.accuracy.learners import Learner
from tools.benchmarks.accuracy.run import Point
from tools.benchmarks.report import Report

PEER = "backprop"


class Learned(NamedTuple):
    """The points of a run, and the one at its end."""

    learner: Learner
    points: Sequence[Point]
    end: Point


class Rows:
    """A row for each seed and figure, and one for the differences of each figure."""

    def __init__(self, report: Report, prefix: str, held_out: str) -> None:
        self._report, self._prefix, self._held_out = report, prefix, held_out
        self._differences: dict[str, list[float]] = {}

    def add(self, seed: int, ours: Learned, theirs: Learned | None) -> None:
        """The rows of one seed."""
        held_out = self._held_out
        self._add(held_out, seed, error_of, ours.end, theirs and theirs.end)
        self._add("prequential", seed, prequential_of, ours.end, theirs and theirs.end)
        if theirs is not None:
            then = at_seconds(theirs.points, ours.end.seconds)
            self._add(f"{held_out}_equal_minutes", seed, error_of, ours.end, then)

    def _add(self, name: str, seed: int, figure: Callable[[Point], float], ours: Point, theirs: Point | None) -> None:
        full, value, minutes = f"{self._prefix}/{name}", 100 * figure(ours), round(ours.seconds / 60, 2)
        if theirs is None:
            self._report.add(full, value, "%", seed=seed, minutes=minutes)
            return
        other, their_minutes = 100 * figure(theirs), round(theirs.seconds / 60, 2)
        self._report.add(full, value, "%", PEER, other, seed=seed, minutes=minutes, peer_minutes=their_minutes)
        self._differences.setdefault(full, []).append(value - other)

    def compare(self) -> None:
        """Whether the differences to the peer keep their sign."""
        for name, found in self._differences.items():
            self._report.add(
                f"{name}/difference",
                statistics.median(found),
                "points",
                lowest=min(found),
                highest=max(found),
                standing=standing(found),
            )


def standing(differences: Sequence[float]) -> str:
    """`ahead` if the error is lower than the peer's with every seed, `behind` if it is higher with every seed."""
    if all(each < 0 for each in differences):
        return "ahead"
    return "behind" if all(each > 0 for each in differences) else "undecided"


def error_of(point: Point) -> float:
    """The error on held-out data at a point where it was measured."""
    assert point.error is not None, "a run ends with a measurement"
    return point.error


def prequential_of(point: Point) -> float:
    """The error before learning, of all samples up to a point of the first pass."""
    return point.wrong / point.predicted


def at_seconds(points: Sequence[Point], seconds: float) -> Point:
    """The point at which a run had spent that many CPU seconds."""
    return next(point for point in points if point.seconds >= seconds)
