"""A history of seconds in which one sample a second is learned, and every tenth prediction is wrong."""

import numpy as np

from ffstream.history.history import History
from ffstream.history.points import FIGURES

LAYERS = 2
BEGIN_S = 1_800_000_000


def record(history: History, first: int, seconds: int, *, evaluated: float = 10.0, errors: float = 1.0) -> None:
    """Adds the seconds `first`, `first` + 1, … after BEGIN_S."""
    for number in range(first, first + seconds):
        counts = {
            "seconds": 1.0,
            "learned_samples": 1.0,
            "evaluated_samples": evaluated,
            "errors": errors,
            "layer_seconds": 1.0,
        }
        values = {"accepted": float(number), "learned": float(number)}
        figures = np.full((LAYERS, len(FIGURES)), float(number))
        history.add(BEGIN_S + number + 0.5, counts, values, figures)
