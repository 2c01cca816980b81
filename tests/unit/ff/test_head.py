"""The softmax head: what it learns from, and that it learns."""

import pytest
import torch

from ffstream.data.embedded import load_embedded
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe
from ffstream.util.labels import UNLABELLED
from ffstream.util.option_errors import OptionError
from tests.battery import assert_equal
from tests.unit.ff import formulas
from tests.unit.ff.formulas import CONDITIONED, SMALL, UNSUPERVISED

READ = SMALL.change(readout="softmax")


def of_layers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("readout.")}


def test_the_layers_learn_the_same_with_and_without_a_readout() -> None:
    plain, read = Network(SMALL), Network(READ)
    for network in (plain, read):
        formulas.learn(network, 1, 8)
    assert_equal(of_layers(read.state_dict()), plain.state_dict())


def test_layers_with_image_negatives_do_not_depend_on_labels() -> None:
    one, other = Network(UNSUPERVISED), Network(UNSUPERVISED)
    images_BI = formulas.random_images(7, 16)
    for step in range(5):
        one.learn(images_BI, formulas.random_labels(7, 4, seed=step), step)
        other.learn(images_BI, torch.full((7,), UNLABELLED), step)
    assert_equal(of_layers(one.state_dict()), of_layers(other.state_dict()))


def test_samples_without_a_label_do_not_change_the_readout() -> None:
    network = Network(UNSUPERVISED.change(drift="none"))  # a drift test counts the samples of the stream
    formulas.learn(network, 1, 3)
    assert network.readout is not None
    before = network.readout.state_dict()
    network.learn(formulas.random_images(7, 16), torch.full((7,), UNLABELLED), 4)
    assert_equal(network.readout.state_dict(), before)
    network.learn(formulas.random_images(7, 16), formulas.random_labels(7, 4), 5, "sleep")
    assert_equal(network.readout.state_dict(), before)


def test_the_first_prediction_is_undecided() -> None:
    predicted = Network(READ).classifier().predict(formulas.random_images(5, 16))
    assert not predicted.goodness_BL.any()


def test_the_readout_predicts_from_its_ema_and_that_of_the_layers() -> None:
    network = Network(READ)
    formulas.learn(network, 1, 10)
    weights = network.weights()
    assert network.readout is not None
    assert not torch.equal(weights["readout.weight"], network.readout.parameters.views["weight"])
    carried, x_BI = [], formulas.random_images(5, 16)
    images_BI = x_BI.double() / 255 - weights["input.mean"].double()
    for index, (options, shape) in enumerate(zip(READ.layers, READ.input_shapes(), strict=True)):
        prefix = f"layers.{index}."
        own = formulas.leaves({n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)})
        images_BI = formulas.preactivation(options, own, images_BI, shape, READ.labels).relu().detach()
        carried.append(images_BI)
    own = formulas.leaves({name: weights[f"readout.{name}"] for name in ("weight", "bias")})
    want_BL = formulas.readout_logits(own, carried)
    got = network.classifier().predict(x_BI)
    assert torch.allclose(got.goodness_BL.double(), want_BL, atol=1e-5)
    assert torch.equal(got.labels_B, want_BL.argmax(1))


def test_its_schedule_counts_the_samples_that_have_a_label() -> None:
    network = Network(UNSUPERVISED)
    assert network.readout is not None
    formulas.learn(network, 1, 4)  # in each microbatch of 7, 4 have a label
    assert network.readout.parameters.samples == pytest.approx(16)
    assert network.layers[0].parameters.samples == 28


def test_layers_that_do_not_exist_cannot_be_read() -> None:
    with pytest.raises(OptionError, match=r"readout\.layers = \[0, 2\]: the layers are 0 to 1"):
        SMALL.change(readout={"kind": "softmax", "layers": [2, 0]})
    with pytest.raises(OptionError, match="must be label_free"):
        CONDITIONED.change(readout="softmax")


def test_a_layer_cannot_be_read_twice() -> None:
    with pytest.raises(OptionError, match=r"readout\.layers = \[0, 0, 1\]: name each layer once"):
        SMALL.change(readout={"kind": "softmax", "layers": [0, 1, 0]})


def test_with_a_readout_no_layer_needs_a_score() -> None:
    network = Network(SMALL.change(readout="softmax", score_weight=0))
    formulas.learn(network, 1, 2)
    images_BI = formulas.random_images(3, 16)
    classifier = network.classifier()
    assert torch.allclose(classifier.predict(images_BI).goodness_BL, classifier.logits(images_BI), atol=1e-6)


@pytest.mark.parametrize("unsupervised", [False, True])
def test_a_readout_learns_digits(unsupervised: bool) -> None:
    parts = {
        "negatives": "hybrid",
        "label_scheme": "none",
        "goodness": "mean_squares",
        "objective": {"kind": "threshold", "alpha": 60.0, "theta": 0.3},
    }
    options = recipe(
        "fast",
        widths=[200, 200],
        batch_size=64,
        learning_rate=2e-3,
        readout="softmax",
        **(parts if unsupervised else {}),
    )
    digits = load_embedded()
    images_BI = torch.from_numpy(digits.train.images).flatten(1)[:2048]
    labels_B = torch.from_numpy(digits.train.labels).long()[:2048]
    network = Network(options)
    for step, start in enumerate(range(0, 2048, 64)):
        network.learn(images_BI[start : start + 64], labels_B[start : start + 64], step)
    test = digits.test
    answers = network.classifier().predict(torch.from_numpy(test.images).flatten(1)).labels_B
    assert (answers.numpy() != test.labels).mean() < 0.2
