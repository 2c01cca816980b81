"""Errors of predictions that are made before the samples are learned."""

from collections import deque
from typing import Any

from ffstream.errors import CheckpointIncompatible

WINDOW_SAMPLES = 10_000


class ErrorRecord:
    """Errors so far: over the last 10,000 predicted samples, and over all."""

    def __init__(self, state: dict[str, Any] | None = None, what: str = "prequential") -> None:
        """Raises CheckpointIncompatible for an invalid state."""
        try:
            self._restore({} if state is None else state)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointIncompatible(
                f"the checkpoint's {what} record is invalid: {error}",
                hint="move its folder away: then the one before is used; or use another --state folder",
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        self._window = deque((int(size), int(wrong)) for size, wrong in state.get("window", ()))
        self._window_size = sum(size for size, _ in self._window)
        self._window_wrong = sum(wrong for _, wrong in self._window)
        self._samples = int(state.get("samples", 0))
        self._wrong = float(state.get("wrong", 0.0))
        rounded = self._samples * (1 + 1e-6)  # each batch's share of errors is a quotient
        if not all(0 <= wrong <= size for size, wrong in (*self._window, (rounded, self._wrong))):
            raise ValueError("more errors than samples")

    def add(self, size: int, wrong: int, stands_for: int) -> None:
        """Counts a batch that was predicted before it was learned."""
        self._window.append((size, wrong))
        self._window_size += size
        self._window_wrong += wrong
        while self._window_size - self._window[0][0] >= WINDOW_SAMPLES:
            old_size, old_wrong = self._window.popleft()
            self._window_size -= old_size
            self._window_wrong -= old_wrong
        self._samples += stands_for
        self._wrong += wrong * stands_for / size

    @property
    def recent(self) -> float | None:
        """Error over the window, None before the first sample."""
        return self._window_wrong / self._window_size if self._window_size else None

    @property
    def window_samples(self) -> int:
        """Samples in the window: fewer than 10,000 at first."""
        return self._window_size

    @property
    def total(self) -> float | None:
        """Error over all samples, None before the first."""
        return self._wrong / self._samples if self._samples else None

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON values."""
        return {
            "window": [list(each) for each in self._window],
            "samples": self._samples,
            "wrong": self._wrong,
        }
