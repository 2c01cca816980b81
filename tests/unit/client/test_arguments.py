"""Arguments of clients: types, shapes, names and numbers that are accepted, or rejected with a hint."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ffstream.client import UNLABELLED, Control, CurveKeys, Predictor, Producer
from ffstream.errors import (
    BadDtype,
    BadShape,
    ConfigError,
    FFStreamError,
    LabelOutOfRange,
    LabelRequired,
    NotFinite,
    TooLarge,
    ValueOutOfRange,
)
from tests.unit.client.scripted import Scripted

Script = Callable[..., Scripted]
Connect = Callable[..., Producer]
LEVELS = np.array([[0.0, 0.25, 0.5, 0.75, 1.0, 0.125]])
FLOATS = LEVELS.astype("<f4").tobytes()

GOOD_IMAGES = [
    pytest.param(LEVELS.astype(">f4"), "float32", [6], FLOATS, id="big-endian float32"),
    pytest.param(LEVELS.astype(">f8"), "float32", [6], FLOATS, id="big-endian float64"),
    pytest.param(LEVELS.astype("f8"), "float32", [6], FLOATS, id="float64"),
    pytest.param(LEVELS.astype("f2"), "float32", [6], FLOATS, id="float16"),
    pytest.param(LEVELS.astype(np.longdouble), "float32", [6], FLOATS, id="longdouble"),
    pytest.param(LEVELS.tolist(), "float32", [6], FLOATS, id="list of floats"),
    pytest.param(np.array([[1, 0, 0, 1, 0, 0]], bool), "uint8", [6], b"\xff\0\0\xff\0\0", id="bool"),
    pytest.param(np.arange(6, dtype=np.uint8), "uint8", [6], bytes(range(6)), id="one flat image"),
    pytest.param(np.arange(6, dtype=np.uint8).reshape(2, 3), "uint8", [2, 3], bytes(range(6)), id="one image"),
    pytest.param(np.arange(12, dtype=np.uint8)[None, ::2], "uint8", [6], bytes(range(0, 12, 2)), id="a slice"),
    pytest.param(
        np.arange(6, dtype=np.uint8).reshape(3, 2).T, "uint8", [2, 3], b"\0\2\4\1\3\5", id="not in row-major order"
    ),
    pytest.param(
        np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "uint8", [2, 3], bytes(range(6)), id="a batch of one"
    ),
]


@pytest.mark.parametrize(("images", "dtype", "shape", "frame"), GOOD_IMAGES)
def test_images_that_are_accepted(
    scripted: Script, connect: Connect, images: Any, dtype: str, shape: list[int], frame: bytes
) -> None:
    daemon = scripted()
    producer = connect(daemon)
    producer.send(images, 1)
    producer.send(images, [1])
    producer.flush(10)
    for fields, payload in zip(daemon.of_type("samples"), daemon.payloads, strict=True):
        assert (fields["count"], fields["dtype"], fields["shape"]) == (1, dtype, shape)
        assert payload == [frame]


BAD_IMAGES = [
    pytest.param(np.zeros((1, 6), np.int64), BadDtype, "int64", id="int64"),
    pytest.param([[0, 1, 2, 3, 4, 5]], BadDtype, "int64", id="list of ints"),
    pytest.param(np.zeros((1, 6), complex), BadDtype, "complex128", id="complex"),
    pytest.param([[1, 2], [3]], BadDtype, "list", id="ragged list"),
    pytest.param("images", BadDtype, "<U6", id="text"),
    pytest.param(None, BadDtype, "object", id="None"),
    pytest.param(np.full((1, 6), np.nan), NotFinite, "NaN", id="NaN"),
    pytest.param(np.full((1, 6), 1e300), NotFinite, "infinity", id="too large for float32"),
    pytest.param(np.full((1, 6), 255.0), ValueOutOfRange, "255", id="floats of 0 to 255"),
    pytest.param(np.full((1, 6), -0.5), ValueOutOfRange, "-0.5", id="negative floats"),
    pytest.param(np.zeros((2, 5), np.uint8), BadShape, r"\(2, 5\)", id="another size"),
    pytest.param(np.zeros((2, 3, 2), np.uint8), BadShape, r"\(2, 3, 2\)", id="rows and columns exchanged"),
    pytest.param(np.zeros((3, 2), np.uint8), BadShape, r"\(3, 2\)", id="one image, rows and columns exchanged"),
    pytest.param(np.zeros((1, 1, 2, 3), np.uint8), BadShape, r"\(1, 1, 2, 3\)", id="one axis too many"),
    pytest.param(np.uint8(3), BadShape, r"\(\)", id="one number"),
    pytest.param(np.zeros((0, 6), np.uint8), BadShape, "no images", id="no images"),
    pytest.param(np.zeros((11, 6), np.uint8), TooLarge, "11 images", id="too many"),
    pytest.param(np.zeros((101, 6), np.uint8), TooLarge, "606 bytes", id="too many bytes"),
]


@pytest.mark.parametrize(("images", "error", "match"), BAD_IMAGES)
def test_images_that_are_rejected_before_they_are_sent(
    scripted: Script, connect: Connect, images: Any, error: type[FFStreamError], match: str
) -> None:
    daemon = scripted()
    producer = connect(daemon)
    with pytest.raises(error, match=match) as caught:
        producer.send(images, 1)
    assert caught.value.hint
    asked = scripted(socket="predict")
    with Predictor(asked.endpoint) as predictor, pytest.raises(error, match=match):
        predictor.predict(images)
    producer.send(np.zeros((1, 6), np.uint8), [1])
    producer.flush(10)
    assert daemon.numbers == [1]
    assert asked.of_type("predict") == []


@pytest.mark.parametrize("images", [np.zeros((5, 3, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
def test_images_with_channels_first_are_rejected_with_the_transposition(
    scripted: Script, connect: Connect, images: Any
) -> None:
    producer = connect(scripted(inputs=48, image_shape=[4, 4, 3]))
    with pytest.raises(BadShape) as caught:
        producer.send(images, [1] * 5)
    assert "the network takes [4, 4, 3], or flat [48]" in caught.value.hint
    assert "images.transpose(0, 2, 3, 1)" in caught.value.hint


@pytest.mark.parametrize(
    "label", [3, np.int64(3), np.uint8(3), np.uint64(3), [3], (3,), np.array(3), np.array([3], ">i4")]
)
def test_labels_that_are_accepted(scripted: Script, connect: Connect, label: Any) -> None:
    daemon = scripted()
    producer = connect(daemon)
    producer.send(np.zeros((1, 6), np.uint8), label)
    producer.flush(10)
    assert daemon.of_type("samples")[0]["labels"] == b"\3\0"


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (10, LabelOutOfRange, "label 10"),
        (-1, LabelOutOfRange, "label -1"),
        (np.int64(-1), LabelOutOfRange, "label -1"),
        ([2**40], LabelOutOfRange, f"label {2**40}"),
        ([2**70], LabelOutOfRange, "object"),
        (3.0, LabelOutOfRange, "float64"),
        ([np.nan], LabelOutOfRange, "float64"),
        (True, LabelOutOfRange, "bool"),
        (None, LabelRequired, "without a label"),
        ([None], LabelRequired, "without a label"),
        (UNLABELLED, LabelRequired, "without a label"),
        ({3: 4}, LabelOutOfRange, "object"),
        ("3", LabelOutOfRange, "U1"),
        ([3, 4], BadShape, r"\(2,\) for 1 images"),
        ([[3], [4, 5]], LabelOutOfRange, "list"),
        ([[3]], BadShape, r"\(1, 1\) for 1 images"),
    ],
)
def test_labels_that_are_rejected_before_they_are_sent(
    scripted: Script, connect: Connect, labels: Any, error: type[FFStreamError], match: str
) -> None:
    daemon = scripted()
    producer = connect(daemon)
    with pytest.raises(error, match=match) as caught:
        producer.send(np.zeros((1, 6), np.uint8), labels)
    assert caught.value.hint
    producer.flush(10)
    assert daemon.numbers == []


@pytest.mark.parametrize(
    ("labels", "sent"),
    [
        (None, b"\xff\xff\xff\xff"),
        ([None, 3], b"\xff\xff\3\0"),
        ([3, UNLABELLED], b"\3\0\xff\xff"),
        (np.array([UNLABELLED, 3], np.uint16), b"\xff\xff\3\0"),
    ],
)
def test_samples_without_a_label_are_sent_to_a_daemon_that_accepts_them(
    scripted: Script, connect: Connect, labels: Any, sent: bytes
) -> None:
    daemon = scripted(unlabelled=True)
    producer = connect(daemon)
    producer.send(np.zeros((2, 6), np.uint8), labels)
    with pytest.raises(LabelOutOfRange, match="label 10"):
        producer.send(np.zeros((2, 6), np.uint8), [None, 10])
    producer.flush(10)
    assert [each["labels"] for each in daemon.of_type("samples")] == [sent]


def test_a_single_sample_without_a_label_is_sent(scripted: Script, connect: Connect) -> None:
    daemon = scripted(unlabelled=True)
    producer = connect(daemon)
    for label in (None, UNLABELLED, [None]):
        producer.send(np.zeros((1, 6), np.uint8), label)
    producer.flush(10)
    assert [each["labels"] for each in daemon.of_type("samples")] == [b"\xff\xff"] * 3


def test_the_error_counts_all_wrong_labels(scripted: Script, connect: Connect) -> None:
    with pytest.raises(LabelOutOfRange, match="label 26 and 1 more") as caught:
        connect(scripted()).send(np.zeros((3, 6), np.uint8), [26, 3, 11])
    assert "0 to 9" in caught.value.hint


@pytest.mark.parametrize("image", [np.zeros((2, 3), np.uint8), np.zeros(6, np.uint8)])
def test_a_query_may_have_one_image_without_a_batch_axis(scripted: Script, image: Any) -> None:
    def one(daemon: Scripted, fields: dict[str, Any]) -> None:
        daemon.say("prediction", bytes(8), id=fields["id"], labels=[4], version=1, seq=1)

    daemon = scripted(one, socket="predict")
    with Predictor(daemon.endpoint) as predictor:
        assert predictor.predict(image).labels.tolist() == [4]
    assert daemon.of_type("predict")[0]["count"] == 1


@pytest.mark.parametrize("client", [5, "", "a\x1fb", "x" * 65, "ü" * 33, b"bytes", "@page", "\ud800"])
def test_invalid_client_names_are_rejected(client: Any) -> None:
    with pytest.raises(ConfigError, match="client=") as caught:
        Producer("tcp://127.0.0.1:1", client=client)
    assert caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"window_messages": 0},
        {"window_messages": 1.5},
        {"window_bytes": -1},
        {"ack_timeout_s": math.nan},
        {"connect_timeout_s": -1},
        {"connect_timeout_s": "soon"},
        {"start_at": 0},
        {"start_at": 2**62},
        {"start_at": "1"},
        {"keys": ("anna.key_secret", "daemon.key")},
        {"endpoint": None},
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Producer(**({"endpoint": "tcp://127.0.0.1:1"} | options))
    assert caught.value.hint


def test_numbers_may_be_those_of_numpy(scripted: Script, connect: Connect) -> None:
    daemon = scripted()
    ten: Any = np.float32(10)
    producer = connect(
        daemon,
        window_messages=np.int64(3),
        window_bytes=np.uint32(600),
        ack_timeout_s=np.float32(5),
        start_at=np.int64(7),
    )
    assert producer.send(np.zeros((1, 6), np.uint8), np.int64(1), timeout_s=ten) == 7
    producer.flush(ten)
    assert daemon.numbers == [7]


@pytest.mark.parametrize("timeout_s", [math.nan, -1, "1", None])
def test_invalid_timeouts_are_rejected(scripted: Script, connect: Connect, timeout_s: Any) -> None:
    producer = connect(scripted())
    with pytest.raises(ConfigError, match="timeout_s"):
        producer.flush(timeout_s)
    with Predictor("tcp://127.0.0.1:1") as predictor, pytest.raises(ConfigError, match="timeout_s"):
        predictor.predict(np.zeros((1, 6), np.uint8), timeout_s)
    with Control("tcp://127.0.0.1:1") as control, pytest.raises(ConfigError, match="timeout_s"):
        control.status(timeout_s)


def test_arguments_of_a_command_are_sent_or_rejected(scripted: Script) -> None:
    daemon = scripted(
        lambda daemon, fields: daemon.say("reply", id=fields["id"], result=fields["arguments"]), socket="control"
    )
    three: Any = np.int64(3)
    with Control(daemon.endpoint) as control:
        assert control.request("rollback", {"to": np.int64(5), "part": np.float32(0.5)}) == {"to": 5, "part": 0.5}
        assert control.wait_idle(three) == {"timeout_s": 3.0}
        wrong: list[tuple[Any, Any]] = [(5, None), ("status", [1]), ("status", {1: 2}), ("status", {"x": object()})]
        wrong += [("x" * 65, None), ("rollback", {"to": 2**64})]
        for command, arguments in wrong:
            with pytest.raises(ConfigError):
                control.request(command, arguments)
        with pytest.raises(TooLarge):
            control.request("status", {"x": "y" * 70_000})
    assert len(daemon.of_type("request")) == 2


def test_missing_key_files_are_rejected() -> None:
    with pytest.raises(ConfigError):
        CurveKeys.load("/no/such/file", "/no/such/file")


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_that_does_not_exist_is_rejected_at_once(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"there is no port {port}"):
        Control(f"tcp://{host}:{port}")
