"""A complete daemon learns what it is sent, exactly once, and answers queries meanwhile."""

import threading
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pytest

from ffstream.client.delivery import Rejected
from ffstream.errors import (
    BadShape,
    DeadlineExceeded,
    FFStreamError,
    RequestRefused,
)
from tests import wire_spec
from tests.harness.daemon_directory import free_port
from tests.in_process import INPUTS, WAIT_S, Running, Start, feed, images, labels
from tests.support import wait_until

# --- learning -------------------------------------------------------------------------------------------------------


def test_every_sent_sample_is_learned(daemon: Running) -> None:
    feed(daemon, 100)
    status = daemon.control().status()
    assert (status["accepted"], status["learned"], status["applied_seq"], status["backlog"]) == (100, 100, 100, 0)
    assert status["snapshot"]["seq"] == 100
    assert daemon.metric("samples_learned_total") == daemon.metric("samples_acked_total") == 100
    assert [stage["last_seq"] for stage in status["stages"]] == [100, 100]


def test_the_error_falls_on_a_stream_that_is_easy_to_learn(start: Start) -> None:
    """Each label has its own bright quarter of the image. Guessing would have an error of 75 %."""
    running = start("network.learning_rate=0.02", "network.ema_samples=0", "prequential.queue_depth=1000000")
    rng = np.random.default_rng(0)
    producer = running.producer()
    for _ in range(60):
        which = rng.integers(0, 4, 16)
        quarters = rng.integers(0, 60, (16, 4, 4), np.uint8)
        quarters[np.arange(16), which] += 180
        producer.send(quarters, which)
    producer.flush(WAIT_S)
    running.control().wait_idle(WAIT_S)
    # Learning does not wait for the evaluation. Without the last samples the error would be that of the first ones.
    wait_until(lambda: running.metric("prequential_samples_total") == 960, WAIT_S, "all samples are evaluated")
    assert running.control().status()["prequential_error"] < 0.3
    answer = running.predictor().predict(np.repeat(np.eye(4, dtype=np.uint8) * 200, 4, axis=1).reshape(4, 4, 4))
    assert answer.labels.tolist() == [0, 1, 2, 3]


def test_images_as_uint8_and_as_float_have_the_same_effect(start: Start) -> None:
    one, two = start(name="one"), start(name="two")
    for running, scale in ((one, None), (two, np.float32(255))):
        producer = running.producer()
        for at in range(0, 64, 8):
            batch = images(8, at)
            producer.send(batch if scale is None else batch / scale, labels(8, at))
        producer.flush(WAIT_S)
        running.control().wait_idle(WAIT_S)
    query = images(5, 99)
    first, second = one.predictor().predict(query), two.predictor().predict(query / np.float32(255))
    assert np.allclose(first.goodness, second.goodness, rtol=1e-3)


# --- exactly once ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fixed_ports() -> tuple[str, ...]:
    """Settings with which clients find a restarted daemon."""
    return tuple(f"listen.{name}=tcp://127.0.0.1:{free_port()}" for name in wire_spec.SOCKETS)


def test_samples_sent_during_restarts_are_learned_exactly_once_and_in_order(
    start: Start, fixed_ports: tuple[str, ...]
) -> None:
    running = start(*fixed_ports, "limits.window_messages=16")
    producer = running.producer(ack_timeout_s=1.0)
    stop = threading.Event()
    failed: list[Exception] = []

    def produce() -> None:
        try:
            while not stop.is_set() or producer.counts.sent < 600:
                producer.send(images(3, producer.counts.sent), labels(3, producer.counts.sent), WAIT_S)
            producer.flush(WAIT_S)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=produce)
    thread.start()
    for restart in range(3):
        wait_until(lambda: running.daemon.journal.head.seq > 100 * (restart + 1), WAIT_S, "samples are stored")  # noqa: B023
        running.restart()
    stop.set()
    thread.join(2 * WAIT_S)
    assert failed == []
    assert not thread.is_alive()
    sent = producer.counts.sent
    assert producer.counts.acked == sent
    assert producer.last_seq == sent
    status = running.control().wait_idle(WAIT_S)
    assert (status["accepted"], status["learned"]) == (sent, sent)
    rows = running.stored()
    assert rows[-1][1] * 3 == sent
    for (_, n, first_seq, _), (_, next_n, next_seq, _) in pairwise(rows):
        assert (next_n, next_seq) == (n + 1, first_seq + 3)


