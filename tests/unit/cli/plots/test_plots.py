"""Pictures of `ffstream plot`: what they say, that colours differ, and that the same records make the same bytes."""

import io
import math
import warnings
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ffstream.cli.plot import plot
from ffstream.cli.plots import activities, curve, dreams, filters, goodness, mistakes, pictures, style
from ffstream.errors import NoSamples, Unavailable
from ffstream.history.history import SPANS, History
from ffstream.history.marks import Mark
from ffstream.history.points import FIGURES
from ffstream.serving.pictures import picture_shape, weights_png


def test_the_command_offers_every_span_that_there_is() -> None:
    (option,) = [each for each in plot.params if each.name == "span"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == SPANS


def history(samples: int = 20_000, *, seconds: int = 100) -> dict[str, Any]:
    """The record of a stream whose error falls from 50 %."""
    made = History(2)
    each = samples // seconds
    for second in range(1, seconds + 1):
        counts = {"seconds": 1.0, "learned_samples": each, "evaluated_samples": each, "errors": each / (1 + second)}
        error = 0.5 / second**0.5
        values = {"accepted": each * second, "learned": each * second, "window_error": error, "live_error": error}
        figures = np.full((2, len(FIGURES)), np.nan)
        figures[:, :3] = 1.0 + second / 100, 1.0, second / 200
        made.add(1000 + second, counts, values, figures)
    made.mark(Mark(1000.0, 0, "start", "begins"))
    made.mark(Mark(1050.0, each * 50, "rollback", "to 10"))
    made.mark(Mark(1060.0, each * 60, "checkpoint", ""))
    made.mark(Mark(1070.0, each * 70, "drift", ""))
    return made.document("all")


def histogram(kind: str, threshold: float | None = None) -> dict[str, Any]:
    layer = {"compares": kind, "edges": [0.0, 1.0, 2.0], "right": [1, 5], "wrong": [4, 2], "threshold": threshold}
    layer["text"] = "A sentence."
    return {"seq": 5, "samples": 6, "layers": [layer | {"index": index} for index in range(2)]}


def answer(kind: str) -> dict[str, Any]:
    """As /api/activities gives it, for a dense layer above one with a map of 2×2 places."""
    groups = [[2, 3], [0, 1]] if kind == "groups" else None
    layer = {"compares": kind, "groups": groups, "goodness_right": 1.5, "goodness_wrong": 0.25}
    layer["text"] = f"Compares {kind}."
    flat = {"index": 1, "shape": [6], "units": [12], "right": [1, 2, 3, 4, 5, 6], "wrong": [0] * 6}
    places = {"index": 0, "shape": [2, 2, 4], "units": [2, 2, 4], "right": list(range(16)), "wrong": [1] * 16}
    negative = [7] * 16 if kind == "images" else None
    layers = [layer | places, layer | flat]
    image = {"image": list(range(16)), "image_shape": [4, 4]}
    return {"seq": 1234, "label": 1, "wrong": 0, "negative": negative, "layers": layers} | image


def weights(channels: int) -> dict[str, Any]:
    images, scale = zip(*(weights_png(np_weights(channels, seed)) for seed in range(5)), strict=True)
    encoded = [b64encode(each).decode() for each in images]
    return {"index": 0, "seq": 7, "shape": [3, 3, channels], "images": encoded, "scale": list(scale)}


def np_weights(channels: int, seed: int) -> Any:
    import torch

    return torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 3, channels)).astype(np.float32))


def wrong(labels: int = 3, **extra: Any) -> dict[str, Any]:
    counts = np.full((labels, labels), 2)
    np.fill_diagonal(counts, 50)
    image = weights(1)["images"][0]
    per_class = [
        {"label": label, "samples": int(row.sum()), "wrong": int(row.sum() - 50), "error": float(1 - 50 / row.sum())}
        for label, row in enumerate(counts)
    ]
    latest = [{"seq": 9, "time": 0.0, "image": image, "label": 2, "predicted": 0, "scores": [0.0] * labels}]
    total = int(counts.sum())
    record = {"window_samples": total, "window_wrong": total - 50 * labels, "classes": list(range(labels))}
    return record | {"per_class": per_class, "confusion": counts.tolist(), "latest": latest} | extra


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "curve": lambda: curve.draw(history()),
    "goodness": lambda: goodness.draw(history(), ["groups", "labels"], histogram("groups", 0.5)),
    "goodness-without-samples": lambda: goodness.draw(history(), ["images", "images"], None),
    "activities-labels": lambda: activities.draw(answer("labels")),
    "activities-groups": lambda: activities.draw(answer("groups")),
    "activities-images": lambda: activities.draw(answer("images")),
    "mistakes": lambda: mistakes.draw(wrong()),
    "mistakes-of-many-labels": lambda: mistakes.draw(wrong(25)),
    "filters": lambda: filters.draw(weights(1)),
    "filters-in-colour": lambda: filters.draw(weights(3)),
    "filters-of-many-channels": lambda: filters.draw(weights(8)),
    "dreams": lambda: dreams.draw(dreamt([0, 1])),
}


