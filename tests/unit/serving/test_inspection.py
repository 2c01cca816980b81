"""Answers about a network, for every preset: what is shown is what the network computes."""

import io
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ffstream.errors import BadSize, LabelOutOfRange, NoSamples, NotShown
from ffstream.ff import inspection as ff_inspection
from ffstream.ff.presets import PRESETS
from ffstream.ff.recipe import Recipe
from ffstream.metrics import Metrics
from ffstream.serving.cached import Cached
from ffstream.serving.inspection import BINS, Inspector
from ffstream.serving.prequential import Prequential
from ffstream.serving.reduction import VALUES_MAX
from ffstream.serving.snapshot import Snapshot
from ffstream.util.error_record import ErrorRecord
from tests.harness.crashing.presets import small_recipe
from tests.unit.ff import formulas
from tests.unit.serving.answers import DEADLINE_S, begun_with

THRESHOLD = 0.25  # the running one of layers that keep it


class Looked:
    """An inspector of a network that has learned a little, and an evaluation of it."""

    def __init__(self, recipe: Recipe) -> None:
        network = formulas.random_network(recipe.change(ema_samples=0.0))
        formulas.learn(network, 1, 2)
        self.recipe, self.classifier = recipe, network.classifier()
        first = Snapshot(self.classifier, 7, 70)
        self.prequential = Prequential(
            Metrics(), first, fraction=1.0, queue_depth=64, record=ErrorRecord(), on_failure=self._failed
        )
        self.prequential.start()
        self.inspector = Inspector(recipe, begun_with(first), lambda: self.prequential, lambda index: THRESHOLD)

    def _failed(self, error: Exception) -> None:
        raise AssertionError from error

    def evaluate(self, count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluates random samples, as before learning them. Returns those with a label."""
        images_BI = formulas.random_images(count, self.recipe.inputs)
        labels_B = formulas.labels_for(self.recipe, count)
        self.prequential.observe(images_BI, labels_B, 7, seq=100 + count)
        done = threading.Event()
        self.prequential.mark(lambda part: done.set())
        assert done.wait(DEADLINE_S)
        known_B = labels_B < self.recipe.labels
        return images_BI[known_B], labels_B[known_B]

    def image(self) -> list[int]:
        values: list[int] = formulas.random_images(1, self.recipe.inputs, seed=8)[0].tolist()
        return values


Look = Callable[[Recipe], Looked]


@pytest.fixture
def look() -> Iterator[Look]:
    looked: list[Looked] = []

    def look(recipe: Recipe) -> Looked:
        looked.append(Looked(recipe))
        return looked[-1]

    yield look
    assert all(each.prequential.stop(DEADLINE_S) for each in looked)


def png(text: str) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(b64decode(text, validate=True))))


# --- every preset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_scores_are_those_of_a_prediction_and_layers_add_up_to_them(preset: str, look: Look) -> None:
    looked = look(small_recipe(preset))
    answer = looked.inspector.scores(looked.image())
    predicted = looked.classifier.predict(torch.tensor([looked.image()], dtype=torch.uint8))
    assert np.array_equal(np.float32(answer["scores"]), predicted.goodness_BL[0].numpy()), "to the last bit"
    assert answer["label"] == int(predicted.labels_B[0])
    assert (answer["version"], answer["seq"]) == (7, 70)
    total = np.zeros(looked.recipe.labels) if answer["bias"] is None else np.array(answer["bias"])
    for weight, layer in zip(answer["score_weights"], answer["layers"], strict=True):
        assert len(layer) == looked.recipe.labels
        total = total + weight * np.array(layer)
    assert np.allclose(total, answer["scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_histogram_has_each_recent_sample_on_both_sides(preset: str, look: Look) -> None:
    looked = look(small_recipe(preset))
    images_BI, labels_B = looked.evaluate()
    answer = looked.inspector.goodness()
    assert (answer["samples"], answer["seq"]) == (len(labels_B), 70)
    compared = ff_inspection.compare(looked.classifier, images_BI, labels_B)
    for index, (layer, sides) in enumerate(zip(answer["layers"], compared, strict=True)):
        assert layer["index"] == index
        assert layer["compares"] == looked.recipe.compares[index]
        edges = np.array(layer["edges"])
        assert len(edges) == BINS + 1
        for counts, values_B in zip((layer["right"], layer["wrong"]), sides, strict=True):
            assert sum(counts) == len(labels_B)
            mean = float(np.average((edges[1:] + edges[:-1]) / 2, weights=counts))
            assert mean == pytest.approx(float(values_B.mean()), abs=1.01 * (edges[1] - edges[0]))
        known = looked.recipe.layers[index].objective.threshold
        assert layer["threshold"] == (THRESHOLD if known is None else known)
        assert layer["text"].endswith(".")


@pytest.mark.parametrize("preset", PRESETS)
def test_activities_tell_both_sides_of_each_layer(preset: str, look: Look) -> None:
    looked = look(small_recipe(preset))
    looked.evaluate()
    answer = looked.inspector.activities(looked.image(), 3, 5)
    assert (answer["label"], answer["wrong"], answer["version"]) == (3, 5, 7)
    assert (answer["negative"] is not None) == (looked.recipe.image_negatives is not None)
    for index, layer in enumerate(answer["layers"]):
        assert len(layer["right"]) == len(layer["wrong"]) == np.prod(layer["shape"]) <= VALUES_MAX
        assert layer["units"] == list(list(looked.recipe.output_shapes())[index])
        if layer["compares"] == "groups":
            assert layer["right"] == layer["wrong"]
            (first, last), (wrong_first, wrong_last) = layer["groups"]
            groups = looked.recipe.layers[index].label_scheme
            assert (first, last) == groups.group(3, 10, tuple(layer["units"]))
            assert (wrong_first, wrong_last) == groups.group(5, 10, tuple(layer["units"]))
            mean_squares = -np.square(np.array(layer["right"])[first : last + 1]).mean()
            assert layer["goodness_right"] == pytest.approx(mean_squares, rel=1e-3)
        else:
            assert layer["right"] != layer["wrong"]
            assert layer["groups"] is None
        assert layer["goodness_right"] != layer["goodness_wrong"]
    again = looked.inspector.activities(looked.image(), 3, 5)
    assert again == answer, "the same question has the same answer"


@pytest.mark.parametrize("preset", PRESETS)
def test_filters_of_the_first_layer_are_images(preset: str, look: Look) -> None:
    looked = look(small_recipe(preset))
    answer = looked.inspector.filters(0, 6)
    height, width, channels = answer["shape"]
    assert 0 < len(answer["images"]) == len(answer["scale"]) <= 6
    for image, scale in zip(answer["images"], answer["scale"], strict=True):
        pixels = png(image)
        assert pixels.shape == ((height, width) if channels == 1 else (height, width, 3))
        assert scale > 0
        assert pixels.min() == 1 or pixels.max() == 255


@pytest.mark.parametrize("base", [formulas.EVOKED, formulas.UNSUPERVISED], ids=["labels", "no labels"])
def test_dreams_of_each_layer_are_images_of_each_label(base: Recipe, look: Look) -> None:
    inspector = look(base.change(decoder="linear")).inspector
    answer = inspector.dreams(3)
    labels = None if base.learns_unlabelled else [0, 1, 2, 3]
    assert answer["labels"] == labels
    assert answer == inspector.dreams(3), "the same snapshot dreams the same"
    images = [[png(each) for each in of_label] for layer in answer["layers"] for of_label in layer]
    assert len(images) == 2 * len(labels or [0])
    assert {each.shape for of_label in images for each in of_label} == {(4, 4)}
    assert all(len(of_label) == 3 and np.ptp(np.stack(of_label)) > 0 for of_label in images)


def test_a_network_with_very_many_labels_shows_the_dreams_of_some(look: Look) -> None:
    answer = look(formulas.EVOKED.change(labels=1000, label_scheme="vectors", decoder="linear")).inspector.dreams(1)
    assert answer["labels"] == list(range(100))
    assert [len(layer) for layer in answer["layers"]] == [100, 100]


def test_a_network_without_decoders_does_not_dream(look: Look) -> None:
    with pytest.raises(NotShown, match="the first layer of this network has no decoder"):
        look(formulas.SMALL).inspector.dreams(3)
    above_it = [{"decoder": "linear"}, {}]
    shown = look(
        formulas.EVOKED.change(
            layers=[
                {**layer, **own} for layer, own in zip(formulas.EVOKED.model_dump()["layers"], above_it, strict=True)
            ]
        )
    ).inspector.dreams(1)
    assert len(shown["layers"]) == 1


# --- details -----------------------------------------------------------------------------------------------------


def test_the_labels_of_activities_are_the_prediction_and_the_strongest_other_unless_they_are_given(
    look: Look,
) -> None:
    looked = look(formulas.SMALL)
    scores = looked.inspector.scores(looked.image())["scores"]
    best, second = sorted(range(4), key=scores.__getitem__)[:-3:-1]
    answer = looked.inspector.activities(looked.image())
    assert (answer["label"], answer["wrong"]) == (best, second)
    assert looked.inspector.activities(looked.image(), best, best) == answer
    answer = looked.inspector.activities(looked.image(), second)
    assert (answer["label"], answer["wrong"]) == (second, best)


def test_an_unsupervised_network_needs_another_image_to_show_activities(look: Look) -> None:
    looked = look(formulas.UNSUPERVISED)
    with pytest.raises(NoSamples, match="no sample was evaluated"):
        looked.inspector.activities(looked.image())
    images_BI, labels_B = looked.evaluate()
    answer = looked.inspector.activities(images_BI[-1].tolist(), int(labels_B[-1]))
    other_I = images_BI[labels_B != labels_B[-1]][-1]
    pixels = zip(answer["negative"], images_BI[-1].tolist(), other_I.tolist(), strict=True)
    assert all(made in (own, other) for made, own, other in pixels), "a blend with the latest sample of another label"


def test_without_samples_there_is_nothing_to_compare(look: Look) -> None:
    inspector = look(formulas.SMALL).inspector
    for ask in (inspector.goodness, lambda: inspector.sample(None), lambda: inspector.sample(2)):
        with pytest.raises(NoSamples) as caught:
            ask()
        assert caught.value.hint
    empty = inspector.mistakes()
    assert (empty["window_samples"], empty["latest"]) == (0, [])
    assert [each["error"] for each in empty["per_class"]] == [None] * 4, "unknown, not 0"


def test_a_sample_is_the_latest_with_its_label(look: Look) -> None:
    looked = look(formulas.SMALL)
    images_BI, labels_B = looked.evaluate()
    for label in set(labels_B.tolist()):
        want_I = images_BI[labels_B == label][-1]
        assert looked.inspector.sample(label) == {"image": want_I.tolist(), "label": label}
    assert looked.inspector.sample(None)["image"] == images_BI[-1].tolist()


def test_mistakes_are_shown_as_images_with_their_scores(look: Look) -> None:
    looked = look(formulas.SMALL)
    images_BI, labels_B = looked.evaluate(30)
    predicted = looked.classifier.predict(images_BI)
    answer = looked.inspector.mistakes()
    matrix = np.array(answer["confusion"])
    assert answer["window_samples"] == matrix.sum() == 30
    assert answer["classes"] == [0, 1, 2, 3]
    wrong = (predicted.labels_B != labels_B).nonzero()[:, 0].tolist()
    assert wrong, "there must be something to see"
    assert answer["window_wrong"] == len(wrong)
    for each in answer["per_class"]:
        row = matrix[each["label"]]
        assert (each["samples"], each["wrong"]) == (row.sum(), row.sum() - row[each["label"]])
        assert each["error"] == each["wrong"] / each["samples"]
    for each, at in zip(answer["latest"], reversed(wrong), strict=False):
        assert each["seq"] == 101 + at
        assert (each["label"], each["predicted"]) == (int(labels_B[at]), int(predicted.labels_B[at]))
        assert each["scores"] == pytest.approx(predicted.goodness_BL[at].tolist())
        assert png(each["image"]).ravel().tolist() == images_BI[at].tolist()


def test_all_mistakes_are_counted_though_only_the_worst_classes_are_listed(look: Look) -> None:
    looked = look(formulas.SMALL.change(labels=200, label_scheme="vectors"))
    images_BI, labels_B = looked.evaluate(900)
    answer = looked.inspector.mistakes()
    assert answer["window_wrong"] == int((looked.classifier.predict(images_BI).labels_B != labels_B).sum())
    assert answer["confusion"] is None
    assert len(answer["per_class"]) == 100
    assert sum(each["wrong"] for each in answer["per_class"]) < answer["window_wrong"]


def test_weights_that_are_not_finite_have_an_empty_histogram(look: Look) -> None:
    looked = look(formulas.SMALL)
    looked.evaluate()
    looked.classifier.weights["layers.1.weight"].fill_(torch.nan)
    first, second = looked.inspector.goodness()["layers"]
    assert sum(first["right"]) == sum(first["wrong"]) == 24
    assert sum(second["right"]) == sum(second["wrong"]) == 0
    assert np.isfinite(second["edges"]).all()


def test_a_layer_without_an_area_has_no_filters(look: Look) -> None:
    inspector = look(formulas.SMALL).inspector
    with pytest.raises(NotShown, match="connected to all units of the layer below"):
        inspector.filters(1, 8)
    with pytest.raises(NotShown, match="there is no layer 2") as caught:
        inspector.filters(2, 8)
    assert caught.value.hint == "the layers are 0 to 1"
    assert png(inspector.filters(0, 1)["images"][0]).shape == (4, 4)


def test_flat_images_have_filters_that_look_like_them(look: Look) -> None:
    assert look(formulas.SMALL.change(image_shape=[16])).inspector.filters(0, 2)["shape"] == [4, 4, 1]
    assert look(formulas.SMALL.change(image_shape=[15])).inspector.filters(0, 2)["shape"] == [1, 15, 1]


def test_wrong_questions_have_an_error_with_a_hint(look: Look) -> None:
    inspector = look(formulas.SMALL).inspector
    with pytest.raises(BadSize, match="an image of 3 numbers") as caught:
        inspector.scores([1, 2, 3])
    assert "16" in caught.value.hint
    with pytest.raises(LabelOutOfRange, match="label 4"):
        inspector.activities([0] * 16, 4)
    with pytest.raises(LabelOutOfRange, match="label -1"):
        inspector.activities([0] * 16, 1, -1)
    with pytest.raises(LabelOutOfRange, match="label 9"):
        inspector.sample(9)


def test_what_many_ask_for_is_computed_once() -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(len(calls))
        return {"number": len(calls)}

    kept = Cached(compute, 3600.0)
    threads = [threading.Thread(target=kept.get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert calls == [0]
    assert kept.get() == {"number": 1}


def test_what_takes_long_is_computed_less_often() -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.02:
            pass
        calls.append(len(calls))
        return {}

    kept = Cached(compute, 0.0)
    begun = time.monotonic()
    kept.get()
    assert kept._valid_until - begun > 20 * 0.02, "a twentieth of the time of a core"
    kept._valid_until = 0.0
    kept.get()
    assert calls == [0, 1]
