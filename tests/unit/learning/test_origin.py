"""A new stream that begins from given weights."""

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ffstream.checkpoint import weights
from ffstream.checkpoint.store import CheckpointStore
from ffstream.client import Control, Predictor, Producer
from ffstream.config import Config
from ffstream.daemon import backup
from ffstream.daemon.daemon import Daemon
from ffstream.errors import (
    CheckpointDamaged,
    CheckpointIncompatible,
    ConfigError,
    JournalDamaged,
    SequenceUnknown,
)
from ffstream.ff.network import Network
from ffstream.journal import origin
from ffstream.journal.journal import Journal
from ffstream.learning.checkpoints import open_store
from ffstream.learning.origin import StreamOrigin
from ffstream.learning.recovery import find_resume_state, reach
from ffstream.metrics import Metrics
from tests import in_process
from tests.battery import assert_equal

DEADLINE_S = 120.0  # for a loaded machine
SETTINGS = ("learning.partial=wait", f"shutdown.drain_timeout_s={DEADLINE_S}")
IMAGES, LABELS = in_process.images(64), in_process.labels(64)


def trained(config: Config, seed: int = 0) -> Network:
    network = Network(config.network)
    images_BI = torch.from_numpy(in_process.images(64, seed))
    for step in range(8):
        network.learn(images_BI[8 * step : 8 * step + 8], torch.from_numpy(LABELS[8 * step : 8 * step + 8]), step)
    return network


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return in_process.config(tmp_path / "state", *SETTINGS)


@pytest.fixture
def source(tmp_path: Path, config: Config) -> Path:
    path = tmp_path / "weights.safetensors"
    weights.export(weights.of_network(trained(config), seq=64), path)
    return path


@contextmanager
def serving(config: Config, source: Path | None) -> Iterator[Daemon]:
    daemon = Daemon(config, start_from=source)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


def learn(daemon: Daemon, first: int = 0, last: int = 64) -> None:
    with Producer(daemon.learn.endpoint, client="one", connect_timeout_s=DEADLINE_S) as producer:
        producer.send(IMAGES[first:last], LABELS[first:last])
    with Control(daemon.control.endpoint) as control:
        control.wait_idle(DEADLINE_S)


def test_it_predicts_with_these_weights_before_the_first_sample(config: Config, source: Path) -> None:
    with serving(config, source) as daemon:
        want = weights.load(source).network().classifier().predict(torch.from_numpy(IMAGES))
        with Predictor(daemon.predict.endpoint) as predictor:
            assert np.array_equal(predictor.predict(IMAGES, DEADLINE_S).labels, want.labels_B.numpy())
        status = daemon.reports.status()
        assert (status["accepted"], status["learned"], status["checkpoint_seq"]) == (0, 0, 0)


def test_learning_equals_that_of_a_network_that_was_given_the_weights(config: Config, source: Path) -> None:
    """Warm-up, the schedule and the optimiser begin as in any new stream."""
    network = weights.load(source).network()
    at = step = 0
    while at < 64:
        end = config.network.batch_end(at)
        network.learn(torch.from_numpy(IMAGES[at:end]), torch.from_numpy(LABELS[at:end]), step := step + 1)
        at = end
    with serving(config, source) as daemon:
        learn(daemon)
        seq = daemon.learner.checkpoint(DEADLINE_S).seq
        assert seq == 64
    found = weights.of_checkpoint(config.state / "checkpoints" / f"{64:020d}")
    assert_equal(found.tensors, network.weights())


@pytest.mark.parametrize("which", ["checkpoint", "state folder"])
def test_a_checkpoint_and_a_state_folder_hold_weights_too(tmp_path: Path, source: Path, which: str) -> None:
    first = in_process.config(tmp_path / "first", *SETTINGS)
    with serving(first, None) as daemon:
        learn(daemon)
    here = first.state if which == "state folder" else first.state / "checkpoints" / f"{64:020d}"
    second = in_process.config(tmp_path / "second", *SETTINGS, "network.learning_rate=0.5")
    with serving(second, here):
        pass
    found = weights.of_checkpoint(second.state / "checkpoints" / f"{0:020d}")
    assert_equal(found.tensors, weights.load(first.state).tensors)


