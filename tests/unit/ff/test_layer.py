"""Every part that ships with ffstream, and combinations of them, pass the battery."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from ffstream.ff.image_negatives import ImageNegatives
from ffstream.ff.network import Network
from ffstream.ff.part import members
from ffstream.ff.recipe import Recipe
from ffstream.ff.tables import LAYER_DEFAULTS, NETWORK_DEFAULTS
from tests import battery
from tests.unit.ff.formulas import CONDITIONED, CONTRASTED, RECURRENT, SMALL, UNSUPERVISED

FAMILIES = [*LAYER_DEFAULTS, *NETWORK_DEFAULTS]
WRONG_LABELS = [kind for kind, part in members("negatives").items() if not issubclass(part, ImageNegatives)]
PHASED = {"kind": "threshold", "alpha": 0.02, "theta": 5.0}
OBJECTIVES: dict[str, Any] = {
    "softmax": {"kind": "softmax", "alpha": 0.7},
    "paired": {"kind": "paired", "alpha": 0.7},
    "threshold": PHASED,
    "evoked": {"kind": "evoked", "alpha": 0.02},
}
ANALOG: dict[str, Any] = {
    "kind": "analog",
    "mismatch": 0.3,
    "noise": 0.1,
    "stuck": 0.1,
    "bits": 8,
    "dead": 0.1,
    "changes_at": [20, 60],  # in the check of the state, and in that of the pipeline
}
VARIANTS: dict[str, Any] = {  # members that need other options than their kind
    "dense": {"kind": "dense", "units": 12},
    "conv": {"kind": "conv", "channels": 4, "kernel": 3, "padding": 1, "pool": 2},
    "local": {"kind": "local", "channels": 4, "kernel": 2},
    "hybrid": {"kind": "hybrid", "blurs": 1},  # for images of 4×4 pixels
    "analog": ANALOG,
    "dreams": {"kind": "dreams", "blurs": 1},
    **OBJECTIVES,
}


def base_for(family: str, kind: str) -> Recipe:
    """A small recipe in which that part has an effect."""
    if family == "label_scheme" and kind == "none":
        return CONDITIONED
    if family == "hardware" or (family == "connection" and kind != "dense"):
        return SMALL.change(label_scheme="vectors")
    if (family, kind) == ("negatives", "dreams"):
        return UNSUPERVISED.change(decoder="linear")
    if family == "negatives":
        return CONTRASTED if kind in WRONG_LABELS else UNSUPERVISED
    if family == "recurrence" and kind != "none":
        return RECURRENT
    return CONTRASTED if family == "opponent" else SMALL


def changed(recipe: Recipe, family: str, kind: str) -> Recipe:
    """The recipe with that part in every layer that can have it."""
    part = kind if family == "readout" else VARIANTS.get(kind, kind)
    if family == "fast_weights" or (family == "label_scheme" and kind in ("pixels", "none")):
        layers = recipe.model_dump()["layers"]
        at = 0 if kind == "pixels" else 1
        layers[at][family] = {"kind": kind}
        return recipe.change(layers=layers)
    return recipe.change(**{family: part})


EVERY = [(family, kind) for family in FAMILIES for kind in members(family)]


@pytest.mark.parametrize(("family", "kind"), EVERY, ids=[f"{family} {kind}" for family, kind in EVERY])
def test_every_registered_part_passes_the_battery(family: str, kind: str, tmp_path: Path) -> None:
    battery.check_layer(changed(base_for(family, kind), family, kind), tmp_path)


@pytest.mark.parametrize("kind", list(members("preprocessing")))
def test_every_preprocessing_passes_the_battery(kind: str, tmp_path: Path) -> None:
    battery.check_layer(SMALL.change(preprocessing=kind), tmp_path)


SPATIAL = {
    "odd edges are cut": [
        {"kind": "conv", "channels": 3, "kernel": 2, "pool": 2},
        {"kind": "local", "channels": 4, "kernel": 2, "padding": 1, "pool": 2},
    ],
    "strides and even kernels": [
        {"kind": "local", "channels": 3, "kernel": 3, "stride": 2, "padding": 2},
        {"kind": "conv", "channels": 4, "kernel": 2, "stride": 2, "pool": 2},
    ],
    "windows of three": [
        {"kind": "conv", "channels": 5, "kernel": 1, "pool": 3},
        {"kind": "dense", "units": 8},
        {"kind": "dense", "units": 4},
    ],
    "local with zeros around": [
        {"kind": "conv", "channels": 4, "kernel": 5, "padding": 2},
        {"kind": "local", "channels": 2, "kernel": 3, "padding": 1, "pool": 2},
    ],
}


@pytest.mark.parametrize("image_shape", [(7, 6), (7, 9, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize("stack", SPATIAL.values(), ids=SPATIAL)
def test_stacks_of_maps_pass_the_battery(stack: list[Any], image_shape: tuple[int, ...], tmp_path: Path) -> None:
    layer = {"objective": {"kind": "softmax", "alpha": 0.7}, "learning_rate": 0.01}
    layers = [{"connection": connection, **layer} for connection in stack]
    battery.check_layer(SMALL.change(image_shape=image_shape, layers=layers), tmp_path)


@pytest.mark.parametrize("goodness", ["mean_squares", "sum"])
def test_channels_of_a_map_are_divided_into_groups(goodness: str, tmp_path: Path) -> None:
    connections: list[dict[str, Any]] = [
        {"kind": "conv", "channels": 9, "kernel": 3, "pool": 2},
        {"kind": "local", "channels": 4, "kernel": 2},
        {"kind": "dense", "units": 14},
    ]
    layers = [
        {"connection": each, "label_scheme": "groups", "goodness": {"kind": goodness, "negative": True}}
        for each in connections
    ]
    battery.check_layer(SMALL.change(image_shape=(8, 7), layers=layers, objective={"alpha": 0.7}), tmp_path)


VECTORS = {"label_scheme": "vectors"}
AREAS: dict[str, tuple[Recipe, dict[str, Any]]] = {  # new layers inherit nothing
    "label vectors": (SMALL, VECTORS | {"objective": {"alpha": 0.7}}),
    "groups": (SMALL, {"label_scheme": "groups", "objective": {"alpha": 0.7}}),
    "one wrong label": (CONTRASTED, VECTORS | {"objective": {"kind": "paired", "alpha": 0.7}}),
    "evoked": (SMALL, VECTORS | {"objective": {"kind": "evoked", "alpha": 0.2}}),
    "label-conditioned": (CONDITIONED, VECTORS | {"objective": {"kind": "threshold", "alpha": 0.2, "theta": 1.0}}),
    "hybrids": (
        UNSUPERVISED,
        {
            "label_scheme": "none",
            "negatives": {"kind": "hybrid", "blurs": 1},
            "objective": {"kind": "threshold", "alpha": 0.2, "theta": 1.0},
        },
    ),
}


def with_areas(base: Recipe, options: dict[str, Any], goodness: str) -> Recipe:
    connections: list[dict[str, Any]] = [
        {"kind": "conv", "channels": 9, "kernel": 3, "padding": 1},
        {"kind": "local", "channels": 4, "kernel": 2},
        {"kind": "dense", "units": 8},
    ]
    layers = [
        {"connection": each, "goodness": {"kind": goodness, "areas": areas}}
        for each, areas in zip(connections, (2, 3, 1), strict=True)
    ]
    return base.change(image_shape=(4, 4), layers=layers, learning_rate=0.01, **options)


@pytest.mark.parametrize(("base", "options"), AREAS.values(), ids=AREAS)
def test_goodness_per_area_passes_the_battery(base: Recipe, options: dict[str, Any], tmp_path: Path) -> None:
    battery.check_layer(with_areas(base, options, "mean_squares"), tmp_path)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("goodness", list(members("goodness")))
@pytest.mark.parametrize(("base", "options"), AREAS.values(), ids=AREAS)
def test_gradients_of_goodness_per_area_equal_autograd(
    base: Recipe, options: dict[str, Any], goodness: str, activation: str
) -> None:
    battery.check_gradients(with_areas(base, options, goodness).change(activation=activation))


def test_an_area_must_tell_right_from_wrong_by_itself() -> None:
    """Where the whole map has more goodness for the right label, but one area has not, that area still learns."""
    connection = {"kind": "conv", "channels": 2, "kernel": 1}
    base = SMALL.change(
        layers=[{"connection": connection, "goodness": "mean_squares"}],
        image_shape=(4, 4),
        labels=2,
        objective={"kind": "paired", "alpha": 50.0},
        negatives="hardest",
    )
    gradients = []
    for areas in (1, 2):
        network = Network(base.change(goodness={"areas": areas}))
        layer = network.layers[0]
        state = layer.state_dict()
        vectors_LF = layer.parameters.views["label_vectors"]
        strong = torch.zeros(2, 4, 4, 2)
        strong[0] = 3.0
        strong[0, :2, :2] = 0.0
        strong[1, :2, :2] = 1.0  # in the first area the wrong label is the stronger one
        vectors_LF.copy_(strong.flatten(1))
        layer.forward(network.input.forward(torch.zeros(3, 16), torch.zeros(3, dtype=torch.int64), 1, "interleaved"))
        layer.update()
        assert state.keys() == layer.state_dict().keys()
        gradients.append(layer.parameters.gradients["label_vectors"].view(2, 4, 4, 2)[1, :2, :2])
    assert float(gradients[0].abs().max()) < 1e-9
    assert float(gradients[1].min()) > 1e-3


def test_channels_that_cannot_be_divided_are_rejected() -> None:
    connection = {"kind": "conv", "channels": 3}
    with pytest.raises(ValueError, match="3 channels cannot be divided among 4 labels"):
        SMALL.change(layers=[{"connection": connection, "label_scheme": "groups"}])


@pytest.mark.parametrize("normalization", list(members("normalization")))
@pytest.mark.parametrize(
    ("objective", "scheme"),
    [each for each in product(OBJECTIVES, ["vectors", "groups"]) if each != ("evoked", "groups")],
)
def test_gradients_of_combinations_equal_autograd(objective: str, scheme: str, normalization: str) -> None:
    goodness = [{"kind": kind, "negative": sign} for kind in members("goodness") for sign in (False, True)]
    negatives = WRONG_LABELS if objective != "softmax" else [LAYER_DEFAULTS["negatives"]]
    for activation, good, wrong in product(members("activation"), goodness, negatives):
        recipe = SMALL.change(
            activation=activation,
            goodness=good,
            label_scheme=scheme,
            objective=OBJECTIVES[objective],
            normalization=normalization,
            negatives=wrong,
        )
        battery.check_gradients(recipe)


@pytest.mark.parametrize("preprocessing", list(members("preprocessing")))
@pytest.mark.parametrize("negatives", WRONG_LABELS)
@pytest.mark.parametrize("objective", ["paired", "threshold"])
def test_gradients_of_label_conditioned_layers_equal_autograd(
    objective: str, negatives: str, preprocessing: str
) -> None:
    for activation, goodness in product(members("activation"), members("goodness")):
        recipe = CONDITIONED.change(
            activation=activation,
            goodness=goodness,
            objective=OBJECTIVES[objective],
            negatives=negatives,
            preprocessing=preprocessing,
        )
        battery.check_gradients(recipe)


@pytest.mark.parametrize("objective", ["paired", "threshold"])
def test_gradients_of_layers_without_labels_equal_autograd(objective: str) -> None:
    for activation, goodness in product(members("activation"), members("goodness")):
        recipe = UNSUPERVISED.change(activation=activation, goodness=goodness, objective=OBJECTIVES[objective])
        battery.check_gradients(recipe)


@pytest.mark.parametrize("layers", [(), (1,), (2, 0)])
@pytest.mark.parametrize("base", [SMALL, UNSUPERVISED], ids=["supervised", "unsupervised"])
def test_a_readout_passes_the_battery_whichever_layers_it_reads(
    base: Recipe, layers: tuple[int, ...], tmp_path: Path
) -> None:
    """With three stages, what the first one passes on is used two stages later."""
    readout = {"kind": "softmax", "layers": layers, "smoothing": 0.1, "learning_rate": 0.02}
    battery.check_layer(base.change(widths=[8, 12, 6], readout=readout), tmp_path)


@pytest.mark.parametrize("recipe", [SMALL, CONTRASTED, CONDITIONED], ids=["all labels", "contrasted", "conditioned"])
def test_gradients_of_wide_layers_equal_autograd(recipe: Recipe) -> None:
    """The activities for all labels do not fit into the cache of a core."""
    battery.check_gradients(recipe.change(widths=[512, 40], goodness="mean_squares", objective={"alpha": 0.5}))


def test_a_network_whose_layers_have_different_parts_passes_the_battery(tmp_path: Path) -> None:
    """Each layer has its own options."""
    recipe = SMALL.change(
        layers=[
            {"connection": {"kind": "dense", "units": 10}, "label_scheme": "pixels", "objective": {"alpha": 0.5}},
            {
                "connection": {"kind": "dense", "units": 12},
                "activation": "silu",
                "goodness": "mean_squares",
                "label_scheme": "groups",
                "objective": {"kind": "paired", "alpha": 3.0},
                "learning_rate": 0.02,
                "optimizer": {"kind": "sgd", "momentum": 0.5},
            },
            {"connection": {"kind": "dense", "units": 8}, "normalization": "unit", "objective": {"alpha": 5.0}},
        ]
    )
    battery.check_layer(recipe, tmp_path)
