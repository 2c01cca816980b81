from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ffstream.ff.network import Network
from ffstream.serving.predictor import Predictor
from ffstream.serving.snapshot import Snapshot
from tests.unit.serving.answers import INPUTS, LABELS, RECIPE, always, begun_with, snapshot


def query(size: int, dtype: str, seed: int) -> NDArray[Any]:
    images = np.random.default_rng(seed).integers(0, 256, (size, INPUTS), np.uint8)
    return images if dtype == "uint8" else (images / 255).astype(np.float32)


def test_each_query_gets_its_own_answer_in_order_whatever_it_is_mixed_with() -> None:
    classifier = Network(RECIPE.change(widths=[8, 6])).classifier()
    predictor = Predictor(begun_with(Snapshot(classifier, 1, 0)))
    kinds = [(3, "uint8"), (1, "float32"), (40, "uint8"), (2, "float32"), (1, "uint8"), (0, "uint8")]
    queries = [query(size, dtype, seed) for seed, (size, dtype) in enumerate(kinds)]
    answers = predictor.answer(queries)
    assert len(answers) == len(queries)
    for images, answer in zip(queries, answers, strict=True):
        alone = classifier.predict(torch.from_numpy(images))
        assert answer.labels.shape == (len(images),)
        assert answer.goodness.shape == (len(images), LABELS)
        assert answer.goodness.dtype == np.float32
        assert np.allclose(answer.goodness, alone.goodness_BL.numpy(), rtol=1e-5)
        assert np.array_equal(answer.labels, answer.goodness.argmax(1))
    assert len({int(label) for answer in answers for label in answer.labels}) > 1


def test_queries_that_wait_together_are_answered_from_one_snapshot() -> None:
    """Even if another one is published between the uint8 and the float32 images."""
    snapshots = begun_with(snapshot(0))

    class Publishing:
        def predict(self, images: torch.Tensor) -> Any:
            snapshots.publish(snapshot(2))
            return always(1).predict(images)

    first = replace(snapshot(1), classifier=Publishing())  # type: ignore[arg-type]
    snapshots.publish(first)
    answers = Predictor(snapshots).answer([query(2, "uint8", 0), query(2, "float32", 1), query(2, "uint8", 2)])
    assert [answer.labels.tolist() for answer in answers] == [[1, 1]] * 3
    assert all(answer.snapshot is first for answer in answers)
    (later,) = Predictor(snapshots).answer([query(1, "uint8", 0)])
    assert later.labels.tolist() == [2]
    assert later.snapshot.version == 2


def test_empty_list_of_queries() -> None:
    assert Predictor(begun_with(snapshot(1))).answer([]) == []
