"""What people see of a network is what it computes: for every preset, against the formulas."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ffstream.ff import inspection
from ffstream.ff.classifier import Classifier
from ffstream.ff.member import below, layer_name
from ffstream.ff.network import Network
from ffstream.ff.presets import PRESETS
from ffstream.ff.randomness import generator_for
from ffstream.ff.recipe import Recipe
from tests.harness.crashing.presets import small_recipe
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL, UNSUPERVISED

B = 20
Rows = dict[int | None, Tensor]  # rows (B, F) by the label that they hold


def learned(recipe: Recipe) -> Classifier:
    """The classifier of a network that has learned a little."""
    network = formulas.random_network(recipe.change(ema_samples=0.0))
    formulas.learn(network, 1, 2)
    return network.classifier()


def activities(classifier: Classifier, x_BI: Tensor) -> Iterator[tuple[Rows, Tensor]]:
    """For each layer: its activities by label, and the goodness of each label (B, L), computed label by label."""
    recipe = classifier.recipe
    if recipe.recurrence.is_recurrent:
        all_own = [formulas.leaves(below(layer_name(at), classifier.weights)) for at in range(len(recipe.layers))]
        settled = formulas.settled(recipe, all_own, x_BI), formulas.settled_goodness(recipe, all_own, x_BI)
        for rows, G_BL in zip(*settled, strict=True):
            yield {label: h_BF.detach() for label, h_BF in rows.items()}, G_BL.detach()
        return
    given: Rows = dict.fromkeys(range(recipe.labels), x_BI.double())
    for index, shape in enumerate(recipe.input_shapes()):
        options, own = recipe.layers[index], formulas.leaves(below(layer_name(index), classifier.weights))
        found: Rows = {}
        for label, x in given.items():
            assert label is not None
            labels_B = torch.full((len(x),), label)
            z_BF = formulas.with_label(options, own, x, labels_B, shape, recipe.labels).detach()
            found[label] = formulas.activation(options.activation, z_BF)
        columns = [formulas.by_label(options, own, x, shape, recipe.labels)[:, label] for label, x in given.items()]
        if options.label_scheme.kind == "none":
            columns = [formulas.goodness(options.goodness, h_BF) for h_BF in found.values()]
        yield found, torch.stack(columns, 1).detach()
        if recipe.activities == "label_conditioned":
            given = found
        else:
            z_BF = formulas.preactivation(options, own, given[0], shape, recipe.labels).detach()
            given = dict.fromkeys(given, formulas.activation(options.activation, z_BF))


def hybrids(recipe: Recipe, x_BI: Tensor) -> Tensor:
    shape = recipe.preprocessing.output_shape(recipe.image_shape)
    noise_BHW = torch.rand((len(x_BI), *shape[:2]), generator=generator_for("inspection", recipe.seed, 0))
    blurs = dict(recipe.layers[0].negatives)["blurs"]
    return formulas.hybrid(x_BI.view(len(x_BI), *shape[:2], -1), noise_BHW, blurs).flatten(1)


def close(got: Tensor, want: Tensor) -> bool:
    return torch.allclose(got.double(), want.double(), rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("preset", PRESETS)
def test_goodness_is_compared_as_the_layer_compares_it(preset: str) -> None:
    recipe = small_recipe(preset)
    classifier = learned(recipe)
    images_BI, labels_B = formulas.random_images(B, recipe.inputs), formulas.random_labels(B, recipe.labels)
    got = inspection.compare(classifier, images_BI, labels_B)
    x_BI = classifier.preprocess(images_BI)
    wanted = list(activities(classifier, x_BI.clone()))
    negative = list(activities(classifier, hybrids(recipe, x_BI))) if recipe.image_negatives else wanted
    assert len(got) == len(recipe.layers)
    for (right_B, wrong_B), (_, G_BL), (_, negative_BL) in zip(got, wanted, negative, strict=True):
        if recipe.image_negatives:
            assert close(right_B, G_BL[:, 0])
            assert close(wrong_B, negative_BL[:, 0])
            assert not close(right_B, wrong_B)
        else:
            hardest_B = formulas.hardest(G_BL, labels_B)
            assert close(right_B, G_BL.gather(1, labels_B[:, None])[:, 0])
            assert close(wrong_B, G_BL.gather(1, hardest_B[:, None])[:, 0])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_activities_are_those_under_each_label(preset: str) -> None:
    recipe = small_recipe(preset)
    classifier = learned(recipe)
    other_I, image_I = formulas.random_images(2, recipe.inputs)
    got = inspection.show(classifier, image_I, 3, 5, other_I)
    x_BI = classifier.preprocess(torch.stack((other_I, image_I)))
    wanted = list(activities(classifier, x_BI.clone()))
    negative = list(activities(classifier, hybrids(recipe, x_BI))) if recipe.image_negatives else wanted
    for index, (shown, (h, G_BL), (negative_h, negative_BL)) in enumerate(zip(got, wanted, negative, strict=True)):
        assert close(shown.right_F, h[3][1])
        assert close(shown.wrong_F, negative_h[5][1])
        assert shown.goodness_right == pytest.approx(float(G_BL[1, 3]), rel=1e-3, abs=1e-5)
        assert shown.goodness_wrong == pytest.approx(float(negative_BL[1, 5]), rel=1e-3, abs=1e-5)
        is_same = recipe.compares[index] == "groups"
        assert torch.equal(shown.right_F, shown.wrong_F) == is_same, f"layer {index}"


@pytest.mark.parametrize("recipe", [SMALL, UNSUPERVISED], ids=["labels", "images"])
def test_many_images_are_compared_in_parts(recipe: Recipe) -> None:
    classifier = learned(recipe)
    images_BI, labels_B = formulas.random_images(65, recipe.inputs), formulas.random_labels(65, recipe.labels)
    whole = inspection.compare(classifier, images_BI, labels_B)
    first = inspection.compare(classifier, images_BI[:33], labels_B[:33])
    rest = inspection.compare(classifier, images_BI[33:], labels_B[33:])
    for layer, *parts in zip(whole, first, rest, strict=True):
        for side, *sides in zip(layer, *parts, strict=True):
            assert close(side, torch.cat(sides)), "no part has a single image"


def test_a_negative_image_is_made_of_the_pixels_of_two_images() -> None:
    other_I, image_I = torch.zeros(16, dtype=torch.uint8), torch.full((16,), 255, dtype=torch.uint8)
    made_I = inspection.negative_image(Network(UNSUPERVISED).classifier(), image_I, other_I)
    assert made_I is not None
    assert set(made_I.tolist()) == {0.0, 1.0}
    whitened = UNSUPERVISED.change(preprocessing={"kind": "whitening", "images": 8})
    classifier = Network(whitened).classifier()
    assert inspection.negative_image(classifier, image_I, other_I) is None, "its rows are no images"


def test_a_network_that_dreams_shows_dreams_as_its_negatives() -> None:
    recipe = UNSUPERVISED.change(negatives={"kind": "dreams", "blurs": 1}, decoder="linear")
    network = Network(recipe.change(ema_samples=0.0))
    formulas.learn(network, 1, 6)
    classifier, images_BI = network.classifier(), formulas.random_images(B, recipe.inputs)
    decoding = network.layers[0].decoding
    assert decoding is not None
    dreamt_BI = decoding.dream(B, 0).pixels_BI
    compared = inspection.compare(classifier, images_BI, formulas.random_labels(B, recipe.labels))
    for layer, G_BL in zip(compared, classifier.goodness(dreamt_BI), strict=True):
        assert close(layer.wrong_B, G_BL[:, 0])
    made_I = inspection.negative_image(classifier, images_BI[0], images_BI[1])
    assert made_I is not None
    assert close(made_I, decoding.dream(2, 0).pixels_BI[1])


def test_parts_of_the_logits_add_up_to_the_score() -> None:
    recipe = UNSUPERVISED.change(widths=[8, 12, 6], readout={"kind": "softmax", "layers": [0, 2]})
    classifier = learned(recipe)
    images_BI = formulas.random_images(B, recipe.inputs)
    parts = classifier.logit_parts(images_BI)
    assert sorted(parts) == [0, 2]
    assert classifier.readout_bias is not None
    assert close(sum(parts.values(), classifier.readout_bias), classifier.predict(images_BI).goodness_BL)


# --- filters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_filters_of_the_first_layer_are_what_changes_its_preactivations(preset: str) -> None:
    recipe = small_recipe(preset)
    classifier = learned(recipe)
    fields_NHWC = inspection.filters(classifier, 0, 5)
    norms = fields_NHWC.flatten(1).norm(dim=1)
    assert 0 < len(fields_NHWC) <= 5
    if recipe.preprocessing.kind != "whitening":  # there the norm is that of weights on whitened maps
        assert torch.equal(norms, norms.sort(descending=True).values)
    kind, (height, width, *channels) = recipe.layers[0].connection.kind, recipe.image_shape
    assert fields_NHWC.shape[3] == (channels or [1])[0]
    options = dict(recipe.layers[0].connection)
    if kind == "dense":
        assert fields_NHWC.shape[1:3] == (height, width)
    else:
        patch = dict(recipe.preprocessing).get("patch", 1)
        assert fields_NHWC.shape[1:3] == (options["kernel"] + patch - 1,) * 2


def test_a_filter_shows_no_weight_of_the_pixels_that_the_label_replaces() -> None:
    classifier = learned(SMALL)
    fields_NHWC = inspection.filters(classifier, 0, 8)
    assert len(fields_NHWC) == 8
    weight_FI = classifier.weights["layers.0.weight"]
    by_norm = sorted(weight_FI[:, 4:].tolist(), key=lambda row: -sum(w * w for w in row))
    assert torch.equal(fields_NHWC.flatten(1), torch.cat((torch.zeros(8, 4), torch.tensor(by_norm)), 1))


def test_convolutions_above_the_first_layer_have_filters_and_dense_layers_have_not() -> None:
    classifier = learned(small_recipe("conv"))
    assert inspection.filters(classifier, 1, 64).shape == (4, 3, 3, 4)
    with pytest.raises(ValueError, match="each unit of layer 2 is connected to all units of the layer below"):
        inspection.filters(classifier, 2, 64)


def test_a_vector_of_inputs_is_a_row() -> None:
    assert inspection.filters(learned(SMALL.change(image_shape=[15])), 0, 2).shape == (2, 1, 15, 1)


def test_inspecting_changes_nothing() -> None:
    classifier = learned(UNSUPERVISED)
    before = {name: value.clone() for name, value in classifier.weights.items()}
    images_BI, labels_B = formulas.random_images(B, 16), formulas.random_labels(B, 4)
    kept = images_BI.clone()
    inspection.compare(classifier, images_BI, labels_B)
    inspection.show(classifier, images_BI[0], 1, 2, images_BI[1])
    inspection.filters(classifier, 0, 4)
    assert torch.equal(images_BI, kept)
    assert all(torch.equal(classifier.weights[name], value) for name, value in before.items())


def test_layers_that_remember_nothing_show_no_dreams() -> None:
    recipe = SMALL.change(decoder="linear")
    weights = learned(recipe).weights
    assert len(inspection.dreams(Classifier(recipe, weights), 4, 2)) == len(recipe.layers) == 2
    weights["layers.1.decoder.memory.added"].zero_()
    assert len(inspection.dreams(Classifier(recipe, weights), 4, 2)) == 1
