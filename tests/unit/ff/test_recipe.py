"""Recipes as users write them: presets, options for all layers and for one, parts by name, and errors."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from ffstream.ff.activation import Activation
from ffstream.ff.goodness import Goodness
from ffstream.ff.part import members, register
from ffstream.ff.presets import PRESETS, recipe
from ffstream.ff.recipe import Recipe
from ffstream.util.option_errors import OptionError


def test_recipes_do_not_import_torch() -> None:
    program = "import sys, ffstream.ff.presets as p; p.recipe('fast'); assert 'torch' not in sys.modules; print('ok')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip_through_json(name: str) -> None:
    preset = recipe(name)
    assert Recipe.model_validate(preset.model_dump()) == preset
    assert Recipe.model_validate_json(preset.model_dump_json()) == preset
    assert preset.change() == preset


def test_options_for_all_layers_apply_to_each_layer() -> None:
    written = recipe("fast", learning_rate=1e-3, goodness="mean_squares", objective={"alpha": 9.0})
    assert [layer.learning_rate for layer in written.layers] == [1e-3, 1e-3]
    assert {layer.goodness.kind for layer in written.layers} == {"mean_squares"}
    assert [dict(layer.objective)["alpha"] for layer in written.layers] == [9.0, 9.0]
    assert written.layers[0].objective.kind == "softmax"
    assert written.layers[0].label_scheme.kind == "pixels", "what is not set stays as in the preset"


def test_given_layers_replace_those_of_the_preset_and_inherit_options_for_all_layers() -> None:
    layers = [
        {"connection": {"kind": "dense", "units": 30}, "label_scheme": "groups", "learning_rate": 0.5},
        {"connection": {"kind": "dense", "units": 20}, "activation": {"kind": "leaky_relu", "slope": 0.2}},
    ]
    written = recipe("fast", layers=layers, activation="gelu")
    assert [dict(layer.connection)["units"] for layer in written.layers] == [30, 20]
    assert [layer.learning_rate for layer in written.layers] == [0.5, 5e-3]
    assert [layer.activation.kind for layer in written.layers] == ["gelu", "leaky_relu"]
    assert [layer.label_scheme.kind for layer in written.layers] == ["groups", "vectors"]


def test_widths_are_a_shorthand_for_dense_layers() -> None:
    written = recipe("overlay", widths=[100, 50, 20])
    assert [dict(layer.connection)["units"] for layer in written.layers] == [100, 50, 20]
    assert [layer.label_scheme.kind for layer in written.layers] == ["pixels", "none", "none"]
    one = recipe("fast", widths=[100])
    assert [layer.label_scheme.kind for layer in one.change(widths=[9, 8, 7]).layers] == [
        "pixels",
        "vectors",
        "vectors",
    ]


def test_options_of_one_kind_do_not_apply_to_another() -> None:
    base = recipe("stream", objective={"kind": "threshold", "theta": 4.0, "alpha": 2.0})
    assert dict(base.change(objective={"alpha": 3.0}).layers[0].objective) == {
        "kind": "threshold",
        "alpha": 3.0,
        "theta": 4.0,
    }
    assert dict(base.change(objective="paired").layers[0].objective)["alpha"] == 1.0


CONDITIONED = {"activities": "label_conditioned", "objective": "paired", "connection": {"units": 20}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"objective": "softmux"}, 'objective.kind = "softmux": expected one of evoked, paired, softmax, threshold'),
    ({"goodness": "cubes"}, 'goodness.kind = "cubes": expected one of mean_squares, sum, sum_squares'),
    ({"goodness": 3}, "goodness = 3: expected one of mean_squares, sum, sum_squares, or a table with a kind"),
    ({"goodness": {"negative": 3}}, "goodness.negative = 3: expected true or false"),
    ({"objective": {"kind": "paired", "theta": 1.0}}, "objective.theta: there is no such option"),
    ({"connection": {"units": 0}}, "connection.units = 0: expected a whole number, at least 1"),
    ({"connection": {"kind": "conv", "padding": -1}}, "connection.padding = -1: expected a whole number, at least 0"),
    (
        {"image_shape": [784], "layers": [{"connection": "conv"}]},
        r"layers[0].connection: needs a map [height, width, channels], but its input has the shape [784]",
    ),
    (
        {"layers": [{"connection": {"kind": "local", "kernel": 29}}]},
        "layers[0].connection: kernel = 29, stride = 1, padding = 0 and pool = 1 leave nothing of an input",
    ),
    (
        {"layers": [{"connection": "conv", "label_scheme": "pixels"}]},
        'layers[0].label_scheme = "pixels": the connection must be dense',
    ),
    ({"widths": 5}, "widths = 5: expected a list of whole numbers from 1"),
    ({"widths": []}, "widths = []: expected a list of whole numbers from 1"),
    ({"widths": [0]}, "widths = [0]: expected a list of whole numbers from 1"),
    ({"widths": [5], "layers": []}, "widths = [5]: cannot be given beside network.layers"),
    ({"layers": 3}, "layers = 3: expected one table [[network.layers]] for each layer"),
    ({"layers": [{"learning_rate": -1}]}, "layers[0].learning_rate = -1: expected a number, at least 0"),
    ({"label_scheme": "pixels"}, 'label_scheme = "pixels": only the first layer sees pixels'),
    (
        {"label_scheme": "groups", "widths": [9]},
        'label_scheme = "groups": 9 units cannot be divided among 10 labels',
    ),
    ({"label_scheme": "none"}, "the layer would learn nothing about labels"),
    (
        {"labels": 1000, "label_scheme": "pixels"},
        'label_scheme = "pixels": 1000 labels need 1000 inputs, but the image has 784',
    ),
    ({"activities": "label_conditioned"}, "network.activities must be label_free"),
    ({"image_shape": []}, "image_shape = []"),
    ({"image_shape": [0, 28]}, "image_shape = [0, 28]: each size must be at least 1"),
    ({"warmup_samples": 100}, "warmup_samples = 100: expected a multiple of network.batch_size = 128"),
    ({"warmup_batch_size": 48}, "warmup_batch_size = 48: expected a divisor of network.batch_size = 128"),
    ({"replay_buffer": 100}, "replay_buffer = 100: must be at least network.batch_size = 128"),
    ({"learning_rate": -1.0}, "learning_rate = -1.0: expected a number, at least 0"),
    ({"learning_rate": float("nan")}, "learning_rate = nan: expected a number"),
    ({"parts": ["no.such.module"]}, 'parts = ["no.such.module"]: cannot import no.such.module'),
    ({"widths": [5], "connection": {"units": 3}}, "widths = [5]: cannot be given beside network.connection"),
    ({"batch_size": True}, "batch_size = true: expected a whole number"),
    ({"objective": {"alpha": True}}, "objective.alpha = true: expected a number"),
    ({"layers": [{"learning_rate": True}]}, "layers[0].learning_rate = true: expected a number"),
    ({"learning_rate": 1e-3, "layers": [{"learning_rate": -1}]}, "layers[0].learning_rate = -1: expected a number"),
    ({"replay_jitter": 28}, "replay_jitter = 28: must be smaller than the image: network.image_shape = [28, 28]"),
    ({"goodness": {"areas": 0}}, "goodness.areas = 0: expected a whole number, at least 1"),
    ({"goodness": {"areas": 2}}, "goodness.areas = 2: the layer has no map to divide"),
    (
        {"layers": [{"connection": "conv", "goodness": {"areas": 3}}]},
        "layers[0].goodness.areas = 3: the layer's map of 26×26 places cannot be divided into equal areas",
    ),
    ({"image_shape": [12]}, "replay_jitter = 1: network.image_shape = [12] has no rows and columns; set this to 0"),
    (
        {"image_shape": [12], "replay": 0, "replay_flip": True},
        "replay_flip = true: only images [height, width] can be",
    ),
    ({"score_weight": 0}, "score_weight = 0: at least one layer needs another score_weight than 0"),
    ({**CONDITIONED, "layers": [{"label_scheme": "groups"}]}, "network.activities must be label_free"),
    ({**CONDITIONED, "layers": [{"label_scheme": "none"}]}, "the layer would learn nothing about labels"),
    ({"negatives": "random"}, 'negatives = "random": has no effect, because objective = "softmax"'),
    ({"layers": [{"objective": "paired"}, {"negatives": "random"}]}, 'layers[1].negatives = "random": has no effect'),
    ({"hardware": "broken"}, 'hardware.kind = "broken": expected one of analog, ideal'),
    ({"hardware": {"kind": "analog", "bits": 17}}, "hardware.bits = 17: expected a whole number from 0 to 16"),
    ({"hardware": {"kind": "analog", "stuck": 2}}, "hardware.stuck = 2: expected a number from 0 to 1"),
    ({"hardware": {"kind": "analog", "changes_at": [9, 0]}}, "hardware.changes_at = [9, 0]: each number of samples"),
    ({"preset": "best"}, 'preset = "best": expected one of '),
]


@pytest.mark.parametrize(("written", "said"), WRONG)
def test_invalid_options_are_rejected_by_name(written: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        recipe({"preset": "stream", **written})


def test_microbatches_lie_on_a_fixed_grid() -> None:
    grid = recipe("stream", batch_size=8, warmup_batch_size=4, warmup_samples=16)
    assert [grid.batch_end(seq) for seq in (0, 3, 4, 15, 16, 23, 24)] == [4, 4, 8, 16, 24, 24, 32]
    assert [grid.whole_up_to(seq) for seq in (3, 4, 16, 23, 24)] == [0, 4, 16, 16, 24]


def test_every_family_has_members() -> None:
    assert {"conv", "dense", "local"} <= members("connection").keys()
    assert {"softmax", "paired", "threshold"} <= members("objective").keys()


def test_an_existing_recipe_does_not_accept_a_preset() -> None:
    with pytest.raises(OptionError, match='preset = "overlay": cannot change an existing recipe'):
        recipe("stream").change(preset="overlay")


@pytest.mark.parametrize("content", ["def", "1 / 0", "import no_such_module"])
def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "bad_parts.py").write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match=r'parts = \["bad_parts"\]: cannot import bad_parts') as caught:
        recipe(parts=["bad_parts"])
    assert caught.value.hint
    sys.modules.pop("bad_parts", None)


def test_an_incomplete_part_cannot_be_registered() -> None:
    class Half(Goodness):
        kind: Literal["half"] = "half"

        def _value(self, h: Any) -> Any:
            return h

    with pytest.raises(ValueError, match="Half must define _gradient"):
        register(Half)
    assert "half" not in members("goodness")


def test_two_parts_cannot_have_the_same_name() -> None:
    class Relu(Activation):
        kind: Literal["relu"] = "relu"

        def value(self, z: Any) -> Any:
            return z

        def gradient(self, z: Any) -> Any:
            return z

    with pytest.raises(ValueError, match=r"activation .relu. is already registered by ffstream\."):
        register(Relu)


def test_a_recipe_says_what_each_layer_compares() -> None:
    assert recipe("stream").compares == ("groups", "groups")
    assert recipe("conv").compares == ("labels", "labels", "labels")
    assert recipe("overlay").compares == ("labels", "labels"), "the second layer's rows hold a label"
    assert recipe("unsupervised").compares == ("images", "images", "images")
    mixed = recipe("fast", layers=[{"connection": {"kind": "dense", "units": 20}, "label_scheme": "groups"}, {}])
    assert mixed.compares == ("groups", "labels")


@pytest.mark.parametrize(("preset", "threshold"), [("overlay", 1.0), ("unsupervised", 0.3), ("stream", None)])
def test_an_objective_knows_its_threshold_if_that_is_an_option(preset: str, threshold: float | None) -> None:
    assert {layer.objective.threshold for layer in recipe(preset).layers} == {threshold}
