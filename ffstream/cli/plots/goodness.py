"""Goodness of each layer: of both sides of what it compares, over the stream and for single samples at its end."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffstream.cli.plots.curve import Curve, curve, label_samples, mark
from ffstream.cli.plots.style import GREY, MARGIN, RIGHT, SIDES, WRONG, caption
from ffstream.errors import NoSamples


def draw(history: dict[str, Any], compares: list[str], now: dict[str, Any] | None) -> Figure:
    """From /api/history and /api/goodness (None: no sample was evaluated yet). Raises NoSamples."""
    learned = curve(history["columns"]["learned"])
    layers = history["layers"]
    if not any(value is not None for layer in layers for value in layer["goodness_positive"]):
        raise NoSamples("the history has no goodness yet", hint="send samples and try again")
    columns = 2 if now is None else 3
    figure = Figure(figsize=(4.6 * columns, 0.4 + 2.5 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for index, (layer, kind) in enumerate(zip(layers, compares, strict=True)):
        _draw_curves(grid[index][0], layer, learned, SIDES[kind])
        grid[index][0].set_title(f"layer {index}: mean goodness")
        mark(grid[index][0], history["marks"], learned, labels=not index)
        _draw_margin(grid[index][1], layer, learned, index, _rival(SIDES[kind]))
        mark(grid[index][1], history["marks"], learned, labels=False)
        for axes in grid[index][:2]:
            label_samples(axes, "samples learned" if layer is layers[-1] else "")
        if now is not None:
            _draw_histogram(grid[index][2], now["layers"][index], SIDES[kind])
            grid[index][2].set_title(f"layer {index}: the last {now['samples']:,} samples evaluated")
    if now is not None:
        grid[-1][2].set_xlabel("goodness of a sample")
        figure.supxlabel(caption(now["layers"], 170), fontsize=8, color=GREY, x=0.01, ha="left")
    grid[0][0].legend(loc="best")
    return figure


def _draw_curves(axes: Axes, layer: dict[str, Any], learned: Curve, sides: tuple[str, str]) -> None:
    axes.plot(learned, curve(layer["goodness_positive"]), color=RIGHT, label=sides[0])
    axes.plot(learned, curve(layer["goodness_negative"]), color=WRONG, linestyle="--", label=sides[1])
    if any(value is not None for value in layer["threshold"]):
        axes.plot(learned, curve(layer["threshold"]), color=GREY, linestyle=":", label="threshold")
    axes.set_ylabel("goodness")


def _rival(sides: tuple[str, str]) -> str:
    """What the margin is the distance to."""
    return sides[1].replace("wrong labels", "the strongest wrong label")


def _draw_margin(axes: Axes, layer: dict[str, Any], learned: Curve, index: int, rival: str) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(learned, curve(layer["margin"]), color=MARGIN)
    axes.set_title(f"layer {index}: margin to {rival}")
    axes.set_ylabel("difference of goodness")


def _draw_histogram(axes: Axes, layer: dict[str, Any], sides: tuple[str, str]) -> None:
    edges = np.array(layer["edges"])
    names = sides[0], _rival(sides)
    axes.stairs(layer["right"], edges, color=RIGHT, fill=True, alpha=0.5, label=names[0])
    axes.stairs(layer["wrong"], edges, color=WRONG, linewidth=1.5, label=names[1])
    if layer["threshold"] is not None:
        axes.axvline(layer["threshold"], color=GREY, linestyle=":", label="threshold")
    axes.set_ylabel("samples")
    axes.legend(loc="best")
