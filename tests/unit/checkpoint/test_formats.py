"""Files of an older format mean what they meant when they were written."""

from typing import Any

import pytest

from ffstream.checkpoint import formats, recipes
from ffstream.errors import CheckpointIncompatible
from ffstream.ff.presets import recipe

OLD: dict[str, Any] = {
    "replay": 3,
    "layers": [
        {"connection": {"kind": "dense", "units": 8}, "optimizer": {"kind": "adam", "beta1": 0.5}},
        {"connection": {"kind": "dense", "units": 8}, "optimizer": {"kind": "sgd", "momentum": 0.9}},
    ],
}


def test_a_recipe_of_the_current_format_is_complete() -> None:
    stored = recipe("fast").model_dump(mode="json")
    assert formats.complete(stored, formats.FORMAT) == stored


def test_an_option_added_later_has_its_recorded_value_in_older_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """To add an option, increase FORMAT and record in ADDED what older files mean."""
    monkeypatch.setattr(formats, "FORMAT", 3)
    added: dict[int, dict[str, Any]] = {
        2: {"augment": False, "layers.optimizer:adam.weight_decay": 0.0, "preprocessing.whiten": False},
        3: {"layers.norm": None},
    }
    monkeypatch.setattr(formats, "ADDED", added)
    completed = formats.complete(OLD, formats.expect_format(1, "x"))
    assert completed["augment"] is False
    assert completed["replay"] == 3
    assert completed["layers"][0]["optimizer"] == {"kind": "adam", "beta1": 0.5, "weight_decay": 0.0}
    assert completed["layers"][1]["optimizer"] == {"kind": "sgd", "momentum": 0.9}
    assert [layer["norm"] for layer in completed["layers"]] == [None, None]
    assert "preprocessing" not in completed
    assert formats.complete({"layers": [{}]}, 2) == {"layers": [{"norm": None}]}
    assert formats.complete({"layers": [{}]}, 3) == {"layers": [{}]}


def test_an_older_opponent_leaves_the_learning_rate_alone() -> None:
    stored = recipe("wake-sleep").model_dump(mode="json")
    for layer in stored["layers"]:
        del layer["opponent"]["min_rate"]
    completed = formats.complete(stored, 7)
    assert [layer["opponent"]["min_rate"] for layer in completed["layers"]] == [1.0, 1.0]


def test_older_files_are_compared_by_the_recorded_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of the option does not matter. Another value is rejected, and the error names it."""
    monkeypatch.setattr(formats, "FORMAT", 2)
    monkeypatch.setattr(formats, "ADDED", {2: {"augment": False}})
    stored = formats.complete(OLD, 1)
    recipes.expect_same(stored, OLD | {"augment": False}, "checkpoint 5")
    with pytest.raises(CheckpointIncompatible, match=r"network\.augment = true, not false"):
        recipes.expect_same(stored, OLD | {"augment": True}, "checkpoint 5")


@pytest.mark.parametrize("found", [0, -1, "1", None, True, 1.0])
def test_an_invalid_format_is_an_error(found: Any) -> None:
    with pytest.raises(ValueError, match="format is"):
        formats.expect_format(found, "x")


def test_options_that_only_affect_learning_may_differ() -> None:
    stored = recipe("fast").model_dump(mode="json")
    other = {"batch_size": 64, "warmup_samples": 0, "learning_rate": 0.5, "objective": {"alpha": 1.0}, "seed": 3}
    recipes.expect_same_network(stored, recipe("fast", **other).model_dump(mode="json"), "x.safetensors")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": 9}, "network.labels = 9, not 10"),
        ({"widths": [512, 16]}, r"network.layers\[1\].connection.units = 16, not 512"),
        ({"goodness": "sum"}, r'network.layers\[0\].goodness.kind = "sum", not "sum_squares"'),
        ({"widths": [512]}, r"network.layers \(how many\) = 1, not 2"),
        ({"preprocessing": "none"}, 'network.preprocessing.kind = "none", not "running_mean"'),
        ({"hardware": "analog"}, r'network.layers\[0\].hardware.kind = "analog", not "ideal"'),
        ({"decoder": "linear"}, r'network.layers\[0\].decoder.kind = "linear", not "none"'),
    ],
)
def test_weights_of_another_network_name_the_option_and_both_values(options: dict[str, Any], said: str) -> None:
    stored = recipe("fast").model_dump(mode="json")
    with pytest.raises(CheckpointIncompatible, match=said) as caught:
        recipes.expect_same_network(stored, recipe("fast", **options).model_dump(mode="json"), "x.safetensors")
    assert caught.value.message.startswith("the weights in x.safetensors are of another network")


def test_weights_of_other_rounds_or_without_fast_weights_are_of_another_network() -> None:
    *first, last = recipe("serial").model_dump()["layers"]
    remembering = [*first, last | {"fast_weights": {"kind": "hebbian"}}]
    for preset, options, said in (
        ("recurrent", {"recurrence": {"kind": "top_down", "rounds": 2}}, "network.recurrence.rounds = 2, not 1"),
        ("serial", {"layers": remembering}, r'network.layers\[1\].fast_weights.kind = "hebbian", not "none"'),
    ):
        stored = recipe(preset).model_dump(mode="json")
        with pytest.raises(CheckpointIncompatible, match=said):
            recipes.expect_same_network(stored, recipe(preset, **options).model_dump(mode="json"), "x.safetensors")
