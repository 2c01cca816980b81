"""Presets: the recipes that ship with ffstream, by name. Each is written as in [network]."""

from collections.abc import Mapping
from typing import Any, Literal

from ffstream.ff.recipe import Recipe, load_parts, make_recipe
from ffstream.util.option_errors import Option, OptionError, wrong

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The recipe with the lowest error in one pass that we measured; see "Results" in the README.
    "stream": {
        "preprocessing": "running_mean",
        "layers": [
            {"connection": {"kind": "dense", "units": 512}, "label_scheme": "pixels"},
            {"connection": {"kind": "dense", "units": 512}},
        ],
    },
    # Several times the throughput: large microbatches and no replay.
    "fast": {
        "preprocessing": "running_mean",
        "batch_size": 256,
        "replay": 0,
        "learning_rate": 5e-3,
        "layers": [
            {"connection": {"kind": "dense", "units": 512}, "label_scheme": "pixels"},
            {"connection": {"kind": "dense", "units": 512}},
        ],
    },
    # Supervised FF as it is usually re-implemented: the label overlaid on the first pixels of the image.
    "overlay": {
        "preprocessing": "running_mean",
        "activities": "label_conditioned",
        "batch_size": 256,
        "warmup_samples": 0,
        "replay": 0,
        "ema_samples": 0.0,
        "normalization": "unit",
        "goodness": "mean_squares",
        "objective": {"kind": "threshold", "alpha": 1.0, "theta": 3.0},
        "negatives": "random",
        "optimizer": {"kind": "adam", "beta1": 0.9, "beta2": 0.999},
        "schedule": "constant",
        "learning_rate": 0.03,
        "layers": [
            {
                "connection": {"kind": "dense", "units": 512},
                "label_scheme": {"kind": "pixels", "strength": 1.0},
            },
            {"connection": {"kind": "dense", "units": 512}, "label_scheme": "none"},
        ],
    },
}


PRESET = Option(Literal[tuple(PRESETS)], "stream")


def recipe(given: Mapping[str, Any] | str = "stream", **options: Any) -> Recipe:
    """The recipe for a [network] section, or for the name of a preset, with `options` changed.

    Raises OptionError (a ValueError), which names the option, its value and what is expected.

    >>> recipe("fast", widths=[1000, 1000], learning_rate=2e-3).layers[1].connection
    Dense(kind='dense', units=1000)
    """
    section = {"preset": given, **options} if isinstance(given, str) else {**given, **options}
    name = section.get("preset", "stream")
    if not isinstance(name, str) or name not in PRESETS:
        raise OptionError(wrong("preset", name, PRESET.expected()), hint=PRESET.closest(name))
    load_parts(section.get("parts", ()))
    return make_recipe(section, PRESETS[name])
