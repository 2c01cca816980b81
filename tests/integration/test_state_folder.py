"""State folders and ports that a daemon cannot use, or only in part, and what it leaves when it stops."""

import json
import logging
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from ffstream.daemon.daemon import Daemon
from ffstream.errors import (
    CheckpointIncompatible,
    FFStreamError,
    JournalDamaged,
    JournalIncompatible,
    StartBlocked,
)
from tests import wire_spec
from tests.in_process import WAIT_S, Peer, Running, Start, config, feed, images, labels


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
