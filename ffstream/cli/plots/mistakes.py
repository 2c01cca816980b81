"""What predictions before learning get wrong: the confusion matrix, the error of each class, the latest mistakes."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ffstream.cli.plots.pictures import of_png
from ffstream.cli.plots.style import VERMILLION, plain
from ffstream.errors import NoSamples

_COLUMNS = 6
_ROWS = 4
_WRITTEN_MAX = 20  # classes with which the counts are written into the matrix


def draw(record: dict[str, Any]) -> Figure:
    """From /api/mistakes. Raises NoSamples."""
    if not record["window_samples"]:
        raise NoSamples("no sample was predicted yet", hint="send samples with labels; see prequential.fraction")
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, squeeze=False, width_ratios=[4, 2, 5])[0]
    matrix_axes, error_axes = left.subplots(), middle.subplots()
    _draw_matrix(matrix_axes, record)
    _draw_errors(error_axes, record)
    _draw_latest(right, record["latest"])
    figure.suptitle(f"{record['window_wrong']:,} wrong of {_samples(record)}", x=0.01, ha="left", fontsize=11)
    return figure


def _samples(record: dict[str, Any]) -> str:
    count = record["window_samples"]
    if "first_seq" not in record:
        return f"the last {count:,} samples that were predicted before they were learned"
    where = f"{record['first_seq']:,} to {record['last_seq']:,}"
    return f"{count:,} samples ({where}), predicted by checkpoint {record['seq']:,}, which has not learned them"


def _draw_matrix(axes: Axes, record: dict[str, Any]) -> None:
    if record["confusion"] is None:
        axes.text(0.5, 0.5, "no matrix for so many labels", ha="center", transform=axes.transAxes)
        plain(axes)
        return
    counts = np.array(record["confusion"])
    mistakes = counts.astype(float)
    np.fill_diagonal(mistakes, np.nan)  # the right ones would hide them
    axes.imshow(mistakes, cmap="Oranges", vmin=0)
    axes.set_facecolor("#EEEEEE")
    axes.grid(False)
    axes.set_title("confusion matrix: samples (grey: right)")
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    if len(counts) > _WRITTEN_MAX:
        return
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    dark = np.nanmax(mistakes) / 2
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if row != column and count > dark else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=7, color=colour)


def _draw_errors(axes: Axes, record: dict[str, Any]) -> None:
    classes = record["per_class"]
    rows = range(len(classes))
    axes.barh(rows, [each["error"] or 0.0 for each in classes], color=VERMILLION)
    axes.set_ylim(len(classes) - 0.5, -0.5)  # as the rows of the matrix
    if len(classes) <= _WRITTEN_MAX:
        axes.set_yticks(rows, [str(each["label"]) for each in classes])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    every = record["confusion"] is not None
    axes.set_title("error of each class" if every else f"error of the {len(classes)} classes with most mistakes")
    axes.set_xlabel("error")
    axes.set_ylabel("true label")


def _draw_latest(part: Any, latest: list[dict[str, Any]]) -> None:
    part.suptitle("latest mistakes: true → predicted", x=0.01, ha="left", fontsize=10)
    grid = part.subplots(_ROWS, _COLUMNS)
    for axes in grid.flat:
        plain(axes)
    for axes, mistake in zip(grid.flat, latest, strict=False):
        axes.imshow(of_png(mistake["image"]), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{mistake['label']} → {mistake['predicted']}", loc="center", fontsize=9)