def dreamt(labels: list[int] | None) -> dict[str, Any]:
    """As /api/dreams gives it, for two layers."""
    file = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20).save(file, "PNG")
    images = [[b64encode(file.getvalue()).decode()] * 3] * (1 if labels is None else len(labels))
    return {"seq": 70, "version": 1, "labels": labels, "layers": [images] * 2}


def texts(figure: Figure) -> str:
    """All that is written in a picture."""
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def plots(figure: Figure) -> list[Axes]:
    """The parts that have axes, not images only."""
    return [axes for axes in figure.findobj(Axes) if axes.get_xticks().size]


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_records_make_the_same_file(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.svg", "other.svg", "one.png")]
    for path in paths:
        with style.style():
            style.save(DRAWINGS[name](), path)
    one, other, png = paths
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes().startswith(b"<?xml")
    with Image.open(png) as image:
        assert image.getpixel((0, 0))[:3] == (255, 255, 255), "the background is light"  # type: ignore[index]
        assert image.width > 500


@pytest.mark.parametrize("name", ["curve", "goodness", "mistakes", "activities-labels", "activities-groups"])
def test_every_axis_says_what_it_shows(name: str) -> None:
    figure = DRAWINGS[name]()
    for axes in plots(figure):
        assert axes.get_ylabel(), axes.get_title()
    assert any(axes.get_xlabel() for axes in plots(figure))


def test_the_curve_names_the_true_size_of_its_window_and_its_marks() -> None:
    full = texts(DRAWINGS["curve"]())
    assert "of the last 10,000 samples predicted (at first of all)" in full
    assert "of the samples in each 1 s" in full
    assert "prequential error 5.00% at the end" in full
    assert "samples learned" in full
    assert "learned, samples/s" in full
    assert {"start", "rollback", "detected drift", "checkpoint"} <= set(full.splitlines())
    assert "paused" not in full, "what has not happened is not in the legend"
    lost = history()
    lost["marks"].append(Mark(lost["columns"]["time"][-1], 5000, "interruption", "")._asdict())
    assert "interrupted" in texts(curve.draw(lost)).splitlines()
    few = texts(curve.draw(history(1000)))
    assert "of all samples predicted so far (1,000 at the end)" in few
    assert "10,000" not in few


def test_an_interval_of_few_samples_is_not_drawn() -> None:
    record = history()
    columns = record["columns"]
    columns["learned"][-1], columns["error"][-1] = columns["learned"][-2] + 1, 0.0
    (upper, _) = curve.draw(record).axes
    drawn = np.asarray(upper.lines[0].get_ydata(), float)
    assert np.isnan(drawn[-1])
    assert np.isfinite(drawn[:-1]).all()


def test_a_curve_without_errors_has_an_axis() -> None:
    record = history()
    columns = record["columns"]
    columns["error"] = columns["window_error"] = [0.0] * len(columns["learned"])
    with warnings.catch_warnings(action="error"):
        (upper, _) = curve.draw(record).axes
    assert upper.get_ylim() == (0.0, 1.0)


def test_goodness_is_named_for_what_each_layer_compares() -> None:
    text = texts(DRAWINGS["goodness"]())
    assert "units of the right label" in text
    assert "layer 0: margin to units of the strongest wrong label" in text
    assert "layer 1: margin to the strongest wrong label" in text
    assert "layer 1: the last 6 samples evaluated" in text
    assert "threshold" in text
    without = texts(DRAWINGS["goodness-without-samples"]())
    assert "real images" in without
    assert "evaluated" not in without
    assert "threshold" not in without


def test_activities_are_drawn_as_what_the_layer_compares() -> None:
    labels, groups, images = (texts(DRAWINGS[f"activities-{kind}"]()) for kind in ("labels", "groups", "images"))
    assert "layer 0, label 1 (right): goodness 1.5" in labels
    assert "layer 1, label 0 (wrong): goodness 0.25" in labels
    assert "channel (mean over 2 × 2 places)" in labels
    assert "unit, means of up to 2 neighbours" in labels
    assert "layer 1: goodness of the units of 1 (right) 1.5, of 0 (wrong) 0.25" in groups
    assert "layer 0, a negative image: goodness 0.25" in images
    assert "negative image" in images.splitlines()
    assert "weights after 1,234 samples" in labels
    assert labels.splitlines().count("Compares labels.") == 1, "a sentence that all layers share is there once"


@pytest.mark.parametrize("shape", [[16], [15], [4, 5], [4, 5, 1], [4, 5, 3], [4, 5, 2], [2, 2, 2, 2], [2, 2, 2, 3]])
def test_images_of_every_shape_are_drawn_as_the_page_draws_them(shape: list[int]) -> None:
    drawn = pictures.pixels(list(range(math.prod(shape))), shape)
    height, width, channels = picture_shape(shape)
    assert drawn.shape == ((height, width, 3) if channels == 3 else (height, width))


def test_sentences_of_layers_that_differ_name_the_layers() -> None:
    layers = [{"index": index, "text": text} for index, text in enumerate(("One.", "Two.", "One."))]
    assert style.caption(layers, 100) == "layer 0, 2: One.\nlayer 1: Two."


def test_mistakes_say_which_samples_they_are_of() -> None:
    live = texts(DRAWINGS["mistakes"]())
    assert "12 wrong of the last 162 samples that were predicted before they were learned" in live
    assert "2 → 0" in live
    offline = texts(mistakes.draw(wrong(seq=7000, first_seq=7001, last_seq=7162)))
    assert "samples (7,001 to 7,162), predicted by checkpoint 7,000, which has not learned them" in offline
    many = texts(mistakes.draw(wrong(25) | {"confusion": None, "window_wrong": 1300}))
    assert "no matrix for so many labels" in many
    assert "1,300 wrong of" in many, "not only those of the classes that are listed"
    assert "error of the 25 classes with most mistakes" in many


def test_filters_have_a_scale() -> None:
    assert "layer 0: the 5 units with the largest weights, 3 × 3 each, after 7 samples" in texts(
        DRAWINGS["filters"]()
    )
    assert "weight / largest weight of the unit" in texts(DRAWINGS["filters"]())
    assert "3 × 3 × 8 each" in texts(DRAWINGS["filters-of-many-channels"]())


def test_dreams_name_their_layer_and_label() -> None:
    shown = texts(DRAWINGS["dreams"]())
    assert "dreams of each layer, after 70 samples" in shown
    assert all(f"layer {layer}: {label}" in shown for layer in range(2) for label in range(2))
    assert "layer 1\n" in texts(dreams.draw(dreamt(None))) + "\n"


def test_dreams_of_a_layer_are_one_image_with_a_row_for_each_label() -> None:
    axes = dreams.draw(dreamt(list(range(62)))).axes
    assert len(axes) == 2, "matplotlib cannot lay out thousands of axes in time"
    tiled = np.asarray(axes[0].images[0].get_array())
    assert tiled.shape == (62 * 4, 3 * 5)
    assert (tiled[4:7, 5:9] == np.arange(12).reshape(3, 4) * 20).all()
    assert (tiled[3::4] == 255).all()
    assert (tiled[:, 4::5] == 255).all()


def test_nothing_to_draw_is_said() -> None:
    empty = History(2).document("all")
    for draw in (curve.draw, lambda record: goodness.draw(record, ["labels"] * 2, None)):
        with pytest.raises(NoSamples):
            draw(empty)
    with pytest.raises(NoSamples):
        mistakes.draw(wrong() | {"window_samples": 0})


def test_a_folder_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file or directory"):
        style.save(Figure(), tmp_path / "none" / "a.png")


# Machado, Oliveira and Fernandes (2009): full protanopia and deuteranopia, on linear RGB.
_SEEN = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


@pytest.mark.parametrize("kind", _SEEN)
def test_colours_that_lie_side_by_side_differ_for_colour_blind_people(kind: str) -> None:
    pairs = [(style.RIGHT, style.WRONG), (style.BLUE, style.ORANGE), (style.GREEN, style.VERMILLION)]
    for pair in pairs:
        seen = [np.array(_SEEN[kind]) @ (np.array(to_rgb(colour)) ** 2.2) for colour in pair]
        one, other = (np.clip(each, 0, 1) ** (1 / 2.2) for each in seen)
        assert np.abs(one - other).max() > 0.3, (kind, pair)
