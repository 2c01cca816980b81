"""Comparing stored recipes, which are JSON, with the options of a network."""

from collections.abc import Iterable, Mapping
from typing import Any

from ffstream.errors import CheckpointIncompatible
from ffstream.util.option_errors import show

_SHOWN_MAX = 3

# What predictions, and the tensors of weights, depend on. The other options only decide how the network learns.
_PREDICTING = ("image_shape", "labels", "preprocessing", "activities", "recurrence")
_PREDICTING_LAYER = ("connection", "activation", "normalization", "goodness", "label_scheme")
# Weights can move to another device of the same kind.
_PREDICTING_PARTS = {"hardware": ("kind",), "fast_weights": ("kind",), "decoder": ("kind", "memory")}


def expect_same(found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raises CheckpointIncompatible if a stored recipe differs from the options. `what` names the file."""
    if different := _differences(found, wanted):
        raise CheckpointIncompatible(
            f"the options are not those that {what} was learned with: {different}",
            hint="set them as they were (ffstream checkpoint list --json shows all), or use another --state folder",
        )


def expect_same_network(found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raises CheckpointIncompatible if weights with a stored recipe cannot be the weights of this network.

    Options that only decide how the network learns may differ.
    """
    if different := _differences(_network_of(found), _network_of(wanted)):
        raise CheckpointIncompatible(
            f"the weights in {what} are of another network: {different}", hint="set these options as in that file"
        )


def _network_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    layers = [_layer_of(layer) for layer in recipe["layers"]]
    readout = {key: recipe["readout"].get(key) for key in ("kind", "layers")}
    return {key: recipe.get(key) for key in _PREDICTING} | {"layers": layers, "readout": readout}


def _layer_of(layer: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: {key: layer[name].get(key) for key in keys} for name, keys in _PREDICTING_PARTS.items()}
    return {key: layer.get(key) for key in _PREDICTING_LAYER} | parts


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The options that differ, with both values; empty if none does."""
    found, wanted = _flat(found), _flat(wanted)
    changed = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    shown = [f"network.{key} = {_shown(wanted, key)}, not {_shown(found, key)}" for key in changed[:_SHOWN_MAX]]
    if len(changed) > _SHOWN_MAX:
        shown.append(f"and {len(changed) - _SHOWN_MAX} more options")
    return "; ".join(shown)


def _shown(recipe: Mapping[str, Any], key: str) -> str:
    return show(recipe[key]) if key in recipe else "absent"


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Options by their dotted names; those of layers as `layers[0].learning_rate`."""
    inner: Iterable[tuple[str, Any]]
    if isinstance(tree, Mapping):
        inner = [(f"{name}.{key}" if name else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(each, Mapping) for each in tree):
        inner = [
            *((f"{name}[{index}]", value) for index, value in enumerate(tree)),
            (f"{name} (how many)", len(tree)),
        ]
    else:
        return {name: tree}
    return {key: value for part, each in inner for key, value in _flat(each, part).items()}