# --- restarts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["is there", "is gone", "has changed", "has moved"])
@pytest.mark.parametrize("samples", [0, 64])
def test_a_restart_with_the_same_command_line_goes_on(
    config: Config, source: Path, tmp_path: Path, file: str, samples: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(config, source) as daemon:
        if samples:
            learn(daemon)
    if file == "is gone":
        source.unlink()
    elif file == "has changed":
        weights.export(weights.of_network(trained(config, seed=5)), source, overwrite=True)
    elif file == "has moved":
        source = source.rename(tmp_path / "moved.safetensors")
    with caplog.at_level(logging.INFO), serving(config, source) as daemon:
        assert daemon.learner.applied_seq == samples
    assert f"state exists, --from is not used source={source}" in caplog.text


@pytest.mark.parametrize("option", ["with --from", "without"])
def test_recovery_does_not_need_the_file(config: Config, source: Path, option: str) -> None:
    with serving(config, source):
        pass
    want = weights.load(source)
    source.unlink()
    with serving(config, source if option == "with --from" else None) as daemon:
        assert_equal(dict(daemon.learner.snapshots.current.classifier.weights), want.tensors)


def test_a_crash_before_the_first_checkpoint_begins_from_the_weights_again(
    config: Config, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.state.mkdir(0o700)
    journal = Journal(config.state / "journal.sqlite", inputs=16, labels=4)

    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            StreamOrigin(source, config).begin(journal, open_store(config))
    journal.close()
    without = Daemon(config)
    with pytest.raises(CheckpointDamaged, match="there is no whole checkpoint to begin at") as caught:
        without.start()
    assert caught.value.hint == f"start again with --from {source}, or use another --state folder"
    with serving(config, source) as daemon:
        assert_equal(dict(daemon.learner.snapshots.current.classifier.weights), weights.load(source).tensors)


def test_a_stream_without_a_whole_checkpoint_never_begins_from_random_weights(config: Config, source: Path) -> None:
    """All its samples are in the journal, so it could; and nobody would notice."""
    with serving(config, source) as daemon:
        learn(daemon)
    shutil.rmtree(config.state / "checkpoints")
    for again in (None, source):
        daemon = Daemon(config, start_from=again)
        with pytest.raises(CheckpointDamaged, match=r"began from the weights in .*, and there is no") as caught:
            daemon.start()
        assert caught.value.hint.startswith("restore a checkpoint or a backup")


def test_a_damaged_first_checkpoint_without_samples_is_written_again(config: Config, source: Path) -> None:
    """As the hint of the start without --from says."""
    with serving(config, source):
        pass
    (config.state / "checkpoints" / f"{0:020d}" / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match="no whole checkpoint to begin at") as caught:
        Daemon(config).start()
    assert caught.value.hint.startswith(f"start again with --from {source}")
    with serving(config, source) as daemon:
        assert_equal(dict(daemon.learner.snapshots.current.classifier.weights), weights.load(source).tensors)


def test_a_damaged_journal_is_named_and_not_its_origin(config: Config, source: Path) -> None:
    with serving(config, source):
        pass
    with closing(sqlite3.connect(config.state / "journal.sqlite")) as connection:
        connection.execute("DROP TABLE origin")
        connection.commit()
    with pytest.raises(JournalDamaged, match="origin"):
        Daemon(config, start_from=source).start()


def test_a_backup_without_a_checkpoint_is_rejected(config: Config, source: Path, tmp_path: Path) -> None:
    """The journal has all samples, but not the weights they were learned from."""
    with serving(config, source) as daemon:
        learn(daemon)
    shutil.rmtree(config.state / "checkpoints")
    with pytest.raises(CheckpointDamaged, match="no whole checkpoint in"):
        backup.make(config.state, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_backup_before_the_first_sample_holds_the_weights(config: Config, source: Path, tmp_path: Path) -> None:
    with serving(config, source):
        backup.make(config.state, tmp_path / "backup")
    restored = in_process.config(tmp_path / "backup", *SETTINGS)
    with serving(restored, None) as daemon:
        assert_equal(dict(daemon.learner.snapshots.current.classifier.weights), weights.load(source).tensors)


def test_a_rollback_to_0_needs_the_first_checkpoint(config: Config, source: Path) -> None:
    with serving(config, source) as daemon:
        learn(daemon)
        daemon.learner.rollback(0, skip=True)
        assert_equal(dict(daemon.learner.snapshots.current.classifier.weights), weights.load(source).tensors)
    shutil.rmtree(config.state / "checkpoints" / f"{0:020d}")
    with closing(Journal(config.state / "journal.sqlite", inputs=16, labels=4)) as journal:
        store = open_store(config)
        with pytest.raises(SequenceUnknown, match="there is no checkpoint at or before 0"):
            find_resume_state(store, journal, Metrics(), 0)
        assert reach(store, journal).rollback_from == 64


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_stream_that_began_otherwise_is_not_replaced(config: Config, source: Path, tmp_path: Path) -> None:
    with serving(config, None) as daemon:
        learn(daemon)
    refused = Daemon(config, start_from=source)
    with pytest.raises(ConfigError, match="did not begin from weights") as caught:
        refused.start()
    assert "leave --from out" in caught.value.hint
    assert str(source) in caught.value.message


def test_a_stream_that_began_from_other_weights_is_not_replaced(config: Config, source: Path, tmp_path: Path) -> None:
    with serving(config, source):
        pass
    other = tmp_path / "other.safetensors"
    weights.export(weights.of_network(trained(config, seed=5)), other)
    refused = Daemon(config, start_from=other)
    with pytest.raises(ConfigError, match=f"began from other weights, {source}"):
        refused.start()
    with serving(config, source) as daemon, pytest.raises(ConfigError, match="began from other weights"):
        Daemon(config, start_from=other).stand_by()
    assert daemon.failure is None


def test_a_state_without_samples_may_begin_from_weights(config: Config, source: Path) -> None:
    with serving(config, None):
        pass
    with serving(config, source) as daemon:
        assert_equal(dict(daemon.learner.snapshots.current.classifier.weights), weights.load(source).tensors)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("network.widths=[32,8]", r"network.layers\[1\].connection.units = 8, not 32"),
        ("network.labels=5", "network.labels = 5, not 4"),
        ("network.image_shape=[16]", r"network.image_shape = \[16\], not \[4, 4\]"),
    ],
)
def test_weights_of_another_network_are_refused_before_a_state_is_made(
    tmp_path: Path, source: Path, setting: str, said: str
) -> None:
    config = in_process.config(tmp_path / "state", setting)
    refused = Daemon(config, start_from=source)
    with pytest.raises(CheckpointIncompatible, match=said) as caught:
        refused.start()
    assert caught.value.message.startswith(f"--from: the weights in {source}")
    assert not config.state.exists()


def test_damaged_weights_are_refused_before_a_state_is_made(config: Config, source: Path) -> None:
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    source.write_bytes(content)
    for path, said in ((source, "wrong checksum"), (source.with_name("none"), "there are no weights at")):
        refused = Daemon(config, start_from=path)
        with pytest.raises(ConfigError, match=said):
            refused.start()
    assert not config.state.exists()


def test_the_journal_records_the_origin(config: Config, source: Path) -> None:
    with serving(config, source):
        pass
    with closing(Journal(config.state / "journal.sqlite", inputs=16, labels=4)) as journal:
        assert journal.origin == origin.Origin(str(source), weights.load(source).checksum())
