"""A complete daemon in this process, and real clients over real sockets."""

import json
import logging
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from ffstream import __version__
from ffstream.client.producer import Refused
from ffstream.daemon.daemon import Daemon
from ffstream.errors import (
    BadShape,
    CheckpointIncompatible,
    DeadlineExceeded,
    FFStreamError,
    JournalDamaged,
    JournalIncompatible,
    RequestRefused,
    StageFailed,
    StartBlocked,
)
from ffstream.metrics import Gauge
from ffstream.server.http import HttpServer
from tests import wire_spec
from tests.harness.daemon_directory import free_port
from tests.in_process import INPUTS, Peer, Running, config, images, labels
from tests.support import Watch, hold_at, wait_until

WAIT_S = 30.0


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons, by default on the same state folder. They are stopped at the end of the test."""
    started: list[Running] = []

    def make(*settings: str, name: str = "state") -> Running:
        started.append(Running(tmp_path / name, *settings))
        return started[-1]

    yield make
    for each in started:
        each.__exit__()


@pytest.fixture
def daemon(start: Start) -> Running:
    return start()


def feed(running: Running, count: int, *, seed: int = 0, batch: int = 8) -> None:
    """Sends samples and waits until they are learned."""
    producer = running.producer()
    for at in range(0, count, batch):
        size = min(batch, count - at)
        producer.send(images(size, seed + at), labels(size, seed + at))
    producer.flush(WAIT_S)
    running.control().wait_idle(WAIT_S)


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
    refused: list[Refused] = []
    producer = daemon.producer(client="me", start_at=1, on_refused=refused.append)
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


# --- control --------------------------------------------------------------------------------------------------------


def test_the_status_has_the_keys_that_scripts_read(daemon: Running) -> None:
    before = daemon.control().status()
    assert before["prequential_error"] is before["prequential_error_total"] is None
    feed(daemon, 40)
    wait_until(lambda: daemon.control().status()["prequential_error"] is not None, WAIT_S, "samples are evaluated")
    status = daemon.control().status()
    keys = {"accepted", "learned", "applied_seq", "prequential_error", "prequential_error_total", "phase", "stages"}
    keys |= {"prequential_window_samples"}
    assert keys <= set(status)
    assert (status["state"], status["version"], status["phase"]) == ("ready", __version__, "interleaved")
    assert 0 <= status["prequential_error"] <= 1
    assert 0 <= status["prequential_error_total"] <= 1
    assert [stage["name"] for stage in status["stages"]] == ["ff-stage-0", "ff-stage-1"]
    assert [stage["layers"] for stage in status["stages"]] == [[0], [1]]
    assert status["endpoints"] == {
        "learn": daemon.daemon.learn.endpoint,
        "predict": daemon.daemon.predict.endpoint,
        "control": daemon.daemon.control.endpoint,
        "http": daemon.daemon.http.address,
    }
    assert status["checkpoint_seq"] == 0
    assert status["snapshot"]["age_s"] >= 0


def known_commands(running: Running) -> set[str]:
    with pytest.raises(RequestRefused) as caught:
        running.control().request("no such command")
    assert caught.value.remote_code == "bad_header"
    return set(re.findall(r"\w+", caught.value.hint.removeprefix("known commands are")))


def test_the_daemon_knows_exactly_the_commands_of_the_specification(daemon: Running) -> None:
    assert known_commands(daemon) == wire_spec.commands()


def test_a_paused_daemon_acks_and_predicts_but_does_not_learn_until_it_is_resumed(daemon: Running) -> None:
    control = daemon.control()
    assert control.request("pause") == {"paused": True}
    producer = daemon.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    assert (control.status()["state"], control.status()["backlog"]) == ("paused", 8)
    assert daemon.metric("learning_paused") == 1
    for command in ("wait_idle", "drain"):
        with pytest.raises(RequestRefused, match="paused, and 8 samples are not learned") as caught:
            control.request(command, {"timeout_s": 3600})
        assert (caught.value.remote_code, caught.value.hint) == ("paused", "ffstream resume, then again")
    assert control.status()["state"] == "paused", "a rejected drain must not change the state"
    assert len(daemon.predictor().predict(images(1)).labels) == 1, "predictions continue"
    assert control.request("resume") == {"paused": False}
    assert control.wait_idle(WAIT_S)["learned"] == 8
    assert control.status()["state"] == "ready"
    assert daemon.metric("learning_paused") == 0


def test_learning_stays_paused_after_a_restart(start: Start) -> None:
    running = start()
    feed(running, 40)
    running.control().request("pause")
    for _ in range(2):
        running.restart()
        status = running.control().status()
        assert (status["state"], status["paused"], status["learned"]) == ("paused", True, 40)
        assert running.metric("learning_paused") == 1
    producer = running.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    assert running.control().status()["backlog"] == 8
    running.control().request("resume")
    assert running.control().wait_idle(WAIT_S)["learned"] == 48
    running.restart()
    assert running.control().status()["state"] == "ready"


def test_a_paused_daemon_that_has_learned_everything_can_be_drained(daemon: Running) -> None:
    feed(daemon, 40)
    daemon.control().request("pause")
    assert daemon.control().request("drain")["learned"] == 40


def test_wait_idle_fails_at_its_deadline(daemon: Running, watched: Watch) -> None:
    reached, release = hold_at("learned", watched, WAIT_S)
    producer = daemon.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    assert reached.wait(WAIT_S)
    with pytest.raises(RequestRefused, match=r"8 samples are not learned after 0\.05 s") as caught:
        daemon.control().wait_idle(0.05)
    assert caught.value.remote_code == "deadline_exceeded"
    release.set()
    assert daemon.control().wait_idle(WAIT_S)["learned"] == 8


@pytest.mark.parametrize("timeout", [-1, "soon", None, 1e9, float("nan"), [1]])
def test_wait_idle_rejects_an_invalid_timeout(daemon: Running, timeout: Any) -> None:
    with pytest.raises(RequestRefused) as caught:
        daemon.control().request("wait_idle", {"timeout_s": timeout})
    assert (caught.value.remote_code, caught.value.hint) == ("bad_header", "0 to 86400")


def test_wait_idle_returns_at_once_when_the_daemon_is_idle(daemon: Running) -> None:
    assert daemon.control().wait_idle(0)["learned"] == 0


def test_many_waiting_clients_do_not_block_other_requests(daemon: Running, watched: Watch) -> None:
    _, release = hold_at("learned", watched, WAIT_S)
    producer = daemon.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    waiting = daemon.peer("control")
    for id in range(20):
        waiting.send("request", id=id, command="wait_idle", arguments={"timeout_s": 60})
    assert daemon.control().status()["backlog"] == 8
    release.set()
    assert {waiting.answer()["id"] for _ in range(20)} == set(range(20))


def test_a_checkpoint_is_written_on_request(daemon: Running) -> None:
    feed(daemon, 40)
    control = daemon.control()
    result = control.request("checkpoint")
    assert result["seq"] == 40
    assert result["bytes"] > 1000
    assert daemon.daemon.learner.checkpoints.store.seqs() == [40]
    assert control.status()["checkpoint_seq"] == 40
    assert control.request("checkpoint")["seq"] == 40, "a second request without new samples is no error"
    assert daemon.metric("checkpoint_last_seq") == 40
    assert daemon.metric("checkpoint_bytes") == result["bytes"]
    assert daemon.metric("checkpoint_failures_total") == 0


def test_all_of_several_checkpoint_requests_are_answered(daemon: Running) -> None:
    producer = daemon.producer()
    peer = daemon.peer("control")
    for id in range(30):
        producer.send(images(8, id), labels(8, id))
        peer.send("request", id=id, command="checkpoint", arguments={"timeout_s": WAIT_S})
    producer.flush(WAIT_S)
    answers = [peer.answer(2 * WAIT_S) for _ in range(30)]
    assert {answer["type"] for answer in answers} == {"reply"}
    assert {answer["id"] for answer in answers} == set(range(30))


def test_a_later_checkpoint_answers_a_request_for_an_earlier_one(
    daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written before the waiting thread polls for the earlier one."""
    control = daemon.control()
    feed(daemon, 40)
    control.request("checkpoint")
    earlier: Future[int] = Future()
    earlier.set_result(24)
    monkeypatch.setattr(daemon.daemon.learner.run.pipeline, "request_checkpoint", lambda: earlier)
    assert control.request("checkpoint", {"timeout_s": 1.0})["seq"] == 40


