"""Predictor and Control with a daemon whose answers are written by the test."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from ffstream.client import Control, Predictor
from ffstream.errors import (
    BadDtype,
    BadFrames,
    BadSize,
    ConfigError,
    DeadlineExceeded,
    RequestRefused,
    UnknownType,
    Unreachable,
)
from tests.harness.daemon_directory import free_port
from tests.unit.client.scripted import Scripted

Script = Callable[..., Scripted]
IMAGES = np.zeros((2, 6), np.uint8)


@pytest.fixture
def predicting(scripted: Script) -> Script:
    """A daemon's predict socket."""
    return partial(scripted, socket="predict")


@pytest.fixture
def controlled(scripted: Script) -> Script:
    """A daemon's control socket."""
    return partial(scripted, socket="control")


def predict(daemon: Scripted, fields: dict[str, Any], *, of: int | None = None, **other: Any) -> None:
    good = {"id": fields["id"] if of is None else of, "labels": [3, 1], "version": 5, "seq": 9}
    payload = other.pop("payload", [np.arange(8, dtype="<f4").tobytes()])
    daemon.say("prediction", *payload, **(good | other))


def test_a_prediction_has_labels_goodness_and_the_snapshot(predicting: Script) -> None:
    daemon = predicting(predict)
    with Predictor(daemon.endpoint) as predictor:
        answer = predictor.predict(IMAGES, 10)
    assert answer.labels.tolist() == [3, 1]
    assert answer.goodness.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (answer.version, answer.seq) == (5, 9)
    hello, fields = daemon.received
    assert hello == {"v": 1, "type": "hello", "client": None}
    assert (fields["count"], fields["dtype"], fields["shape"]) == (2, "uint8", [6])


def test_a_late_answer_is_not_mistaken_for_that_of_the_next_query(predicting: Script) -> None:
    def late(daemon: Scripted, fields: dict[str, Any]) -> None:
        if fields["id"] == 2:
            predict(daemon, fields, of=1, seq=1)
            daemon.error(None, "bad_header", id=1)
            predict(daemon, fields, seq=2)

    with Predictor(predicting(late).endpoint) as predictor:
        with pytest.raises(DeadlineExceeded, match=r"no answer from tcp://.* in 1\.?\d* s") as caught:
            predictor.predict(IMAGES, 1.0)
        assert caught.value.hint
        assert predictor.predict(IMAGES, 10).seq == 2


@pytest.mark.parametrize("id", [1, None])
def test_an_error_reply_raises(predicting: Script, id: int | None) -> None:
    def reject(daemon: Scripted, fields: dict[str, Any]) -> None:
        daemon.error(None, "bad_shape", retry=False, id=id)

    with Predictor(predicting(reject).endpoint) as predictor, pytest.raises(RequestRefused) as caught:
        predictor.predict(IMAGES, 10)
    assert (caught.value.remote_code, caught.value.hint) == ("bad_shape", "how")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"labels": [1]}, BadSize),
        ({"payload": [bytes(7)]}, BadSize),
        ({"payload": []}, BadFrames),
        ({"payload": [bytes(8)] * 2}, BadFrames),
    ],
)
def test_a_prediction_of_the_wrong_size_raises(
    predicting: Script, answer: dict[str, Any], error: type[Exception]
) -> None:
    daemon = predicting(lambda daemon, fields: predict(daemon, fields, **answer))
    with Predictor(daemon.endpoint) as predictor, pytest.raises(error):
        predictor.predict(IMAGES, 10)


def test_an_answer_of_another_type_raises(predicting: Script) -> None:
    daemon = predicting(lambda daemon, fields: daemon.say("reply", id=1, result={}))
    with Predictor(daemon.endpoint) as predictor, pytest.raises(UnknownType):
        predictor.predict(IMAGES, 10)


def test_images_that_cannot_be_encoded_are_not_sent(predicting: Script) -> None:
    daemon = predicting(predict)
    with Predictor(daemon.endpoint) as predictor, pytest.raises(BadDtype):
        predictor.predict(np.zeros((1, 6), np.int32))
    assert daemon.of_type("predict") == []


def test_commands_return_their_results(controlled: Script) -> None:
    def echo(daemon: Scripted, fields: dict[str, Any]) -> None:
        daemon.say("reply", id=fields["id"], result={"got": fields["arguments"]})

    daemon = controlled(echo)
    with Control(daemon.endpoint) as control:
        assert control.request("rollback", {"to": 5}) == {"got": {"to": 5}}
        assert control.status() == {"got": {}}
        assert control.wait_idle(2.5) == {"got": {"timeout_s": 2.5}}
    assert [(fields["id"], fields["command"]) for fields in daemon.of_type("request")] == [
        (1, "rollback"),
        (2, "status"),
        (3, "wait_idle"),
    ]


def test_a_command_that_is_rejected_or_not_answered_raises(controlled: Script) -> None:
    def reject_first(daemon: Scripted, fields: dict[str, Any]) -> None:
        if fields["id"] == 1:
            daemon.error(None, "draining", id=1)

    with Control(controlled(reject_first).endpoint) as control:
        with pytest.raises(RequestRefused, match="draining"):
            control.request("checkpoint")
        with pytest.raises(DeadlineExceeded):
            control.request("checkpoint", timeout_s=0.05)


def test_an_unreachable_daemon_raises_with_the_reason() -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Control(endpoint) as control, pytest.raises(Unreachable) as caught:
        control.status(0.05)
    assert f"nobody listens at {endpoint} (Connection refused)" in caught.value.message
    assert "ffstream serve" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["", "localhost", "tcp://", "tcp://127.0.0.1", "http://127.0.0.1:1"])
def test_an_invalid_endpoint_is_rejected(endpoint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Control(endpoint)
    assert caught.value.hint


def test_clients_do_not_import_torch() -> None:
    code = "import sys, ffstream.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
