"""Learning curves: error against samples and against CPU minutes of learning, of a network and its peer."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.benchmarks.accuracy.run import Point

Curves = Mapping[str, Sequence[Sequence[Point]]]  # learner: the points of each seed


def draw(path: Path, title: str, held_out: str, curves: Curves) -> None:
    """Writes a PNG. Raises ImportError where matplotlib is missing.

    Thin lines are errors before learning, over the samples since the point before; thick lines with dots are errors
    on held-out data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    views = [("samples", lambda point: point.samples), ("CPU minutes", lambda point: point.seconds / 60)]
    for axes, (label, x_of) in zip(figure.subplots(1, len(views), sharey=True), views, strict=True):
        for color, (name, runs) in enumerate(curves.items()):
            for number, points in enumerate(runs):
                _draw_run(axes, points, x_of, f"C{color}", (name, held_out) if not number else None)
        axes.set_xlabel(label)
        axes.set_ylabel("error in %")
        axes.set_yscale("log")
        for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis_formatter("{x:g}")
        axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def _draw_run(axes: Any, points: Sequence[Point], x_of: Any, color: str, labels: tuple[str, str] | None) -> None:
    before = before_learning(points)
    measured = [(x_of(point), 100 * point.error) for point in points if point.error is not None]
    name, held_out = labels or ("", "")
    axes.plot(
        [x_of(point) for point, _ in before],
        [100 * error for _, error in before],
        color=color,
        linewidth=0.8,
        label=f"{name}, before learning" if labels else None,
    )
    axes.plot(
        *zip(*measured, strict=True),
        color=color,
        linewidth=2,
        marker="o",
        markersize=4,
        label=f"{name}, {held_out}" if labels else None,
    )


def before_learning(points: Sequence[Point]) -> list[tuple[Point, float]]:
    """The prequential error since the point before, for each point of the first pass."""
    start = Point(0, 0.0, 0, 0)
    return [
        (point, (point.wrong - last.wrong) / (point.predicted - last.predicted))
        for last, point in pairwise([start, *points])
        if point.predicted > last.predicted
    ]