def test_a_failed_checkpoint_is_reported_and_learning_continues(daemon: Running) -> None:
    feed(daemon, 8)
    folder = daemon.state / "checkpoints"
    folder.rename(daemon.state / "away")
    with pytest.raises(RequestRefused) as caught:
        daemon.control().request("checkpoint")
    assert caught.value.remote_code == "unavailable"
    assert daemon.metric("checkpoint_failures_total") == 1
    (daemon.state / "away").rename(folder)
    feed(daemon, 8, seed=1)
    assert daemon.control().request("checkpoint")["seq"] == 16


def test_regular_checkpoints_are_written_and_the_journal_is_trimmed(start: Start) -> None:
    running = start("checkpoint.every_samples=40", "checkpoint.keep=2", "checkpoint.ladder_s=[]")
    store = running.daemon.learner.checkpoints.store
    for seed in range(4):
        feed(running, 80, seed=1000 * seed)
    wait_until(lambda: (store.seqs() or [0])[-1] >= 280, WAIT_S, "checkpoints are written")
    assert len(store.seqs()) <= 3
    oldest = store.seqs()[0]
    wait_until(lambda: running.stored()[0][2] > oldest - 8, WAIT_S, "rows below the oldest one are deleted")
    assert running.stored()[-1][2:] == (313, 8)


