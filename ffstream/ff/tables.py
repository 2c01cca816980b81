"""From the tables that users write in [network] to the fields of a recipe: presets, shorthands and merging."""

from collections.abc import Mapping, Set
from typing import Any

from ffstream.util.option_errors import OptionError, wrong

# The parts of a layer unless the preset or the options say otherwise.
LAYER_DEFAULTS: Mapping[str, Any] = {
    "connection": "dense",
    "activation": "relu",
    "normalization": "rms",
    "goodness": "sum_squares",
    "label_scheme": "vectors",
    "objective": "softmax",
    "negatives": "hardest",
    "optimizer": "adam",
    "schedule": "inverse_sqrt",
    "opponent": "none",
    "constraint": "none",
    "hardware": "ideal",
    "fast_weights": "none",
    "decoder": "none",
}
# The same for the network.
NETWORK_DEFAULTS: Mapping[str, Any] = {"drift": "restart", "readout": "none", "recurrence": "none"}
_SHORTHANDS = {"preset", "widths"}


def complete(given: Mapping[str, Any], preset: Mapping[str, Any], layer_keys: Set[str]) -> dict[str, Any]:
    """The fields of a `Recipe`, from the options `given` and the preset that they change. Raises OptionError.

    Tables are merged, unless the kind of a part changes: then the options of the old kind do not apply.
    """
    written = {key: value for key, value in given.items() if key not in _SHORTHANDS}
    tree = merge(merge(NETWORK_DEFAULTS, preset), {key: value for key, value in written.items() if key != "layers"})
    shared = merge(LAYER_DEFAULTS, {key: tree.pop(key) for key in layer_keys & tree.keys()})
    layers = written.get("layers", tree.get("layers", ()))
    if "widths" in given:
        for other in {"layers", "connection"} & written.keys():
            raise OptionError(wrong("widths", given["widths"], f"cannot be given beside network.{other}"))
        layers = _dense(given["widths"], layers)
    if not isinstance(layers, list | tuple) or not all(isinstance(layer, Mapping) for layer in layers):
        raise OptionError(wrong("layers", layers, "expected one table [[network.layers]] for each layer"))
    # Options given for all layers override what the preset says about a single layer.
    for_all = {key: written[key] for key in layer_keys & written.keys()}
    own = [layer if "layers" in written else merge(layer, for_all) for layer in layers]
    return tree | {"layers": [merge(shared, layer) for layer in own]}


def _dense(widths: Any, layers: Any) -> list[dict[str, Any]]:
    is_list = isinstance(widths, list | tuple) and len(widths) > 0
    if not is_list or not all(type(width) is int and width >= 1 for width in widths):
        raise OptionError(wrong("widths", widths, "expected a list of whole numbers from 1, for example [512, 512]"))
    first, *later = layers
    # For a preset with one layer: label pixels are for the first layer only.
    repeated = later[-1] if later else {key: value for key, value in first.items() if key != "label_scheme"}
    like = [first, *later, *(repeated for _ in widths)]
    dense = [{"kind": "dense", "units": width} for width in widths]
    return [{**layer, "connection": connection} for layer, connection in zip(like, dense, strict=False)]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `over` into `base`, table by table. A part that is given as a kind becomes {"kind": kind}."""
    merged = dict(base)
    for key, value in over.items():
        before, after = _as_table(merged.get(key), key), _as_table(value, key)
        if isinstance(before, Mapping) and isinstance(after, Mapping) and _same_kind(before, after):
            merged[key] = merge(before, after)
        else:
            merged[key] = after
    return merged


def _as_table(value: Any, key: str) -> Any:
    return {"kind": value} if isinstance(value, str) and key in _PART_KEYS else value


def _same_kind(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return "kind" not in after or before.get("kind") == after["kind"]


_PART_KEYS = {*LAYER_DEFAULTS, *NETWORK_DEFAULTS, "preprocessing"}
