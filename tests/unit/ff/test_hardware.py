"""Devices that a layer learns through: what they do to its products, and what the learner finds out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ffstream.ff.hardware_model import AnalogDevice
from ffstream.ff.layer import Layer
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe
from ffstream.ff.recipe import Recipe
from tests import battery
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL

# Groups of silent units, as in the default preset.
GROUPS = recipe(
    "stream",
    activation="relu",
    image_shape=[4, 4],
    labels=4,
    widths=[40, 40],
    batch_size=32,
    warmup_samples=0,
    replay=0,
    replay_buffer=100,
)


def on_analog(base: Recipe, **options: Any) -> Recipe:
    return base.change(hardware={"kind": "analog", **options})


def device_of(layer: Layer) -> AnalogDevice:
    device = layer.formulas.hardware
    assert isinstance(device, AnalogDevice)
    return device


def test_a_device_without_faults_is_ideal_bit_for_bit() -> None:
    networks = [Network(SMALL), Network(on_analog(SMALL))]
    for network in networks:
        formulas.learn(network, 1, 5)
    want, got = (network.state_dict() for network in networks)
    battery.assert_equal({name: got[name] for name in want}, want)


def test_shares_of_faults_are_those_of_the_options() -> None:
    base = recipe("stream", widths=[500])
    options = {"mismatch": 0.2, "stuck": 0.1, "dead": 0.3}
    drawn = device_of(Network(on_analog(base, **options)).layers[0]).drawn
    is_stuck = drawn.weight_gain == 0
    assert float(is_stuck.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(drawn.weight_gain[~is_stuck].std()) == pytest.approx(0.2, abs=0.01)
    assert float(drawn.weight_offset[is_stuck].abs().max()) == pytest.approx(2.5 / 28, rel=0.01)
    assert not drawn.weight_offset[~is_stuck].any()
    assert float((drawn.unit_gain_F == 0).float().mean()) == pytest.approx(0.3, abs=0.06)
    others = [on_analog(base, seed=1, **options), on_analog(base, **options).change(seed=1)]
    equal = [torch.equal(device_of(Network(each).layers[0]).drawn.weight_gain, drawn.weight_gain) for each in others]
    assert equal == [False, True]


def test_dead_units_are_silent_and_activities_have_few_levels() -> None:
    options = on_analog(GROUPS, dead=0.5, bits=2, mismatch=0.2, noise=0.2)
    network = Network(options)
    formulas.learn(network, 1, 3)
    layer = network.layers[0]
    images_BI = formulas.random_images(32, options.inputs)
    h_NF = layer.forward(network.input.forward(images_BI, formulas.random_labels(32, 4), 4, "interleaved")).h_NF
    dead_F = device_of(layer).drawn.unit_gain_F == 0
    assert 0 < int(dead_F.sum()) < 40
    assert not h_NF[:, dead_F].any()
    assert len(h_NF.unique()) == 4


def test_a_snapshot_predicts_through_the_device_on_which_it_was_learned() -> None:
    """Also after the device has changed."""
    network = Network(on_analog(GROUPS, mismatch=0.5, changes_at=[96]))
    images_BI = formulas.random_images(16, 16)
    predicted = []
    for step in range(1, 5):
        formulas.learn(network, step, step)
        before = network.classifier()
        predicted.append((before, before.predict(images_BI).goodness_BL))
    gains = [device_of(layer).drawn.unit_gain_F for layer in network.layers]
    changed = Network(on_analog(GROUPS, mismatch=0.5, changes_at=[1]))
    formulas.learn(changed, 1, 1)
    assert all(
        torch.equal(gain_F, device_of(layer).drawn.unit_gain_F)
        for gain_F, layer in zip(gains, changed.layers, strict=True)
    )
    for classifier, goodness_BL in predicted:
        assert torch.equal(classifier.predict(images_BI).goodness_BL, goodness_BL)


def test_weights_take_their_device_along() -> None:
    network = Network(on_analog(GROUPS, mismatch=0.5, noise=0.1, bits=4, changes_at=[64]))
    formulas.learn(network, 1, 4)
    other = Network(network.recipe)
    other.load_weights(network.weights())
    images_BI = formulas.random_images(16, 16)
    want_BL = network.classifier().predict(images_BI).goodness_BL
    assert torch.equal(other.classifier().predict(images_BI).goodness_BL, want_BL)


def test_every_reading_has_other_noise_of_the_size_of_the_products() -> None:
    network = Network(on_analog(GROUPS, noise=0.3).change(learning_rate=0.0))
    images_BI, labels_B = formulas.random_images(32, 16), formulas.random_labels(32, 4)
    layer, read = network.layers[0], []
    for step in range(200):
        layer.forward(network.input.forward(images_BI, labels_B, step, "interleaved"))
        read.append(layer._result.z_NF.clone())
        layer.update()
    x_NI = network.input.forward(images_BI, labels_B, 200, "interleaved").h_NF
    normalized_NI = x_NI / x_NI.square().mean(1, keepdim=True).sqrt()
    products_NFI = normalized_NI[:, None] * layer.parameters.views["weight"]
    want_NF = 0.3 * products_NFI.square().sum(2).sqrt()
    assert torch.allclose(torch.stack(read).std(0), want_NF, rtol=0.25)
    assert torch.allclose(torch.stack(read).mean(0), products_NFI.sum(2), atol=0.15)


def test_negative_gains_are_found_from_responses() -> None:
    network = Network(on_analog(GROUPS, mismatch=0.7, noise=0.1, bits=4))
    formulas.learn(network, 1, 40)
    found = total = 0
    for layer in network.layers:
        device = device_of(layer)
        negative_F = device.drawn.unit_gain_F < 0
        assert int(negative_F.sum()) > 0
        found += int((negative_F == (device.signs() < 0)).sum())
        total += len(negative_F)
    assert found / total > 0.95


def test_an_abrupt_change_is_found_and_restarts_the_learning_rate() -> None:
    base = GROUPS.change(batch_size=64)
    changed = Network(on_analog(base, mismatch=0.5, dead=0.2, changes_at=[64 * 64]))
    formulas.learn(changed, 1, 64)
    before = [layer.parameters.samples for layer in changed.layers]
    formulas.learn(changed, 65, 68)
    for layer, samples in zip(changed.layers, before, strict=True):
        assert layer.figures().restarts == 1
        assert layer.parameters.samples < samples


def test_no_change_is_found_where_there_is_none() -> None:
    network = Network(on_analog(GROUPS.change(batch_size=64), mismatch=0.5, dead=0.2, noise=0.2, bits=3))
    for step in range(150):  # a few samples less now and then, as when the stream pauses
        rows = 64 if step % 3 else 20
        network.learn(formulas.random_images(rows, 16, seed=step), formulas.random_labels(rows, 4, seed=step), step)
    assert [layer.figures().restarts for layer in network.layers] == [0, 0]


def test_maps_on_analog_devices_pass_the_battery(tmp_path: Path) -> None:
    connections: list[dict[str, Any]] = [{"kind": "conv", "channels": 8, "kernel": 3, "pool": 2}, {"kind": "dense"}]
    connections[1]["units"] = 12
    hardware = {"kind": "analog", "mismatch": 0.3, "noise": 0.1, "stuck": 0.1, "bits": 8, "dead": 0.1}
    layers = [
        {
            "connection": each,
            "label_scheme": "groups",
            "goodness": {"kind": "mean_squares", "negative": True},
            "hardware": hardware,
        }
        for each in connections
    ]
    battery.check_layer(SMALL.change(image_shape=(8, 7), layers=layers, objective={"alpha": 0.7}), tmp_path)
