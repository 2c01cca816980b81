"""The format version of what is stored about a network: checkpoint manifests and exported weights share one number.

A file of a newer format is rejected with an error that says so. A file of an older format is read as what it meant
when it was written. A stored recipe is complete, so a changed default never changes what an existing file means. But
an option that was added later is absent in older files. How to add an option to the recipe:

    1. Increase FORMAT.
    2. Add an entry to ADDED under the new number: the option's name, and the value for which the network behaves as
       it did before the option existed. That is what older files mean, whatever the option's default is today.

The name of an option is its path in the recipe. In a path, a list stands for each of its elements, and `name:kind`
for the part `name` if it is of that kind:

    replay                               an option of the network
    layers.learning_rate                 an option of every layer
    layers.optimizer:adam.beta1          an option of the optimizer `adam`, of every layer that uses it
"""

from collections.abc import Mapping
from typing import Any

from ffstream.errors import CheckpointIncompatible

FORMAT = 8

# By the format that added them: options of the recipe, and the values that files of older formats mean.
ADDED: dict[int, dict[str, Any]] = {
    2: {
        "drift": {"kind": "none"},
        "readout": {"kind": "none"},
        "replay_edges": "zero",
        "replay_flip": False,
        "wake": 0,
        "sleep": 0,
        "layers.opponent": {"kind": "none"},
        "layers.constraint": {"kind": "none"},
    },
    3: {"layers.goodness.areas": 1},
    4: {"layers.hardware": {"kind": "ideal"}},
    5: {"layers.fast_weights": {"kind": "none"}},
    6: {"layers.decoder": {"kind": "none"}},
    7: {"recurrence": {"kind": "none"}},
    8: {"layers.opponent:average.min_rate": 1.0},
}


def expect_format(found: Any, what: str) -> int:
    """The format of a file. Raises CheckpointIncompatible for a newer one, ValueError for an invalid value."""
    if type(found) is not int or found < 1:
        raise ValueError(f"format is {found!r}")
    if found > FORMAT:
        raise CheckpointIncompatible(
            f"{what} has format {found}, and this ffstream reads formats up to {FORMAT}",
            hint="use the newer ffstream that wrote it",
        )
    return found


def complete(recipe: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The recipe in a file of that format, with the options that were added since."""
    completed = dict(recipe)
    for added_in, options in sorted(ADDED.items()):
        if added_in > version:
            for path, value in options.items():
                completed = _with(completed, path.split("."), value)
    return completed


def _with(tree: Any, path: list[str], value: Any) -> Any:
    """The tree with the option at that path set, where the path exists and the option is absent."""
    name, *rest = path
    name, _, kind = name.partition(":")
    if not rest:
        return {name: value, **tree}
    inner = tree.get(name)
    if isinstance(inner, list):
        return {**tree, name: [_with(each, rest, value) for each in inner]}
    if not isinstance(inner, Mapping) or (kind and inner.get("kind") != kind):
        return tree
    return {**tree, name: _with(inner, rest, value)}
