"""The predict socket with a small network. Its answers are compared with those of the classifier."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from ffstream.config import Limits, load
from ffstream.ff.classifier import Classifier
from ffstream.ff.network import Network
from ffstream.metrics import Metrics
from ffstream.server import pacing
from ffstream.server.predict import PredictLoop
from ffstream.serving.predictor import Predictor
from ffstream.serving.snapshot import Snapshot
from ffstream.wire.images import ImageChecker
from tests.in_process import INPUTS, SMALL, Peer, images
from tests.support import wait_until
from tests.unit.serving.answers import begun_with

RECIPE = load(settings=SMALL, environment={}).network


class Oracle:
    def __init__(self, *, is_behind: bool = False, learning_min_share: float = 0.25) -> None:
        self.classifier: Classifier = Network(RECIPE).classifier()
        self.snapshots = begun_with(Snapshot(self.classifier, 3, 17))
        self.metrics = Metrics()
        self.failures: list[Exception] = []
        self.loop = PredictLoop(
            Predictor(self.snapshots),
            ImageChecker([INPUTS], 4, 50),
            Limits(
                message_max_bytes=1 << 20,
                reply_queue_messages=100,
                query_batch_max_samples=16,
                learning_min_share=learning_min_share,
            ),
            is_behind=lambda: is_behind,
            boot="boot",
            metrics=self.metrics,
            on_failure=self.failures.append,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.loop.bind(self._context, "tcp://127.0.0.1:*")
        self.loop.start()
        self.peer = Peer(self.loop.endpoint)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"ffstream_{name}", labels) or 0.0

    def close(self) -> None:
        self.peer.close()
        assert self.loop.stop(10)
        self._context.term()
        assert self.failures == []


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    oracle = Oracle()
    yield oracle
    oracle.close()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("count", [1, 5, 50])
def test_an_answer_is_the_result_of_the_classifier(oracle: Oracle, dtype: str, count: int) -> None:
    query = images(count) if dtype == "uint8" else (images(count) / 255).astype("<f4")
    oracle.peer.send("predict", query.tobytes(), id=9, count=count, dtype=dtype, shape=[INPUTS])
    header, (goodness,) = oracle.peer.answer_and_payload()
    labels_B, goodness_BL = oracle.classifier.predict(torch.from_numpy(query))
    assert header == {
        "v": 1,
        "type": "prediction",
        "id": 9,
        "labels": labels_B.tolist(),
        "version": 3,
        "seq": 17,
    }
    found = np.frombuffer(goodness, "<f4").reshape(count, 4)
    assert np.allclose(found, goodness_BL.numpy(), rtol=1e-5)
    assert found.argmax(1).tolist() == header["labels"]


def test_queries_of_both_dtypes_in_one_batch_get_their_own_answers(oracle: Oracle) -> None:
    queries = {id: images(id % 4 + 1, seed=id) for id in range(30)}
    for id, query in queries.items():
        frame = query.tobytes() if id % 2 else (query / 255).astype("<f4").tobytes()
        oracle.peer.send(
            "predict", frame, id=id, count=len(query), dtype="uint8" if id % 2 else "float32", shape=[INPUTS]
        )
    for _ in queries:
        header, (goodness,) = oracle.peer.answer_and_payload()
        expected = oracle.classifier.predict(torch.from_numpy(queries[header["id"]])).goodness_BL.numpy()
        assert np.allclose(np.frombuffer(goodness, "<f4").reshape(-1, 4), expected, rtol=1e-4)
    total = sum(map(len, queries.values()))
    wait_until(lambda: oracle.metric("prediction_batch_samples_sum") == total, 10, "the answers are counted")
    assert oracle.metric("predictions_total") == total
    wait_until(lambda: oracle.metric("prediction_seconds_count") == len(queries), 10, "each query is timed")


BAD: dict[str, tuple[dict[str, Any], list[bytes], str]] = {
    "no image": ({}, [], "bad_frames"),
    "two frames": ({}, [bytes(INPUTS)] * 2, "bad_frames"),
    "size": ({}, [bytes(INPUTS + 1)], "bad_size"),
    "shape": ({"shape": [3, 3]}, [bytes(9)], "bad_shape"),
    "dtype": ({"dtype": "int8"}, [bytes(INPUTS)], "bad_dtype"),
    "too many": ({"count": 51}, [bytes(51 * INPUTS)], "too_large"),
    "no images": ({"count": 0}, [b""], "bad_header"),
    "no images, no frame": ({"count": 0}, [], "bad_header"),
    "too many bytes": ({}, [bytes((1 << 20) + 1)], "too_large"),
    "NaN": ({"dtype": "float32"}, [b"\xff" * 4 * INPUTS], "not_finite"),
    "huge": ({"dtype": "float32"}, [np.full(INPUTS, 3e38, "<f4").tobytes()], "value_out_of_range"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_query_gets_an_error_and_a_valid_one_in_its_batch_an_answer(oracle: Oracle, name: str) -> None:
    fields, payload, code = BAD[name]
    good: dict[str, Any] = {"count": 1, "dtype": "uint8", "shape": [INPUTS]}
    oracle.peer.send("predict", *payload, id=1, **(good | fields))
    oracle.peer.send("predict", bytes(INPUTS), id=2, **good)
    answers = {answer["id"]: answer for answer in (oracle.peer.answer() for _ in range(2))}
    assert (answers[1]["type"], answers[1]["code"], answers[1]["retry"]) == ("error", code, False)
    assert answers[1]["hint"]
    assert answers[2]["type"] == "prediction"
    assert oracle.metric("messages_rejected_total", reason=code) == 1
    wait_until(lambda: oracle.metric("predictions_total") == 1, 10, "the answer is counted")


def test_a_ping_is_answered(oracle: Oracle) -> None:
    oracle.peer.send("ping")
    assert oracle.peer.answer() == {
        "v": 1,
        "type": "pong",
        "socket": "predict",
        "boot": "boot",
        "credit": 0,
        "refusing": None,
        "message": "",
        "hint": "",
    }


def test_a_hello_is_answered_with_the_limits_of_this_socket(oracle: Oracle) -> None:
    oracle.peer.send("hello")
    assert oracle.peer.answer() == {
        "v": 1,
        "type": "welcome",
        "socket": "predict",
        "boot": "boot",
        "max_samples": 50,
        "max_bytes": 1 << 20,
        "inputs": INPUTS,
        "image_shape": [INPUTS],
        "labels": 4,
        "unlabelled": False,
        "next": 0,
        "credit": 0,
        "refusing": None,
        "message": "",
        "hint": "",
    }


def test_floats_outside_by_a_rounding_error_are_predicted_clipped(oracle: Oracle) -> None:
    query = np.full((2, INPUTS), 0.5, "<f4")
    query[0, 0], query[1, 0] = np.nextafter(np.float32(1), np.float32(2)), -1e-9
    for id, each in enumerate((query, query.clip(0, 1))):
        oracle.peer.send("predict", each.tobytes(), id=id, count=2, dtype="float32", shape=[INPUTS])
    (_, first), (_, second) = oracle.peer.answer_and_payload(), oracle.peer.answer_and_payload()
    assert first == second


@pytest.mark.parametrize(
    ("is_behind", "share", "paced"), [(True, 0.5, True), (True, 0.0, False), (False, 0.5, False)]
)
def test_predictions_pause_only_while_learning_is_behind(
    monkeypatch: pytest.MonkeyPatch, is_behind: bool, share: float, paced: bool
) -> None:
    """Queries are always queued, so the thread is never idle, and owes the whole share of learning."""
    monkeypatch.setattr(pacing, "BURST_S", 0.0)
    oracle = Oracle(is_behind=is_behind, learning_min_share=share)
    try:
        for id in range(100):
            oracle.peer.send("predict", bytes(INPUTS), id=id, count=1, dtype="uint8", shape=[INPUTS])
        assert {oracle.peer.answer()["id"] for _ in range(100)} == set(range(100))
    finally:
        oracle.close()
    assert (oracle.metric("prediction_paced_seconds_total") > 0) == paced


def test_a_stop_interrupts_a_pause() -> None:
    oracle = Oracle(is_behind=True)
    oracle.loop._pacer._owed_s = 3600.0
    oracle.close()
