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
Packed = NDArray[np.void]  # with the fields of `packed_kind`


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
    def unpack(cls, packed_N: Packed) -> Self:
        """The points that `pack` has packed."""
        return cls(packed_N["number"], packed_N["counts"], packed_N["values"], packed_N["figures"])

    def pack(self) -> Packed:
        """The points as rows of one array, as they are kept and stored."""
        packed_N = np.empty(len(self.numbers_N), packed_kind(self.figures_NLF.shape[1]))
        for name, values in zip(packed_N.dtype.names or (), self, strict=True):
            packed_N[name] = values
        return packed_N

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


def packed_kind(layers: int) -> np.dtype[np.void]:
    """The type of a packed point of a network with so many layers."""
    return np.dtype(
        [
            ("number", "<i8"),
            ("counts", "<f8", (len(COUNTS),)),
            ("values", "<f8", (len(VALUES),)),
            ("figures", "<f4", (layers, len(FIGURES))),
        ]
    )
