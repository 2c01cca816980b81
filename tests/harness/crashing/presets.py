"""Small networks with the parts of a preset, so that daemons that learn with it can be killed many times.

They are made from the preset's own recipe: fewer units, smaller images, short phases, and a warm-up and a whitening
that end early, so that kills come before and after their end. A new preset needs nothing here.
"""

from collections.abc import Mapping
from typing import Any

from ffstream.ff.presets import recipe
from ffstream.ff.recipe import Recipe
from ffstream.util.option_errors import show
from tests.harness.crashing.stream import BATCH, Stream

# By the name of an option, wherever it is in the recipe.
_AT_MOST: Mapping[str, int] = {
    "units": 32,
    "channels": 4,
    "image_shape": 20,  # local receptive fields of 9 and 3 leave more than one place
    "warmup_batch_size": 4,
    "warmup_samples": 32,
    "wake": 3,
    "sleep": 2,
    "images": 300,  # the last ones are in the middle of a microbatch
}
_UNLABELLED = 0.25


def small_stream(preset: str, seed: int) -> Stream:
    """A stream and settings for a small network of that preset."""
    small = small_recipe(preset)
    return Stream(
        seed=seed,
        settings=[f"network.{name}={show(value)}" for name, value in {"preset": preset, **_changed(preset)}.items()],
        image_shape=small.image_shape,
        unlabelled=_UNLABELLED if small.learns_unlabelled else 0.0,
    )


def small_recipe(preset: str) -> Recipe:
    """The recipe of that network."""
    return recipe(preset, **_changed(preset), batch_size=BATCH)


def _changed(preset: str) -> Mapping[str, Any]:
    """The options that differ from those of the preset."""
    given = recipe(preset).model_dump(mode="json")
    small = {name: _made_small(name, value) for name, value in given.items()}
    return {name: value for name, value in small.items() if value != given[name]}


def _made_small(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _made_small(key, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_made_small(name, each) for each in value]
    return min(value, _AT_MOST[name]) if name in _AT_MOST else value
