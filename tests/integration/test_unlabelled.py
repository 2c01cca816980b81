"""Samples without a label: a daemon whose network needs no labels learns them, others reject them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ffstream.cli import main
from ffstream.client import UNLABELLED
from ffstream.data.idx import write_idx
from ffstream.errors import LabelRequired
from tests.in_process import WAIT_S, Running, images, labels
from tests.support import wait_until

SETTINGS = (
    'network.negatives={kind="hybrid",blurs=1}',
    "network.label_scheme=none",
    'network.objective={kind="threshold",alpha=0.5,theta=1}',
    "network.readout=softmax",
    "network.replay=8",
    "prequential.busy_fraction=1",
    "prequential.queue_depth=100000",
)
SAMPLES = 240


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "state", *SETTINGS) as daemon:
        yield daemon


def send(running: Running, count: int, unlabelled: bool) -> None:
    """Sends samples; with `unlabelled`, every second one has no label."""
    producer = running.producer()
    for at in range(0, count, 8):
        known = labels(8, at)
        producer.send(images(8, at), np.where(np.arange(8) % 2, UNLABELLED, known) if unlabelled else known)
    producer.flush(WAIT_S)
    running.control().wait_idle(WAIT_S)


def test_samples_without_a_label_are_learned_and_left_out_of_the_prequential_error(running: Running) -> None:
    assert running.producer().welcome.unlabelled
    send(running, SAMPLES, unlabelled=True)
    status = running.control().status()
    assert status["learned"] == SAMPLES
    assert running.metric("samples_acked_total") == SAMPLES
    assert running.metric("samples_unlabelled_total") == SAMPLES / 2
    wait_until(lambda: running.metric("prequential_samples_total") == SAMPLES / 2, WAIT_S, "all are evaluated")


def test_a_stream_without_any_label_is_learned(running: Running) -> None:
    producer = running.producer()
    producer.send(images(16), None)
    producer.send(images(1)[0], None)
    producer.flush(WAIT_S)
    status = running.control().wait_idle(WAIT_S)
    assert status["learned"] == 17
    assert status["prequential_error"] is None


def test_a_restart_continues_with_samples_without_a_label_in_the_replay_buffer(running: Running) -> None:
    send(running, SAMPLES, unlabelled=True)
    running.control().request("checkpoint")
    running.restart()
    send(running, 80, unlabelled=True)
    assert running.control().status()["learned"] == SAMPLES + 80


def test_a_journal_with_samples_without_a_label_is_valid(running: Running) -> None:
    running.control().request("pause")
    producer = running.producer()
    producer.send(images(4), [0, None, 3, None])
    producer.flush(WAIT_S)
    result = CliRunner().invoke(main, ["journal", "verify", "--state", str(running.state)])
    assert result.exit_code == 0, result.output


def test_a_daemon_that_needs_labels_says_so_before_anything_is_sent(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        producer = running.producer()
        assert not producer.welcome.unlabelled
        with pytest.raises(LabelRequired, match="label") as caught:
            producer.send(images(2), [1, None])
        assert 'preset = "unsupervised"' in caught.value.hint
        peer = running.peer()
        peer.samples(1, labels=b"\xff\xff")
        answer = peer.answer()
        assert (answer["code"], answer["retry"]) == ("label_required", False)
        assert running.stored() == []


def test_replay_sends_a_fraction_of_the_labels(running: Running, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for prefix in ("train", "t10k"):
        write_idx(data / f"{prefix}-images-idx3-ubyte", images(100).reshape(-1, 4, 4))
        write_idx(data / f"{prefix}-labels-idx1-ubyte", labels(100).astype(np.uint8))
    arguments = ["replay", str(data), "--to", running.daemon.learn.endpoint, "--passes", "2", "--json"]
    result = CliRunner().invoke(main, [*arguments, "--label-fraction", "0.3"], catch_exceptions=False)
    assert json.loads(result.stdout)["acked"] == 200
    assert running.metric("samples_unlabelled_total") == 140


def test_replay_without_all_labels_needs_a_daemon_that_can_learn_so(tmp_path: Path) -> None:
    with Running(tmp_path / "state", "network.image_shape=[28,28]", "network.labels=10") as running:
        arguments = ["replay", "embedded", "--to", running.daemon.learn.endpoint, "--label-fraction", "0.5"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code != 0
        assert "without a label" in result.stderr
        assert running.stored() == []