def test_the_config_command_returns_the_effective_options(start: Start) -> None:
    running = start("checkpoint.keep=7")
    options = running.control().request("config")["config"]
    assert options["checkpoint"]["keep"] == 7
    assert [layer["connection"]["units"] for layer in options["network"]["layers"]] == [32, 32]


def test_the_stop_command_ends_the_daemon_with_a_checkpoint(daemon: Running) -> None:
    feed(daemon, 40)
    assert daemon.control().request("stop") == {"stopping": True}
    thread = threading.Thread(target=daemon.daemon.wait)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    daemon.stop()
    assert daemon.daemon.learner.checkpoints.store.seqs() == [40]


def test_a_drain_rejects_new_samples_learns_the_acked_ones_and_stops(daemon: Running, watched: Watch) -> None:
    control = daemon.control()
    _, release = hold_at("learned", watched, WAIT_S)
    producer = daemon.producer()
    producer.send(images(40), labels(40))
    producer.flush(WAIT_S)
    peer, drain = daemon.peer(), daemon.peer("control")
    drain.send("request", id=1, command="drain", arguments={"timeout_s": WAIT_S})
    wait_until(lambda: control.status()["state"] == "draining", WAIT_S, "it is draining")
    peer.samples(1)
    answer = peer.answer()
    assert (answer["code"], answer["retry"]) == ("draining", True)
    release.set()
    result = drain.answer()
    assert (result["type"], result["result"]["learned"]) == ("reply", 40)
    thread = threading.Thread(target=daemon.daemon.wait)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("timeout_s", ["soon", -1, float("nan")])
def test_a_rejected_drain_does_not_change_the_state(daemon: Running, timeout_s: object) -> None:
    control = daemon.control()
    with pytest.raises(RequestRefused, match="timeout_s"):
        control.request("drain", {"timeout_s": timeout_s})
    assert control.status()["state"] == "ready"
    feed(daemon, 40)
    assert control.status()["learned"] == 40


# --- HTTP -----------------------------------------------------------------------------------------------------------


def get(running: Running, path: str) -> httpx.Response:
    return httpx.get(f"http://{running.daemon.http.address}{path}", trust_env=False, timeout=WAIT_S)