def test_a_resent_message_is_acked_again_and_not_stored_again_after_a_restart(
    start: Start, fixed_ports: tuple[str, ...]
) -> None:
    running = start(*fixed_ports)
    peer = running.peer()
    for n in (1, 2, 3):
        peer.samples(n)
    first = peer.acked(3)
    running.restart()
    again = running.peer()
    for n in (3, 2, 1, 4):
        again.samples(n)
    assert again.acked(4) == first | {4: (4, 1)}
    assert running.metric("samples_duplicate_total") == 3
    again.samples(5, base=5)
    again.acked(1)
    again.samples(4)
    assert again.answer()["code"] == "below_base"


def test_an_acked_sample_is_learned_after_a_restart(start: Start, fixed_ports: tuple[str, ...]) -> None:
    running = start(*fixed_ports)
    running.control().request("pause")
    producer = running.producer()
    producer.send(images(50), labels(50))
    producer.flush(WAIT_S)
    running.restart()
    running.control().request("resume")
    assert running.control().wait_idle(WAIT_S)["learned"] == 50


# --- backpressure ---------------------------------------------------------------------------------------------------


def test_a_full_backlog_makes_a_producer_wait_and_no_sample_is_lost(start: Start) -> None:
    running = start("limits.backlog_max_samples=20", "limits.window_messages=8")
    control = running.control()
    control.request("pause")
    producer = running.producer()
    sent = 0

    def must_wait() -> bool:
        """Sends one more sample. A timeout with room in the backlog means that acks are slow, so try again."""
        nonlocal sent
        try:
            producer.send(images(1, sent), labels(1, sent), timeout_s=1.0)
        except DeadlineExceeded:
            return running.daemon.admission.rejection_reason() is not None
        sent += 1
        assert sent < 40
        return False

    wait_until(must_wait, WAIT_S, "the producer must wait")
    status = control.status()
    assert (status["state"], status["learned"]) == ("paused", 0)
    assert 20 <= status["backlog"] < 20 + 8
    peer = running.peer()
    peer.send("ping")
    assert peer.answer()["credit"] == 0
    assert running.metric("credit_messages") == 0
    control.request("resume")
    producer.send(images(1, sent), labels(1, sent), WAIT_S)
    producer.flush(WAIT_S)
    assert producer.counts.acked == sent + 1
    assert control.wait_idle(WAIT_S)["learned"] == sent + 1
    assert producer.counts.rejected == 0


def test_messages_over_the_backlog_limit_are_rejected_sent_again_and_stored(start: Start) -> None:
    """More messages than the credit allows: some are rejected with a retryable error."""
    running = start("limits.backlog_max_samples=8", "limits.commit_max_messages=1")
    producer = running.producer()
    for at in range(64):
        producer.send(images(1, at), labels(1, at), WAIT_S)
    producer.flush(WAIT_S)
    assert running.control().wait_idle(WAIT_S)["learned"] == 64
    assert sorted(n for _, n, _, _ in running.stored()) == list(range(1, 65))
    assert running.metric("samples_acked_total") == 64


# --- bad input ------------------------------------------------------------------------------------------------------

IMAGE = bytes(INPUTS)
FLOATS = np.zeros(INPUTS, "<f4")


def _valid(**other: Any) -> bytes:
    fields = {"client": "bad", "n": 1, "base": 1, "count": 1, "dtype": "uint8", "shape": [INPUTS], "labels": b"\0\0"}
    packed: bytes = msgpack.packb({"v": 1, "type": "samples"} | fields | other)
    return packed


BAD: list[tuple[str, list[bytes]]] = [
    ("bad_header", [b"hello"]),
    ("bad_header", [b""]),
    ("bad_header", [b"\x91" * 30_000]),
    ("bad_header", [_valid(n=-1), IMAGE]),
    ("bad_header", [_valid(base=2), IMAGE]),
    ("bad_header", [_valid(count=0), b""]),
    ("bad_header", [_valid(client="x" * 65), IMAGE]),
    ("bad_header", [_valid(shape=[0]), b""]),
    ("bad_frames", [_valid()]),
    ("bad_frames", [_valid(), IMAGE, IMAGE]),
    ("unknown_type", [_valid(type="sample"), IMAGE]),
    ("unknown_type", [msgpack.packb({"v": 1, "type": "welcome"})]),
    ("unsupported_version", [_valid(v=2), IMAGE]),
    ("bad_dtype", [_valid(dtype="float64"), bytes(8 * INPUTS)]),
    ("bad_shape", [_valid(shape=[15]), bytes(15)]),
    ("bad_shape", [_valid(shape=[2, 8]), IMAGE]),
    ("bad_shape", [_valid(shape=[1, 4, 4]), IMAGE]),
    ("bad_shape", [_valid(shape=[2**31, 2**31, 2**31, 16]), IMAGE]),
    ("bad_size", [_valid(), IMAGE[:-1]]),
    ("bad_size", [_valid(labels=b"\0"), IMAGE]),
    ("bad_size", [_valid(dtype="float32"), IMAGE]),
    ("label_out_of_range", [_valid(labels=b"\4\0"), IMAGE]),
    ("not_finite", [_valid(dtype="float32"), (FLOATS + np.float32("nan")).tobytes()]),
    ("not_finite", [_valid(dtype="float32"), (FLOATS - np.float32("inf")).tobytes()]),
    ("value_out_of_range", [_valid(dtype="float32"), (FLOATS + np.float32(3e38)).tobytes()]),
    ("too_large", [_valid(count=5000, labels=bytes(10_000)), bytes(5000 * INPUTS)]),
    ("too_large", [b"x" * 65_537]),
]


