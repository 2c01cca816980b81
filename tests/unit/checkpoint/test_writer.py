import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.checkpoint.writer import CheckpointWriter, Written
from ffstream.errors import FFStreamError
from tests.support import Watch, hold_at, wait_until

DEADLINE_S = 30.0


class Bench:
    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(folder / "checkpoints", keep=5, recipe={})
        self.written: list[Written] = []
        self.writer = CheckpointWriter(self.store, self.written.append)
        self.writer.start()

    def submit(self, seq: int) -> None:
        self.writer.submit(Checkpoint(seq, {"x": torch.zeros(100)}, {}))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    assert bench.writer.stop(DEADLINE_S)


def test_a_submitted_checkpoint_is_written_and_reported(bench: Bench) -> None:
    bench.submit(1)
    wait_until(lambda: bench.written, DEADLINE_S, "the checkpoint is written")
    (written,) = bench.written
    assert (written.seq, written.error) == (1, None)
    assert written.bytes > 400
    assert written.seconds > 0
    assert bench.store.seqs() == [1]


def test_stop_writes_the_last_submitted_checkpoint(bench: Bench) -> None:
    for seq in (1, 2, 3):
        bench.submit(seq)
    assert bench.writer.stop(DEADLINE_S)
    assert bench.store.seqs()[-1] == 3
    assert [written.seq for written in bench.written] == bench.store.seqs()


def test_a_newer_checkpoint_replaces_one_that_waits(
    tmp_path: Path, watched: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, so this is not a warning."""
    writing, go_on = hold_at("checkpoint.write.after", watched, 30)
    bench = Bench(tmp_path)
    bench.submit(1)
    assert writing.wait(30)
    with caplog.at_level(logging.INFO):
        bench.submit(2)
        bench.submit(3)
    go_on.set()
    assert bench.writer.stop(30)
    assert bench.store.seqs() == [1, 3]
    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [
        ("INFO", "checkpoint replaced by a newer one, because the disk is slow seq=2 by=3")
    ]


def test_stop_has_a_deadline(tmp_path: Path, watched: Watch) -> None:
    slow = threading.Event()
    watched(lambda moment: slow.wait(DEADLINE_S) and None)
    store = CheckpointStore(tmp_path, keep=1, recipe={})
    writer = CheckpointWriter(store, lambda written: None)
    writer.start()
    writer.submit(Checkpoint(1, {"x": torch.zeros(1)}, {}))
    assert not writer.stop(0.05)
    slow.set()
    assert writer.stop(DEADLINE_S)
    assert store.seqs() == [1]


def test_settle_returns_false_after_the_thread_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1, recipe={})
    failures: list[FFStreamError] = []
    monkeypatch.setattr(store, "write", lambda *arguments: 1 / 0)
    writer = CheckpointWriter(store, lambda written: None, failures.append)
    writer.submit(Checkpoint(1, {"x": torch.zeros(1)}, {}))
    writer.start()
    assert not writer.settle(10 * DEADLINE_S)  # longer than a test may take
    assert writer.thread.join(DEADLINE_S)
    assert "ZeroDivisionError" in failures[0].message


def test_a_failed_write_is_reported_and_the_next_one_works(bench: Bench) -> None:
    bench.store.folder.rename(bench.store.folder.with_name("away"))
    bench.submit(1)
    wait_until(lambda: bench.written, DEADLINE_S, "the failure is told")
    assert isinstance(bench.written[0].error, OSError)
    bench.store.folder.mkdir()
    bench.submit(2)
    wait_until(lambda: len(bench.written) == 2, DEADLINE_S, "the next one is written")
    assert bench.written[1].error is None
    assert bench.store.seqs() == [2]


def test_settle_waits_for_a_removal_that_was_requested(tmp_path: Path) -> None:
    """Otherwise the thread would remove a checkpoint while a rollback uses it."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=1, recipe={}, ladder_s=[1.0, 1e9], max_bytes=1 << 30)
    writer = CheckpointWriter(store, lambda written: None)
    writer.shed()
    assert not writer.settle(0.01)
    writer.start()
    assert writer.settle(DEADLINE_S)
    assert writer.stop(DEADLINE_S)