def test_every_metric_has_its_type_a_value_and_base_units(daemon: Running) -> None:
    feed(daemon, 32)
    daemon.peer().send_frames(b"nonsense")
    daemon.control().request("checkpoint")
    feed(daemon, 8, seed=32)
    wait_until(lambda: daemon.metric("messages_rejected_total", reason="bad_header"), WAIT_S, "it is counted")
    families = {family.name: family for family in text_string_to_metric_families(get(daemon, "/metrics").text)}
    defined = [each for each in vars(daemon.daemon.metrics).values() if isinstance(each, MetricWrapperBase | Gauge)]
    assert len(defined) > 30
    for metric in defined:
        (described,) = metric.describe()
        family = families[described.name]
        assert family.type == described.type
        assert family.documentation == described.documentation
        assert family.documentation.endswith(".")
        if metric is not daemon.daemon.metrics.output_dropped:  # `ffstream serve` sets it
            assert family.samples, f"{family.name} has no value"
        assert family.name.startswith("ffstream_")
        if isinstance(metric, Counter):
            assert all(each.name.endswith(("_total", "_created")) for each in family.samples)
        else:
            assert not family.name.endswith("_total")
        assert not re.search(r"_(ms|us|milliseconds|kb|mb|percent|minutes|count)$", family.name)
    text = get(daemon, "/metrics").text
    assert 'ffstream_build_info{python="' in text
    assert f'version="{__version__}"' in text
    assert "ffstream_applied_seq 40.0" in text
    assert "ffstream_samples_learned_total 40.0" in text
    assert 'ffstream_phase{phase="interleaved"} 1.0' in text


def test_the_page_shows_only_keys_of_the_status(daemon: Running) -> None:
    feed(daemon, 8)
    assert get(daemon, "/status").json()["learned"] == 8
    page = get(daemon, "/")
    assert page.headers["content-type"].startswith("text/html")
    keys = set(re.findall(r"\bs\.(\w+)", page.text)) | set(re.findall(r"\bstage\.(\w+)", page.text))
    status = daemon.control().status()
    assert keys <= set(status) | set(status["stages"][0]) | {"textContent"}


def test_health_and_both_kinds_of_readiness_follow_pause_and_drain(daemon: Running, watched: Watch) -> None:
    def probe(path: str) -> tuple[int, str]:
        answer = get(daemon, path)
        return answer.status_code, answer.text.strip()

    assert probe("/readyz") == probe("/readyz/learn") == (200, "ready")
    daemon.control().request("pause")
    assert probe("/readyz") == probe("/readyz/learn") == (200, "ready, learning is paused")
    daemon.control().request("resume")
    # While a stage is held, an acked sample is not learned, so the drain does not end.
    _, release = hold_at("learned", watched, WAIT_S)
    peer = daemon.peer()
    peer.samples(1)
    peer.acked(1)
    daemon.peer("control").send("request", id=1, command="drain", arguments={"timeout_s": WAIT_S})
    wait_until(lambda: probe("/readyz/learn")[0] == 503, WAIT_S, "it rejects samples")
    assert probe("/readyz/learn")[1].startswith("draining: ")
    assert probe("/readyz") == (200, "ready, the daemon is draining: no more samples are accepted")
    assert len(daemon.predictor().predict(images(3)).labels) == 3
    assert probe("/healthz") == (200, "ok")
    release.set()


def test_a_daemon_with_a_thread_that_dies_during_its_start_is_never_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = StageFailed("ff-stage-0 died", hint="see the log")
    start = HttpServer.start

    daemon = Daemon(config(tmp_path / "state"))

    def start_late(server: HttpServer) -> None:
        start(server)
        daemon._fail(dead)

    monkeypatch.setattr(HttpServer, "start", start_late)
    with pytest.raises(StageFailed, match="ff-stage-0 died"):
        daemon.start()
    assert daemon.state == "failed"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ff-")]


def test_a_daemon_with_a_dead_thread_is_unhealthy_and_stops_with_its_error(daemon: Running) -> None:
    feed(daemon, 8)
    peer = daemon.peer()
    peer.samples(1)
    peer.acked(1)

    def fail(*arguments: object) -> None:
        raise RuntimeError("an unexpected error")

    daemon.daemon.learner.run.pipeline.stages[0].layers[0].update = fail  # type: ignore[method-assign]
    peer.samples(2)
    wait_until(lambda: get(daemon, "/healthz").status_code == 503, WAIT_S, "it is unhealthy")
    for path in ("/readyz", "/readyz/learn"):
        assert get(daemon, path).status_code == 503
        assert get(daemon, path).text.startswith("failed: ")
    daemon.daemon.wait()
    with pytest.raises(FFStreamError, match="an unexpected error"):
        daemon.stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ff-stage")]