def test_bad_messages_are_answered_and_counted_and_do_not_affect_other_clients(daemon: Running) -> None:
    producer = daemon.producer()
    bad_client = daemon.peer()
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(len(BAD)), 4))
    for at, which in enumerate(order):
        bad_client.send_frames(*BAD[which][1])
        producer.send(images(2, at), labels(2, at))
    producer.flush(WAIT_S)
    answers = [bad_client.answer() for _ in order]
    assert all(answer["type"] == "error" and answer["message"] and answer["hint"] for answer in answers)
    assert not any(answer["retry"] for answer in answers)
    expected = {code: 4 * [each for each, _ in BAD].count(code) for code, _ in BAD}
    found = {code: sum(answer["code"] == code for answer in answers) for code in expected}
    assert found == expected
    for code, count in expected.items():
        assert daemon.metric("messages_rejected_total", reason=code) == count
    status = daemon.control().wait_idle(WAIT_S)
    assert (status["accepted"], status["learned"]) == (2 * len(order), 2 * len(order))
    assert producer.counts.acked == 2 * len(order)
    answer = daemon.predictor().predict(images(3))
    assert np.isfinite(answer.goodness).all()


def test_bad_messages_do_not_change_the_weights(start: Start) -> None:
    clean, attacked = start(name="clean"), start(name="attacked")
    bad_client = attacked.peer()
    for running in (clean, attacked):
        producer = running.producer()
        for at in range(0, 64, 8):
            if running is attacked:
                for _, frames in BAD:
                    bad_client.send_frames(*frames)
            producer.send(images(8, at), labels(8, at))
            producer.flush(WAIT_S)
        running.control().wait_idle(WAIT_S)
    query = images(20, 7)
    first, second = clean.predictor().predict(query), attacked.predictor().predict(query)
    assert np.array_equal(first.goodness, second.goodness)


@pytest.mark.parametrize("socket", wire_spec.SOCKETS)
def test_each_socket_accepts_exactly_the_message_types_of_the_specification(daemon: Running, socket: str) -> None:
    accepted = wire_spec.socket_types()[socket]
    peer = daemon.peer(socket)
    for name in wire_spec.messages():
        peer.send(name)
        answer = peer.answer()
        unknown = answer["type"] == "error" and answer["code"] == "unknown_type"
        assert unknown == (name not in accepted), f"{socket}: {name}"


@pytest.mark.parametrize("socket", wire_spec.SOCKETS)
def test_a_message_over_the_byte_limit_ends_only_the_connection_of_its_sender(start: Start, socket: str) -> None:
    running = start("limits.message_max_bytes=4096")
    good, bad = running.peer(socket), running.peer(socket)
    bad.send("ping")
    assert bad.answer()["type"] == "pong"
    with bad.cut_off():
        bad.send_frames(b"x", bytes(2 * 65_536 + 1))
    good.send("ping")
    assert good.answer()["type"] == "pong"


def test_a_rejected_message_is_reported_to_the_callback_or_raised_by_flush(daemon: Running) -> None:
    peer = daemon.peer()
    for n in range(1, 7):
        peer.samples(n, client="me")
    peer.acked(6)
    black, white = np.zeros((1, INPUTS), np.uint8), np.full((1, INPUTS), 255, np.uint8)
    refused: list[Rejected] = []
    producer = daemon.producer(client="me", start_at=1, on_rejected=refused.append)
    for at in range(6):
        producer.send(white if at % 3 == 1 else black, [0])
    producer.flush(WAIT_S)
    assert [(each.n, each.code) for each in refused] == [(2, "stored_differently"), (5, "stored_differently")]
    assert (producer.counts.acked, producer.counts.rejected) == (4, 2)
    strict = daemon.producer(client="me", start_at=6)
    strict.send(white, [0])
    with pytest.raises(RequestRefused, match="stored_differently"):
        strict.flush(WAIT_S)


