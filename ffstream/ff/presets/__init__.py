"""Presets: the recipes that ship with ffstream, by name. Each is a file in this folder, written as in [network]."""

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from typing import Any, Literal

from ffstream.ff.recipe import Recipe, load_parts, make_recipe
from ffstream.util.option_errors import Option, OptionError, wrong

PRESETS: Mapping[str, Mapping[str, Any]] = {
    file.name.removesuffix(".toml"): tomllib.loads(file.read_text(encoding="utf-8"))
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name)
    if file.name.endswith(".toml")
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


def preset_of(recipe: Recipe) -> str | None:
    """The name of the preset that a recipe is, for its images, labels and seed; None if it is a changed one.

    >>> preset_of(recipe("fast", seed=5)), preset_of(recipe("fast", batch_size=7))
    ('fast', None)
    """
    own = recipe.model_dump(include={"image_shape", "labels", "seed"})
    for name, preset in PRESETS.items():
        with suppress(OptionError):  # not every network is possible for these images
            if make_recipe({"preset": name, **own}, preset) == recipe:
                return name
    return None
