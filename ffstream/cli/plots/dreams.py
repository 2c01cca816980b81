"""What each layer dreams of each label, as images."""

from typing import Any

from matplotlib.figure import Figure

from ffstream.cli.plots.pictures import of_png
from ffstream.cli.plots.style import plain


def draw(answer: dict[str, Any]) -> Figure:
    """From /api/dreams: a row for each layer and label."""
    layers, labels = answer["layers"], answer["labels"]
    rows = [(index, label, images) for index, layer in enumerate(layers) for label, images in enumerate(layer)]
    columns = len(rows[0][2])
    figure = Figure(figsize=(1.6 + 0.6 * columns, 0.8 + 0.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_of_row, (index, label, images) in zip(grid, rows, strict=True):
        for axes, image in zip(axes_of_row, images, strict=True):
            plain(axes)
            axes.imshow(of_png(image), cmap="gray", vmin=0, vmax=255)
        name = f"layer {index}" if labels is None else f"layer {index}: {labels[label]}"
        axes_of_row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(f"dreams of each layer, after {answer['seq']:,} samples", x=0.01, ha="left", fontsize=10)
    return figure