def test_a_stuck_http_thread_stops_the_daemon_and_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start("pipeline.stall_timeout_s=6")  # long enough that no other thread seems stuck on a slow machine
    release = threading.Event()

    def rejection_reason() -> None:
        if threading.current_thread().name == running.daemon.http.name:  # ff-learn calls it, too
            release.wait(WAIT_S)

    monkeypatch.setattr(running.daemon.admission, "rejection_reason", rejection_reason)
    host, _, port = running.daemon.http.address.rpartition(":")
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: here\r\n\r\n")
        running.daemon.wait()
        assert running.daemon.state == "failed"
        release.set()
    with pytest.raises(StageFailed, match="ff-http made no progress"):
        running.stop()


def test_a_stuck_socket_thread_stops_the_daemon_and_is_named(start: Start) -> None:
    """Otherwise a daemon that answers no query would seem healthy."""
    running = start("pipeline.stall_timeout_s=6")  # long enough that no other thread seems stuck on a slow machine
    release = threading.Event()

    def never_return(batch: object) -> None:
        release.wait(WAIT_S)

    running.daemon.predict.handle = never_return  # type: ignore[method-assign]
    running.peer("predict").send("predict", bytes(INPUTS), id=1, count=1, dtype="uint8", shape=[INPUTS])
    running.daemon.wait()
    assert running.daemon.state == "failed"
    release.set()
    with pytest.raises(StageFailed, match="ff-predict made no progress"):
        running.stop()


def test_a_daemon_that_does_not_stop_in_time_keeps_the_lock_on_its_state_folder(start: Start) -> None:
    """Its threads may still write, so no other daemon may use the folder before the process has ended."""
    running = start()
    steps = running.daemon._shutdown._steps
    steps[:] = [step._replace(end=lambda timeout_s: False) if step.name == "checkpoint" else step for step in steps]
    end = running.daemon.learner.checkpoints.writer.stop
    with pytest.raises(DeadlineExceeded, match="checkpoint"):
        running.stop()
    assert end(WAIT_S)
    with pytest.raises(StartBlocked, match="in use by another daemon"):
        Daemon(config(running.state)).start()
    running.daemon._lock.release()


# --- starting -------------------------------------------------------------------------------------------------------


def start_error(state: Path, *settings: str) -> FFStreamError:
    """The error of a start that fails."""
    daemon = Daemon(config(state, *settings))
    with pytest.raises(FFStreamError) as caught:
        daemon.start()
    assert caught.value.hint
    return caught.value


def test_two_daemons_cannot_use_the_same_state_folder(daemon: Running) -> None:
    assert isinstance(start_error(daemon.state), StartBlocked)
    feed(daemon, 8)


def test_two_daemons_cannot_listen_on_the_same_port(daemon: Running, tmp_path: Path) -> None:
    for name in wire_spec.SOCKETS:
        error = start_error(tmp_path / "other", f"listen.{name}={getattr(daemon.daemon, name).endpoint}")
        assert isinstance(error, StartBlocked)
        assert error.message.startswith("cannot listen on tcp://127.0.0.1:")
        assert error.message.endswith(f" (listen.{name}): Address already in use")
        assert f"stop it, or set listen.{name} to another address or port" in error.hint
    error = start_error(tmp_path / "other", f"listen.http={daemon.daemon.http.address}")
    assert isinstance(error, StartBlocked)
    assert error.message == f"cannot listen on {daemon.daemon.http.address} (listen.http): Address already in use"
    assert "stop it, or set listen.http to another address or port" in error.hint
    feed(daemon, 8)


def test_a_failed_start_can_be_repeated(tmp_path: Path, start: Start) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "journal.sqlite").write_text("not a database " * 100)
    for _ in range(2):
        assert isinstance(start_error(state), JournalDamaged), "the first failure has released the lock"
    (state / "journal.sqlite").unlink()
    feed(start(), 8)


