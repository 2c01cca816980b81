"""What each layer dreams of each label, as images."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ffstream.cli.plots.pictures import of_png
from ffstream.cli.plots.style import plain


def draw(answer: dict[str, Any]) -> Figure:
    """From /api/dreams: a row of images for each layer and label."""
    layers, labels = answer["layers"], answer["labels"]
    rows, columns = len(layers) * len(layers[0]), len(layers[0][0])
    figure = Figure(figsize=(1.6 + 0.6 * columns, 0.8 + 0.6 * rows), layout="constrained")
    grid = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
    for index, (axes, layer) in enumerate(zip(grid, layers, strict=True)):
        images = np.array([[of_png(image) for image in of_label] for of_label in layer])
        tiled = _tiled(images)
        plain(axes)
        axes.imshow(tiled, cmap="gray", vmin=0, vmax=255)
        names = [f"layer {index}"] if labels is None else [f"layer {index}: {label}" for label in labels]
        middles = (np.arange(len(names)) + 0.5) * len(tiled) / len(names)
        axes.set_yticks(middles, names, fontsize=8)
        axes.tick_params(left=False)
    figure.suptitle(f"dreams of each layer, after {answer['seq']:,} samples", x=0.01, ha="left", fontsize=10)
    return figure


def _tiled(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (L, N, h, w), or (L, N, h, w, 3), as one image of L rows and N columns, with white gaps.

    With axes for each image, matplotlib needs minutes for the layout of 1,000 images.
    """
    gap = 1 + images.shape[2] // 14
    edges = [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)][: images.ndim]
    padded = np.pad(images, edges, constant_values=255)
    rows, columns, height, width, *channels = padded.shape
    return padded.swapaxes(1, 2).reshape(rows * height, columns * width, *channels)
