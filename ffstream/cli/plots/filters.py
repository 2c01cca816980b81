"""The weights of the units of a layer with the largest norms, as images."""

import math
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ffstream.cli.plots.pictures import of_png
from ffstream.cli.plots.style import plain

_DIVERGING = "RdBu"  # red and blue differ for colour-blind people, too


def draw(answer: dict[str, Any]) -> Figure:
    """From /api/filters."""
    images = [of_png(each) for each in answer["images"]]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(0.5 + 0.85 * max(6, columns), 1.0 + 0.85 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        plain(axes)
    for axes, image in zip(grid.flat, images, strict=False):
        if image.ndim == 3:
            axes.imshow(image)
        else:
            axes.imshow((image - 128.0) / 127.0, cmap=_DIVERGING, vmin=-1, vmax=1)
    figure.suptitle(_title(answer, len(images)), x=0.01, ha="left", fontsize=10)
    if images and images[0].ndim == 2:
        colours = ScalarMappable(Normalize(-1, 1), _DIVERGING)
        bar = figure.colorbar(
            colours, ax=grid, shrink=min(1.0, 4 / rows), label="weight / largest weight of the unit"
        )
        bar.set_ticks([-1, 0, 1])
    return figure


def _title(answer: dict[str, Any], count: int) -> str:
    height, width, channels = answer["shape"]
    what = f"{height} × {width}" + (f" × {channels}" if channels > 1 else "")
    scale = np.array(answer["scale"])
    return (
        f"layer {answer['index']}: the {count} units with the largest weights, {what} each, after"
        f" {answer['seq']:,} samples\nlargest weight of a unit: {scale.min():.3g} to {scale.max():.3g}"
    )
