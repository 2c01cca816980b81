"""Recurrent networks: the battery for several shapes, what the label reaches, and the drift test."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ffstream.config import load
from ffstream.errors import ConfigError
from ffstream.ff.network import Network
from ffstream.ff.recurrent import RecurrentLayer, steps_of
from ffstream.util.option_errors import OptionError
from tests import battery
from tests.unit.ff import formulas
from tests.unit.ff.formulas import RECURRENT, learn

NEGATIVE = {"kind": "mean_squares", "negative": True}


def layers(*units: int, **options: Any) -> list[dict[str, Any]]:
    """Dense layers, the last one with the label."""
    last = len(units) - 1
    return [
        {
            "connection": {"units": each},
            "label_scheme": "vectors" if index == last else "none",
            "objective": {"alpha": 0.7},
            **options,
        }
        for index, each in enumerate(units)
    ]


def top_down(**options: Any) -> dict[str, Any]:
    return {"kind": "top_down", **options}


MAP = {"kind": "conv", "channels": 4, "kernel": 3, "padding": 1, "pool": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "one round": {"recurrence": top_down(rounds=1)},
    "three layers": {"layers": layers(8, 12, 9)},
    "four layers": {"layers": layers(8, 12, 9, 7, goodness=NEGATIVE)},
    "all layers at once": {"recurrence": top_down(rounds=3, order="synchronous"), "layers": layers(8, 12, 9, 7)},
    "a map": {"layers": [layers(8, 9, connection=MAP)[0], layers(8, 12)[1]]},
    "the label in every layer": {"label_scheme": "vectors"},
    "a wrong label": {"objective": {"kind": "threshold", "alpha": 0.02, "theta": 5.0}},
    "unit length": {"normalization": "unit"},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_recurrent_networks_pass_the_battery(options: dict[str, Any], tmp_path: Path) -> None:
    battery.check_layer(RECURRENT.change(**options), tmp_path)


@pytest.mark.parametrize(("order", "needed"), [("alternating", 2), ("synchronous", 3)])
def test_the_label_comes_down_to_the_first_layer(order: str, needed: int) -> None:
    recipe = RECURRENT.change(recurrence=top_down(rounds=needed, order=order), layers=layers(8, 12, 9, 7))
    classifier = formulas.random_network(recipe).classifier()
    for G_BL in classifier.goodness(formulas.random_images(5, recipe.inputs)):
        assert (G_BL.std(1) > 1e-3).all(), "every label has a goodness of its own"
    with pytest.raises(OptionError, match=f"the label reaches the first one after {needed}"):
        recipe.change(recurrence=top_down(rounds=needed - 1, order=order))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": layers(8)}, "needs two layers or more"),
        ({"label_scheme": "none"}, "the last layer of a network"),
        ({"label_scheme": "groups"}, 'needs "none" or "vectors"'),
        ({"readout": "softmax"}, 'readout = "softmax": must be "none"'),
        ({"goodness": {"areas": 2}, "layers": layers(8, 12, connection=MAP)}, "goodness.areas = 2: must be 1"),
        ({"hardware": "analog"}, 'hardware = "analog": must be ideal'),
        ({"activities": "label_conditioned"}, 'must be "label_free"'),
        ({"objective": "evoked", "label_scheme": "vectors"}, "all rows have one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_rejected(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        RECURRENT.change(**options)
    assert said in str(caught.value)


def test_its_layers_are_one_stage() -> None:
    assert RECURRENT.stage_sizes() == (2,)
    settings = ["network.preset=recurrent", "pipeline.stages=[1, 1]"]
    with pytest.raises(ConfigError, match="all layers must be in one stage") as caught:
        load(settings=settings, environment={})
    assert "[2]" in str(caught.value.hint)


def test_the_drift_test_compares_weights_on_the_inputs_of_the_last_round() -> None:
    """The newest weights have the goodness of the training pass there, the EMA weights another one."""
    recipe = RECURRENT.change(layers=layers(8, 12, 9))
    network = Network(recipe)
    learn(network, 1, 8)
    (together,) = steps_of(network.layers)
    images_BI, labels_B = formulas.random_images(5, recipe.inputs), formulas.random_labels(5, recipe.labels)
    together.forward(network.input.forward(images_BI, labels_B, 9, "interleaved"))
    for layer in network.layers:
        assert isinstance(layer, RecurrentLayer)
        trained_BL = layer.settling.goodness()
        assert torch.allclose(layer.settling.goodness_by(layer.parameters.views, 3), trained_BL[:3], rtol=1e-5)
        assert not torch.allclose(layer.settling.goodness_by(layer.parameters.ema, 3), trained_BL[:3], rtol=1e-5)