def test_a_state_with_another_network_is_rejected(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    running = start()
    feed(running, 8)
    running.stop()
    assert "stopped late=none" in caplog.text
    caplog.clear()
    assert isinstance(start_error(running.state, "network.image_shape=[25]"), JournalIncompatible)
    error = start_error(running.state, "network.widths=[32]")
    assert isinstance(error, CheckpointIncompatible)
    assert "network.layers (how many) = 1, not 2" in error.message
    assert "stopped" not in caplog.text, "a daemon that never served does not log that it stopped"


def test_checkpoints_without_their_journal_are_rejected(start: Start) -> None:
    """Otherwise new samples would get sequence numbers that count as learned."""
    running = start()
    feed(running, 40)
    running.stop()
    for path in running.state.glob("journal.sqlite*"):
        path.unlink()
    error = start_error(running.state)
    assert isinstance(error, JournalDamaged)
    assert "checkpoint 40" in error.message


def test_a_daemon_starts_from_the_checkpoint_before_a_damaged_one_and_counts_it(start: Start) -> None:
    running = start()
    feed(running, 40)
    running.control().request("checkpoint")
    feed(running, 40, seed=1)
    before = running.predictor().predict(images(5))
    running.stop()
    newest = running.daemon.learner.checkpoints.store.folder / f"{80:020d}" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    again = start()
    assert again.metric("checkpoints_damaged_total") == 1
    assert again.control().wait_idle(WAIT_S)["learned"] == 80
    after = again.predictor().predict(images(5))
    assert after.seq == 80
    assert np.array_equal(after.goodness, before.goodness), "the same samples lead to the same weights"


def test_a_gap_in_the_journal_stops_the_daemon_with_an_error(start: Start) -> None:
    running = start()
    running.control().request("pause")
    producer = running.producer()
    for at in range(10):
        producer.send(images(8, at), labels(8, at))
    producer.flush(WAIT_S)
    connection = sqlite3.connect(running.state / "journal.sqlite")
    connection.execute("DELETE FROM messages WHERE first_seq = 41")
    connection.commit()
    connection.close()
    running.control().request("resume")
    running.daemon.wait()
    with pytest.raises(FFStreamError, match="samples 41 to 48 are missing"):
        running.stop()


def test_a_stopped_daemon_leaves_no_thread_and_no_open_port(start: Start) -> None:
    running = start()
    feed(running, 8)
    running.stop()
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("ff-")]
    assert [name for name in names if not name.startswith("ff-command")] == []
    for endpoint in (running.daemon.learn.endpoint, running.daemon.control.endpoint):
        with Peer(endpoint) as peer:
            peer.send("ping")
            with pytest.raises(AssertionError, match="no answer"):
                peer.answer(0.2)
    assert (
        json.loads((running.daemon.learner.checkpoints.store.folder / f"{8:020d}" / "manifest.json").read_text())[
            "seq"
        ]
        == 8
    )


# --- rollback -------------------------------------------------------------------------------------------------------


def test_a_rollback_does_not_interrupt_producers_and_predictors(start: Start) -> None:
    """Samples that are sent after the rollback are learned."""
    running = start("checkpoint.every_samples=40", "checkpoint.keep=100")
    producer, predictor, control = running.producer(), running.predictor(), running.control()
    answered: list[int] = []
    learned = 0
    stop = threading.Event()

    def predict() -> None:
        while not stop.is_set():
            answered.append(predictor.predict(images(1)).version)

    predicting = threading.Thread(target=predict)
    predicting.start()
    try:
        for at in range(60):
            producer.send(images(4, seed=at), labels(4, seed=at))
            if at == 20:
                producer.flush(WAIT_S)
                control.wait_idle(WAIT_S)
                control.request("checkpoint")  # a regular one may be replaced by a later one
            if at == 40:
                producer.flush(WAIT_S)
                learned = control.wait_idle(WAIT_S)["learned"]
                back = control.request("rollback", {"to": 90, "later": "skip"})
                assert (back["first"], back["last"], back["later"]) == (91, learned, "skipped")
        producer.flush(WAIT_S)
        status = control.wait_idle(WAIT_S)
    finally:
        stop.set()
        predicting.join(WAIT_S)
    assert (status["accepted"], status["applied_seq"]) == (240, 240)
    assert status["learned"] == 240 - status["skipped"] == 240 - (learned - 90)
    assert answered == sorted(answered), "versions only increase"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"to": -1},
        {"to": "7"},
        {"to": True},
        {"to": 1.0},
        *({"to": 0, "later": later} for later in ("forget", None, ["skip"], {"skip": 1})),
    ],
)
def test_a_rollback_with_invalid_arguments_is_rejected(daemon: Running, arguments: dict[str, object]) -> None:
    with pytest.raises(RequestRefused) as caught:
        daemon.control().request("rollback", arguments)
    assert caught.value.remote_code == "bad_header"
    assert caught.value.hint
