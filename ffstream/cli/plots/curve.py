"""The learning curve: prequential error and speed against the samples learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from ffstream.cli.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from ffstream.errors import NoSamples
from ffstream.util.error_record import WINDOW_SAMPLES

# What is marked, in the order of the legend. Checkpoints are ticks, because there are many.
MARKS = {
    "start": ("start", GREEN, "-"),
    "gap": ("daemon was down", GREY, ":"),
    "rollback": ("rollback", VERMILLION, "--"),
    "drift": ("detected drift", PURPLE, "-."),
    "pause": ("paused", ORANGE, ":"),
    "interruption": ("interrupted", ORANGE, "-."),
}

Curve = NDArray[np.float64]


def draw(history: dict[str, Any]) -> Figure:
    """From /api/history. Raises NoSamples if nothing was predicted yet."""
    columns = history["columns"]
    learned = curve(columns["learned"])
    error, window_error = _of_enough(curve(columns["error"]), learned), curve(columns["window_error"])
    if not np.isfinite(window_error).any():
        raise NoSamples("the history has no error yet", hint="send samples and try again")
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot(learned, error, color=SKY, linewidth=0.8, label=f"of the samples in each {interval(history)}")
    upper.plot(learned, window_error, color=BLUE, linewidth=1.8, label=_window(learned))
    upper.set_ylim(0, min(1.0, 1.05 * float(np.nanmax(np.concatenate((error, window_error))))) or 1.0)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    upper.set_ylabel("prequential error")
    last = window_error[np.isfinite(window_error)][-1]
    upper.set_title(f"prequential error {last:.2%} at the end; each sample is predicted before it is learned")
    lower.plot(learned, curve(columns["rate"]), color=GREY, linewidth=1)
    lower.set_ylabel("learned, samples/s")
    lower.set_ylim(bottom=0)
    label_samples(lower)
    mark(upper, history["marks"], learned)
    mark(lower, history["marks"], learned, labels=False)
    upper.legend(loc="best")
    return figure


def curve(values: Sequence[float | None]) -> Curve:
    """Numbers, NaN for unknown ones."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def interval(history: dict[str, Any]) -> str:
    """The length of an interval, as `10 s`."""
    seconds = int(history["interval_s"])
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds // unit_s} {unit}"
    return f"{seconds} s"


def _of_enough(error: Curve, learned: Curve) -> Curve:
    """Without intervals in which so few samples were learned that their error says nothing."""
    steps = np.diff(learned, prepend=0.0)
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0.0
    return np.where(steps >= usual / 10, error, np.nan)


def _window(learned: Curve) -> str:
    """The true size of the window: it grows to its full size at the beginning."""
    known = learned[np.isfinite(learned)]
    most = int(known.max()) if len(known) else 0
    if most < WINDOW_SAMPLES:
        return f"of all samples predicted so far ({most:,} at the end)"
    return f"of the last {WINDOW_SAMPLES:,} samples predicted (at first of all)"


def label_samples(axes: Axes, name: str = "samples learned") -> None:
    """The horizontal axis."""
    axes.set_xlabel(name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, at: f"{value:,.0f}"))
    axes.margins(x=0.01)


def mark(axes: Axes, marks: Sequence[dict[str, Any]], learned: Curve, *, labels: bool = True) -> None:
    """Lines at what has happened, and ticks at checkpoints."""
    known = learned[np.isfinite(learned)]
    if not len(known):
        return
    by_kind: dict[str, list[float]] = {}
    for each in marks:
        if each["seq"] <= known.max():
            by_kind.setdefault(each["kind"], []).append(each["seq"])
    for kind, (name, colour, dashes) in MARKS.items():
        for at, seq in enumerate(by_kind.get(kind, [])):
            label = name if labels and not at else None
            axes.axvline(seq, color=colour, linestyle=dashes, linewidth=1, label=label)
    if checkpoints := by_kind.get("checkpoint"):
        bottom = axes.get_xaxis_transform()
        label = "checkpoint" if labels else None
        axes.plot(
            checkpoints, [0.015] * len(checkpoints), "|", color=GREY, transform=bottom, label=label, clip_on=False
        )
