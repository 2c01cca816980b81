"""Points of the history, and how several become one.

A point holds what happened in an interval. Counts are sums, so a coarser point is exact: its error is the errors of
its samples. Values that are states, such as the last sequence number, are those at the end. Figures of layers are
means over the seconds in which they were known.

Shapes: N points, C counts, V values, L layers, F figures.
"""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

COUNTS: Final = (
    "seconds",  # that the daemon has run within the interval
    "accepted_samples",
    "learned_samples",
    "predictions",
    "evaluated_samples",  # predicted before they were learned
    "errors",  # of these
    "microbatches",
    "sleep_microbatches",  # of these
    "layer_seconds",  # in which something was learned, so that figures of layers are known
)
VALUES: Final = ("accepted", "learned", "waiting", "window_error", "live_error")
FIGURES: Final = (
    "goodness_positive",
    "goodness_negative",
    "margin",
    "loss",
    "separation",
    "dead_units",
    "weight_norm",
    "threshold",
    "step_s",
    "queue_depth",
)
_LAYER_SECONDS = COUNTS.index("layer_seconds")

Floats = NDArray[np.float64]


class Points(NamedTuple):
    """Points in the order of time. NaN: not known."""

    numbers_N: NDArray[np.int64]  # of the interval: its begin divided by its length
    counts_NC: Floats
    values_NV: Floats
    figures_NLF: NDArray[np.float32]

    @classmethod
    def one(cls, number: int, counts: dict[str, float], values: dict[str, float], figures_LF: Floats) -> Self:
        """One point. What is missing in `values` is not known."""
        return cls(
            np.array([number]),
            np.array([[counts.get(name, 0.0) for name in COUNTS]]),
            np.array([[values.get(name, np.nan) for name in VALUES]]),
            figures_LF.astype(np.float32)[None],
        )

    @classmethod
    def unpack(cls, rows: list[tuple[int, bytes]], layers: int) -> Self:
        """The points from their numbers and what `pack` returned. Raises ValueError for bytes of another length."""
        kind = _kind(layers)
        packed = np.frombuffer(b"".join(data for _, data in rows), kind)
        if len(packed) != len(rows):
            raise ValueError(f"{len(packed)} points in {len(rows)} rows")
        numbers = np.array([number for number, _ in rows], np.int64)
        return cls(numbers, packed["counts"], packed["values"], packed["figures"])

    def pack(self) -> list[tuple[int, bytes]]:
        """For each point its number and its bytes."""
        packed = np.empty(len(self.numbers_N), _kind(self.figures_NLF.shape[1]))
        packed["counts"], packed["values"], packed["figures"] = self.counts_NC, self.values_NV, self.figures_NLF
        return [(int(number), packed[index].tobytes()) for index, number in enumerate(self.numbers_N)]

    def followed_by(self, later: Self) -> Self:
        """These points and later ones."""
        return self._replace(
            **{name: np.concatenate((mine, getattr(later, name))) for name, mine in self._asdict().items()}
        )

    def coarser(self, factor: int) -> Self:
        """Points of intervals that are `factor` times as long."""
        if not len(self.numbers_N):
            return self
        numbers, starts = np.unique(self.numbers_N // factor, return_index=True)
        ends = np.append(starts[1:], len(self.numbers_N)) - 1
        return self._replace(
            numbers_N=numbers,
            counts_NC=np.add.reduceat(self.counts_NC, starts),
            values_NV=self.values_NV[ends],
            figures_NLF=self._mean_figures(starts),
        )

    def _mean_figures(self, starts: NDArray[np.intp]) -> NDArray[np.float32]:
        known_NLF = ~np.isnan(self.figures_NLF)
        weights_NLF = known_NLF * self.counts_NC[:, _LAYER_SECONDS, None, None]
        sums = np.add.reduceat(np.where(known_NLF, self.figures_NLF, 0.0) * weights_NLF, starts)
        weights = np.add.reduceat(weights_NLF, starts)
        return np.divide(sums, weights, where=weights > 0, out=np.full_like(sums, np.nan)).astype(np.float32)


def no_points(layers: int) -> Points:
    """No points of a network with so many layers."""
    return Points.unpack([], layers)


def size_of_point(layers: int) -> int:
    """Bytes of a packed point."""
    return _kind(layers).itemsize


def _kind(layers: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("counts", "<f8", (len(COUNTS),)),
            ("values", "<f8", (len(VALUES),)),
            ("figures", "<f4", (layers, len(FIGURES))),
        ]
    )
