"""What a measurement prints, and how rates are taken on a noisy machine."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Line:
    """`name value unit`, and the peer measured beside it with their ratio."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None


class Report:
    """Prints lines as they come: for people, or one JSON object a line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def add(self, name: str, value: float, unit: str, peer: str | None = None, peer_value: float = 0.0) -> None:
        """Prints one line."""
        if peer is None:
            line = Line(name, value, unit)
        else:
            line = Line(name, value, unit, peer, peer_value, value / peer_value)
        if self._as_json:
            print(json.dumps({key: item for key, item in asdict(line).items() if item is not None}), flush=True)
            return
        text = f"{name:52} {value:12,.4g} {unit:16}" if value < 100 else f"{name:52} {value:12,.0f} {unit:16}"
        if line.peer is not None:
            text += f" {line.peer} {line.peer_value:,.5g} ratio {line.ratio:.2f}"
        print(text, flush=True)


def in_turn(rounds: int, *runs: Callable[[], float]) -> list[float]:
    """Medians of figures measured A B C A B C …, so that a drift of the machine meets them all."""
    figures: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for figure, run in zip(figures, runs, strict=True):
            figure.append(run())
    return [statistics.median(figure) for figure in figures]


def rate(count: int, work: Callable[[], object]) -> float:
    """Count a second of one call."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)
