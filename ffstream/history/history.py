"""The history in memory. It is complete without its file, so that a full or damaged disk changes nothing here."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from ffstream.history.levels import Changes, Level, WholeStream
from ffstream.history.marks import Mark, Marks
from ffstream.history.points import COUNTS, FIGURES, VALUES, Floats, Packed, Points

_DRAWN_MAX = 720  # points that a curve has at most; more would be closer together than pixels
_BEFORE_S = 5  # marks so long before the first point, such as that of the start, and after the last one are shown
_WHOLE = "all"
_INTERVALS: Final = {"10m": (1, 600), "3h": (10, 1080), "1d": (60, 1440), "30d": (600, 4320)}
_WHOLE_POINTS = 1440
SPANS: Final = (*_INTERVALS, _WHOLE)


class History:
    """Any thread may add and read."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._lock = threading.Lock()
        self._marks = Marks()
        self._levels: dict[str, Level] = {
            span: Level(interval_s, points, layers) for span, (interval_s, points) in _INTERVALS.items()
        }
        self._whole = WholeStream(1, _WHOLE_POINTS, layers)
        self._levels[_WHOLE] = self._whole

    def add(
        self, time_s: float, counts: Mapping[str, float], values: Mapping[str, float], figures_LF: Floats
    ) -> None:
        """What happened in the second before `time_s`; names as in `points`."""
        second = Points.one(int(time_s), dict(counts), dict(values), figures_LF)
        with self._lock:
            for level in self._levels.values():
                level.add(second)

    def mark(self, mark: Mark) -> None:
        """Adds a mark."""
        with self._lock:
            self._marks.add(mark)

    def append(self, later: "History") -> None:
        """Adds the seconds and marks of a history that was recorded later, as far as it still holds them."""
        with later._lock:
            seconds, marks = later._levels["10m"].points.pack(), later._marks.between()
        with self._lock:
            for index in range(len(seconds)):
                second = Points.unpack(seconds[index : index + 1])
                for level in self._levels.values():
                    level.add(second)
            for mark in marks:
                self._marks.add(mark)

    def newest_time(self) -> float | None:
        """The begin of the last second that was recorded; None if there is none."""
        with self._lock:
            points = self._levels["10m"].points
        return float(points.numbers_N[-1]) if len(points.numbers_N) else None

    def document(self, span: str) -> dict[str, Any]:
        """The columns of one of SPANS, for /api/history. None: not known."""
        with self._lock:
            level = self._levels[span]
            points, interval_s = level.points, level.interval_s
            begin, end = (points.numbers_N[[0, -1]] * interval_s).tolist() if len(points.numbers_N) else (0, math.inf)
            marks = self._marks.between(begin - max(interval_s, _BEFORE_S), end + interval_s + _BEFORE_S)
        factor = -(-len(points.numbers_N) // _DRAWN_MAX) or 1
        if factor > 1:
            points, interval_s = points.coarser(factor), interval_s * factor
        return {
            "span": span,
            "interval_s": interval_s,
            "columns": _columns(points, interval_s),
            "layers": _layers(points),
            "marks": [mark._asdict() for mark in marks],
        }

    # --- storing ----------------------------------------------------------------------------------------------------

    def restore(self, interval_s: int, rows: Mapping[str, Packed], marks: list[Mark]) -> None:
        """Continues from what was stored. `interval_s` is that of the whole stream. Raises ValueError if invalid."""
        if interval_s < 1:
            raise ValueError(f"interval_s is {interval_s}")
        with self._lock:
            self._marks.restore(marks)
            self._whole.interval_s = interval_s
            for span, level in self._levels.items():
                level.restore(rows[span])

    def store(self, write: Callable[[int, Mapping[str, Changes], list[Mark]], None]) -> None:
        """Calls `write` with what has changed, which counts as stored from then on; call `lost` if it raises.

        The lock is not held meanwhile. For one thread.
        """
        with self._lock:
            interval_s, marks = self._whole.interval_s, list(self._marks.unstored)
            changes = {span: level.changes() for span, level in self._levels.items()}
            self._marks.unstored.clear()
            for level in self._levels.values():
                level.stored()
        write(interval_s, changes, marks)

    def lost(self) -> None:
        """Nothing is stored any more: the next `store` writes everything."""
        with self._lock:
            self._marks.lost()
            for level in self._levels.values():
                level.lost()


def _columns(points: Points, interval_s: int) -> dict[str, list[Any]]:
    counts = dict(zip(COUNTS, points.counts_NC.T, strict=True))
    values = dict(zip(VALUES, points.values_NV.T, strict=True))
    return {
        "time": (points.numbers_N * interval_s).tolist(),
        "seconds": _known(counts["seconds"]),
        "error": _ratio(counts["errors"], counts["evaluated_samples"]),
        "window_error": _known(values["window_error"]),
        "live_error": _known(values["live_error"]),
        "accepted": _known(values["accepted"]),
        "learned": _known(values["learned"]),
        "waiting": _known(values["waiting"]),
        "accepted_rate": _ratio(counts["accepted_samples"], counts["seconds"]),
        "rate": _ratio(counts["learned_samples"], counts["seconds"]),
        "prediction_rate": _ratio(counts["predictions"], counts["seconds"]),
        "sleep": _ratio(counts["sleep_microbatches"], counts["microbatches"]),
    }


def _layers(points: Points) -> list[dict[str, list[Any]]]:
    rounded_LFN = _significant(points.figures_NLF.astype(np.float64)).transpose(1, 2, 0)
    return [dict(zip(FIGURES, map(_none_for_nan, figures_FN), strict=True)) for figures_FN in rounded_LFN]


def _ratio(part_N: Floats, whole_N: Floats) -> list[float | None]:
    return _known(np.divide(part_N, whole_N, where=whole_N > 0, out=np.full_like(part_N, np.nan)))


def _known(values_N: Floats) -> list[float | None]:
    return _none_for_nan(_significant(values_N))


def _significant(values: Floats) -> Floats:
    """Rounded to 6 significant digits, whole numbers to 1; infinities are not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = 5 - np.floor(np.log10(np.abs(values)))
        scale = 10.0 ** np.clip(np.where(np.isfinite(digits), digits, 0), 0, 300)
        rounded = np.round(values * scale) / scale
    return np.where(np.isfinite(values), rounded, np.nan)


def _none_for_nan(values_N: Floats) -> list[float | None]:
    return [None if value != value else value for value in values_N.tolist()]  # noqa: PLR0124 - NaN
