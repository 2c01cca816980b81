"""Small networks for crash runs have the parts of their preset."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from ffstream import config
from ffstream.ff.presets import PRESETS, recipe
from ffstream.ff.recipe import Recipe
from ffstream.util.labels import UNLABELLED
from tests.harness.crashing.presets import small_stream
from tests.harness.crashing.stream import SETTINGS, Stream


def small_recipe(stream: Stream) -> Recipe:
    return config.load(None, (*SETTINGS, *stream.settings)).network


def kinds(value: Any) -> Iterator[str]:
    """The kinds of all parts, in order."""
    if isinstance(value, Mapping):
        yield from [value["kind"]] if "kind" in value else []
        for each in value.values():
            yield from kinds(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from kinds(each)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_small_network_has_the_parts_and_phases_of_its_preset(preset: str) -> None:
    full, stream = recipe(preset), small_stream(preset, 1)
    small = small_recipe(stream)
    assert list(kinds(small.model_dump())) == list(kinds(full.model_dump()))
    assert small.image_shape == stream.image_shape
    for each in ("wake", "sleep", "warmup_samples"):
        assert bool(getattr(small, each)) == bool(getattr(full, each))
        assert getattr(small, each) <= 32
    assert small.replay > 0
    assert small.replay_flip == full.replay_flip


@pytest.mark.parametrize("preset", PRESETS)
def test_messages_fit_the_network(preset: str) -> None:
    stream = small_stream(preset, 1)
    images, labels = stream.message(7, 100)
    network = small_recipe(stream)
    assert images.shape == (100, network.inputs)
    assert set(np.unique(labels)) - {UNLABELLED} == set(range(network.labels))
    assert (UNLABELLED in labels) == recipe(preset).learns_unlabelled