# --- predictions ----------------------------------------------------------------------------------------------------


def test_predictions_are_answered_before_the_first_sample(daemon: Running) -> None:
    answer = daemon.predictor().predict(images(3))
    assert (answer.version, answer.seq) == (0, 0)
    assert answer.labels.shape == (3,)
    assert answer.goodness.shape == (3, 4)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_a_prediction_has_a_label_for_each_image_and_a_goodness_for_each_label(daemon: Running, dtype: str) -> None:
    feed(daemon, 40)
    query = images(7).reshape(7, 4, 4)
    answer = daemon.predictor().predict(query if dtype == "uint8" else (query / 255).astype(dtype))
    assert (answer.labels.shape, answer.goodness.shape) == ((7,), (7, 4))
    assert answer.labels.dtype == np.int64
    assert np.array_equal(answer.goodness.argmax(1), answer.labels)
    assert answer.seq == 40
    wait_until(
        lambda: daemon.metric("predictions_total") == 7, WAIT_S, "they are counted, which happens after the reply"
    )


def test_predictions_change_nothing_and_are_repeatable_while_nothing_is_learned(daemon: Running) -> None:
    feed(daemon, 40)
    predictor = daemon.predictor()
    first = predictor.predict(images(9))
    for _ in range(5):
        again = predictor.predict(images(9))
        assert np.array_equal(again.goodness, first.goodness)
        assert (again.version, again.seq) == (first.version, first.seq)
    assert daemon.control().status()["learned"] == 40


def test_predictions_continue_during_learning_and_their_snapshots_only_get_newer(start: Start) -> None:
    running = start("learning.publish_every=1")
    predictor = running.predictor()
    producer = running.producer()
    seen = []
    for at in range(0, 400, 8):
        producer.send(images(8, at), labels(8, at))
        answer = predictor.predict(images(2, at))
        seen.append((answer.version, answer.seq))
    producer.flush(WAIT_S)
    running.control().wait_idle(WAIT_S)
    final = predictor.predict(images(2))
    seen.append((final.version, final.seq))
    assert seen == sorted(seen)
    assert final.seq == 400
    assert len(dict(seen)) == len(set(seen)), "each version belongs to one sequence number"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (np.zeros((1, 15), np.uint8), "bad_shape"),
        (np.full((1, INPUTS), np.nan, np.float32), "not_finite"),
        (np.full((1, INPUTS), 255.0), "value_out_of_range"),
        (np.zeros((4097, INPUTS), np.uint8), "too_large"),
    ],
)
def test_a_bad_query_is_rejected_and_the_next_one_is_answered(daemon: Running, query: Any, code: str) -> None:
    predictor = daemon.predictor()
    with pytest.raises(FFStreamError) as caught:  # raised by the client, which knows the limits
        predictor.predict(query)
    assert caught.value.code == code
    assert caught.value.hint
    peer = daemon.peer("predict")
    images_of = query.astype("<f4") if query.dtype.kind == "f" else query
    peer.send(
        "predict",
        images_of.tobytes(),
        id=1,
        count=len(query),
        dtype=str(images_of.dtype),
        shape=list(query.shape[1:]),
    )
    assert peer.answer()["code"] == code
    assert daemon.metric("messages_rejected_total", reason=code) == 1
    assert len(predictor.predict(images(1)).labels) == 1


@pytest.mark.parametrize("shape", [(INPUTS,), (4, 4), (1, 4, 4), (1, INPUTS)])
def test_one_image_is_answered_with_and_without_a_batch_axis(daemon: Running, shape: tuple[int, ...]) -> None:
    answer = daemon.predictor().predict(images(1).reshape(shape))
    assert (answer.labels.shape, answer.goodness.shape) == ((1,), (1, 4))


@pytest.mark.parametrize("shape", [(0, INPUTS), (1, 0), (), (1, 2, 8), (1, 1, 4, 4)])
def test_a_query_with_an_impossible_shape_is_not_sent(daemon: Running, shape: tuple[int, ...]) -> None:
    predictor = daemon.predictor()
    with pytest.raises(BadShape) as caught:
        predictor.predict(np.zeros(shape, np.uint8))
    assert caught.value.hint
    assert len(predictor.predict(images(1)).labels) == 1
