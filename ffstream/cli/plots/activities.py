"""The activities of each layer for one image under the right and under a wrong label, as in Hinton (2022)."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ffstream.cli.plots.pictures import pixels
from ffstream.cli.plots.style import GREY, RIGHT, WRONG, caption, plain


def draw(answer: dict[str, Any]) -> Figure:
    """From /api/activities, with the `image` and its `image_shape`."""
    layers = answer["layers"]
    rows = sum(1 if layer["groups"] else 2 for layer in layers)
    figure = Figure(figsize=(9, 0.5 + 1.7 * max(2, rows)), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 4])[0]
    _draw_images(left, answer)
    axes = iter(right.subplots(rows, 1, squeeze=False)[:, 0])
    for layer in layers:
        if layer["groups"]:
            _draw_groups(next(axes), layer, answer)
        else:
            _draw_sides(next(axes), next(axes), layer, answer)
    right.supxlabel(caption(layers, 105), fontsize=8, color=GREY, x=0.01, ha="left")
    return figure


def _draw_images(part: Any, answer: dict[str, Any]) -> None:
    shown = [(answer["image"], f"label {answer['label']}")]
    if answer.get("negative") is not None:
        shown.append((answer["negative"], "negative image"))
    for axes, (image, title) in zip(part.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        axes.imshow(pixels(image, answer["image_shape"]), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title)
        plain(axes)
    part.supxlabel(f"weights after {answer['seq']:,} samples", fontsize=8, color=GREY)


def _draw_groups(axes: Axes, layer: dict[str, Any], answer: dict[str, Any]) -> None:
    """The activities are the same for all labels: the groups of the two labels are coloured."""
    values, unit = _flat(layer)
    colours = [GREY] * len(values)
    texts = []
    for (first, last), colour, label, side in zip(
        layer["groups"], (RIGHT, WRONG), (answer["label"], answer["wrong"]), ("right", "wrong"), strict=True
    ):
        colours[first : last + 1] = [colour] * (last + 1 - first)
        axes.axvspan(first - 0.5, last + 0.5, color=colour, alpha=0.12, linewidth=0)
        axes.text(
            (first + last) / 2,
            1.0,
            f"{label}",
            color=colour,
            ha="center",
            va="bottom",
            weight="bold",
            transform=axes.get_xaxis_transform(),
        )
        texts.append(f"{label} ({side}) {layer[f'goodness_{side}']:.3g}")
    axes.bar(range(len(values)), values, width=1.0, color=colours)
    axes.set_title(f"layer {layer['index']}: goodness of the units of {texts[0]}, of {texts[1]}", pad=14)
    axes.set_xlabel(unit)
    axes.set_ylabel("activity")
    axes.margins(x=0.005)


def _draw_sides(upper: Axes, lower: Axes, layer: dict[str, Any], answer: dict[str, Any]) -> None:
    names = (
        ("the image", "a negative image")
        if layer["compares"] == "images"
        else (f"label {answer['label']} (right)", f"label {answer['wrong']} (wrong)")
    )
    top = max(float(_flat(layer, side)[0].max()) for side in ("right", "wrong"))
    for axes, side, colour, name in zip((upper, lower), ("right", "wrong"), (RIGHT, WRONG), names, strict=True):
        values, _ = _flat(layer, side)
        axes.bar(range(len(values)), values, width=1.0, color=colour)
        axes.set_title(f"layer {layer['index']}, {name}: goodness {layer[f'goodness_{side}']:.4g}")
        axes.set_ylabel("activity")
        axes.set_ylim(min(0.0, float(values.min())), 1.05 * top or 1.0)
        axes.margins(x=0.005)
    lower.set_xlabel(_flat(layer)[1])


def _flat(layer: dict[str, Any], side: str = "right") -> tuple[NDArray[np.float64], str]:
    """One number for each unit or channel, and what the horizontal axis shows."""
    shape, units = layer["shape"], layer["units"]
    values = np.array(layer[side], np.float64).reshape(shape)
    mean = values.reshape(-1, shape[-1]).mean(0)
    name = "unit" if len(units) == 1 else f"channel (mean over {' × '.join(map(str, units[:-1]))} places)"
    several = -(-units[-1] // shape[-1])
    return mean, name if several == 1 else f"{name}, means of up to {several} neighbours"
