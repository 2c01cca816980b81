"""When a resource runs out, new samples are rejected with a retryable error and predictions continue.

No acked sample is lost, and samples are accepted again once there is room. The resources really run out.
"""

import logging
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from ffstream.client.producer import Producer
from ffstream.config import Config, Limits
from ffstream.errors import DiskFull, RequestRefused, Unavailable
from ffstream.history.file import HISTORY, read
from ffstream.journal.clients import Receipt
from ffstream.journal.journal import Entry, Journal
from ffstream.learning.checkpoints import Checkpoints
from ffstream.metrics import Metrics
from ffstream.server.admission import Admission
from ffstream.server.housekeeping import Housekeeping
from ffstream.server.resources import Resources
from tests.in_process import INPUTS, Running, images, labels
from tests.support import Watch, hold_at, wait_until
from tests.unit.journal.entries import crash_image
from tests.unit.server.ingest import LIMITS

WAIT_S = 40.0
MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fills a file system except for `leave` bytes. Returns the file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    if leave:
        os.truncate(filler, filler.stat().st_size - leave)
    return filler


def readiness(running: Running) -> tuple[int, str]:
    """Status code and first word of /readyz/learn. Asserts that predictions are answered."""
    answers = [
        httpx.get(f"http://{running.daemon.http.address}/{path}", trust_env=False)
        for path in ("readyz", "readyz/learn")
    ]
    assert answers[0].status_code == 200
    return answers[1].status_code, answers[1].text.strip().partition(":")[0]


def rejects(running: Running, reason: str) -> Callable[[], bool]:
    return lambda: running.metric("refusing_samples", reason=reason) == 1


def send(producer: Producer, count: int, seed: int) -> None:
    for at in range(count):
        producer.send(images(8, seed=seed + at), labels(8, seed=seed + at))


def send_one(producer: Producer) -> None:
    """Sends 40 samples in one message. A second message would wait for credit."""
    producer.send(images(40, seed=5), labels(40, seed=5))


def assert_everything_is_learned(running: Running, producer: Producer, accepted: int) -> None:
    """Everything that was sent is acked and learned once."""
    producer.flush(WAIT_S)
    wait_until(lambda: running.daemon.admission.rejection_reason() is None, WAIT_S, "there is no shortage any more")
    status = running.control().wait_idle(WAIT_S)
    assert (status["accepted"], status["learned"], status["refusing"]) == (accepted, accepted, None)
    assert producer.counts.acked == accepted
    assert readiness(running) == (200, "ready")


def test_a_nearly_full_disk_rejects_samples_but_still_takes_checkpoints(small_disk: Path) -> None:
    """The reserve of `disk_min_free_bytes` is for checkpoints and for deletions from the journal."""
    with Running(small_disk / "state", f"limits.disk_min_free_bytes={8 * MIB}") as running:
        producer = running.producer()
        send(producer, 5, seed=0)
        producer.flush(WAIT_S)
        running.control().wait_idle(WAIT_S)
        filler = fill(small_disk, leave=4 * MIB)
        wait_until(rejects(running, "disk_full"), WAIT_S, "samples are rejected")
        send_one(producer)
        assert readiness(running) == (503, "disk_full")
        assert running.control().status()["refusing"] == "disk_full"
        assert len(running.predictor().predict(images(3)).labels) == 3
        assert running.control().request("checkpoint")["seq"] == 40
        filler.unlink()
        assert_everything_is_learned(running, producer, 80)


def test_a_completely_full_disk_rejects_samples_until_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Running(small_disk / "state", "limits.disk_min_free_bytes=0", "checkpoint.keep=2") as running:
        producer = running.producer()
        send(producer, 5, seed=0)
        producer.flush(WAIT_S)
        running.control().wait_idle(WAIT_S)
        filler = fill(small_disk)
        # After a second the daemon would measure again, and accept samples until the next commit fails.
        with monkeypatch.context() as held:
            held.setattr("ffstream.server.housekeeping._MEASURE_EVERY_S", 3 * WAIT_S)
            producer.send(images(160, seed=5), labels(160, seed=5))  # in one message, as in `send_one`
            wait_until(rejects(running, "disk_full"), WAIT_S, "a commit has failed")
            assert readiness(running) == (503, "disk_full")
            assert len(running.predictor().predict(images(3)).labels) == 3
            with pytest.raises(RequestRefused, match="could not be written"):
                running.control().request("checkpoint")
            assert running.metric("checkpoint_failures_total") == 1
        filler.unlink()
        assert_everything_is_learned(running, producer, 200)
        assert running.control().request("checkpoint")["seq"] == 200


def test_on_a_full_disk_the_history_goes_on_in_memory_until_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ffstream.learning.recorder._STORE_EVERY_S", 0.0)
    monkeypatch.setattr("ffstream.learning.recorder._RETRY_S", 0.0)
    caplog.set_level(logging.INFO)
    with Running(small_disk / "state", "limits.disk_min_free_bytes=0") as running:

        def recorded() -> list[float]:
            times: list[float] = running.daemon.recorder.history("10m")["columns"]["time"]
            return times

        path = running.state / HISTORY
        wait_until(path.exists, WAIT_S, "there is a file")
        filler = fill(small_disk)
        wait_until(lambda: "history is not stored, and continues in memory" in caplog.text, WAIT_S, "no room")
        before = len(recorded())
        wait_until(lambda: len(recorded()) >= before + 2, WAIT_S, "seconds are still recorded")
        assert len(running.predictor().predict(images(3)).labels) == 3
        assert running.daemon.failure is None
        filler.unlink()
        wait_until(lambda: "history is stored again" in caplog.text, WAIT_S, "there is room again")
        producer = running.producer()
        send(producer, 5, seed=0)
        assert_everything_is_learned(running, producer, 40)
    stored = read(path).document("10m")["columns"]
    assert stored["time"][: before + 2] == recorded()[: before + 2]
    assert stored["learned"][-1] == 40
    assert caplog.text.count("history is not stored") == 1


@pytest.mark.parametrize("ended", ["stopped", "killed"])
def test_a_journal_on_a_full_disk_is_unavailable_but_not_damaged(
    small_disk: Path, tmp_path: Path, ended: str
) -> None:
    path = small_disk / "journal.sqlite"
    with closing(Journal(path, inputs=INPUTS, labels=4)) as journal:
        journal.append([Entry("a", 1, 1, 1, "uint8", bytes(2), bytes(INPUTS))])
        image = crash_image(path, tmp_path / "image")
    if ended == "killed":
        shutil.copytree(image.parent, small_disk, dirs_exist_ok=True)
    filler = fill(small_disk)
    with pytest.raises(Unavailable, match=r"journal\.sqlite") as caught:
        Journal(path, inputs=INPUTS, labels=4)
    assert "free disk space" in caught.value.hint
    filler.unlink()
    with closing(Journal(path, inputs=INPUTS, labels=4)) as again:
        assert again.clients.receipt("a", 1) == Receipt(1, 1, 1)


def test_a_disk_filled_by_a_burst_accepts_samples_again_after_a_trim(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal file does not shrink, but new samples fit into the room of those that were deleted."""
    monkeypatch.setattr("ffstream.server.housekeeping._MEASURE_EVERY_S", 0.0)
    with closing(Journal(small_disk / "journal.sqlite", inputs=INPUTS, labels=4)) as journal:
        journal._db.execute("PRAGMA wal_autocheckpoint = 64")  # so that the WAL is small compared with this disk
        limits = Limits.model_validate(LIMITS | {"disk_min_free_bytes": 8 * MIB})
        metrics = Metrics()
        checkpoints = Checkpoints(Config(state=small_disk), metrics, lambda error: None)
        housekeeping = Housekeeping(journal, checkpoints, limits, Resources(small_disk, limits), metrics)
        admission = Admission(journal, limits, housekeeping, applied_seq=lambda: journal.head.seq, metrics=metrics)

        def send_until_rejected(n: int) -> int:
            housekeeping.turn()
            while admission.rejection_reason() is None:
                journal.append([Entry("a", n, n, 1, "uint8", bytes(2), bytes(MIB // 4))])
                n += 1
                housekeeping.turn()
            assert isinstance(admission.rejection_reason(), DiskFull)
            return n

        first = send_until_rejected(1)
        assert first > 40
        while journal.trim(first - 1):
            pass
        second = send_until_rejected(first)
        assert second - first > first / 2
        assert shutil.disk_usage(small_disk).free > 6 * MIB, "room for checkpoints"


def test_memory_over_its_limit_rejects_samples(tmp_path: Path) -> None:
    limit = psutil.Process().memory_info().rss + 300 * MIB
    with Running(tmp_path / "state", f"limits.memory_max_bytes={limit}", "limits.disk_min_free_bytes=0") as running:
        producer = running.producer()
        send(producer, 5, seed=0)
        producer.flush(WAIT_S)
        held = bytearray(b"x") * (500 * MIB)
        wait_until(rejects(running, "memory_full"), WAIT_S, "samples are rejected")
        send_one(producer)
        assert readiness(running) == (503, "memory_full")
        assert len(running.predictor().predict(images(3)).labels) == 3
        del held
        assert_everything_is_learned(running, producer, 80)


def test_a_journal_over_its_limit_rejects_samples_until_a_checkpoint_makes_room(
    tmp_path: Path, watched: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon takes this checkpoint by itself, before a regular one is due."""
    settings = (
        f"limits.journal_max_bytes={MIB}",
        "limits.disk_min_free_bytes=0",
        "network.image_shape=[784]",
        "network.batch_size=64",
        "network.warmup_samples=0",
        "checkpoint.every_samples=100000",
    )
    # Hold the checkpoint, or there would be room again before the assertions.
    written, go_on = hold_at("checkpoint.write.after", watched, 3 * WAIT_S)
    with Running(tmp_path / "state", *settings) as running:
        producer = running.producer()
        sent = 0

        def send_more() -> None:
            nonlocal sent
            producer.send(images(64 * 784 // INPUTS, seed=sent).reshape(64, 784), labels(64, seed=sent))
            sent += 64

        def is_full() -> bool:
            return running.daemon.admission.rejection_reason() is not None

        # One message at a time: all messages of a window would be stored beyond the limit, and must be learned.
        while not is_full():
            send_more()
            wait_until(lambda: is_full() or running.daemon.journal.head.seq == sent, WAIT_S, "the message is stored")
            assert sent < 64 * 30
        peer = running.peer()
        peer.samples(1, shape=[784], payload=[bytes(784)])  # the producer would not send without credit
        assert peer.answer()["code"] == "journal_full"
        assert written.wait(WAIT_S)
        wait_until(rejects(running, "journal_full"), WAIT_S, "samples are rejected")
        assert readiness(running) == (503, "journal_full")
        assert len(running.predictor().predict(images(49).reshape(1, 784)).labels) == 1
        go_on.set()
        assert_everything_is_learned(running, producer, sent)
    with Running(tmp_path / "state", *settings) as again:
        assert again.control().status()["learned"] == sent
    assert "damaged" not in caplog.text


def test_a_lack_of_descriptors_rejects_samples(tmp_path: Path) -> None:
    with Running(tmp_path / "state", "limits.disk_min_free_bytes=0") as running:
        producer = running.producer()
        send(producer, 5, seed=0)
        producer.flush(WAIT_S)
        predictor = running.predictor()
        predictor.predict(images(1))
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 4, before[1]))
        try:
            wait_until(rejects(running, "too_many_files"), WAIT_S, "samples are rejected")
            assert len(predictor.predict(images(3)).labels) == 3
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        wait_until(lambda: not rejects(running, "too_many_files")(), WAIT_S, "samples are accepted")
        send_one(producer)
        assert_everything_is_learned(running, producer, 80)


def test_a_locked_journal_rejects_samples_until_the_lock_is_released(tmp_path: Path) -> None:
    """Another program holds the write lock. Everything else is answered meanwhile, and no sample is lost."""
    with Running(tmp_path / "state", "limits.disk_min_free_bytes=0") as running:
        producer = running.producer()
        send(producer, 5, seed=0)
        producer.flush(WAIT_S)
        running.control().wait_idle(WAIT_S)
        seen: list[float] = []
        housekeeping = running.daemon.learn._housekeeping
        measure = housekeeping._measure

        def measure_and_record() -> None:
            measure()
            seen.append(running.metric("refusing_samples", reason="unavailable"))

        with closing(sqlite3.connect(running.state / "journal.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            send_one(producer)
            wait_until(rejects(running, "unavailable"), WAIT_S, "samples are rejected")
            housekeeping._measure = measure_and_record  # type: ignore[method-assign]
            for _ in range(5):  # each measurement tries the lock
                before = len(seen)
                housekeeping._measured_at = 0.0
                wait_until(lambda: len(seen) > before, WAIT_S, "it measures again")  # noqa: B023
            assert set(seen) == {1}
            assert running.control().status()["refusing"] == "unavailable"
            assert len(running.predictor().predict(images(3)).labels) == 3
            peer = running.peer()
            peer.send("ping")
            assert peer.answer()["credit"] == 0
        assert_everything_is_learned(running, producer, 80)


def test_a_long_read_of_the_journal_is_reported_and_its_wal_is_emptied_afterwards(tmp_path: Path) -> None:
    """SQLite cannot reset the WAL during the read. The WAL counts towards `journal_max_bytes`."""
    settings = (
        f"limits.journal_max_bytes={16 * MIB}",
        "limits.disk_min_free_bytes=0",
        "limits.window_messages=4",
        "network.image_shape=[65536]",
        "checkpoint.keep=1",
    )
    with Running(tmp_path / "state", *settings) as running:
        producer = running.producer()
        with closing(sqlite3.connect(running.state / "journal.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM messages").fetchone()
            sent = 0
            while not running.metric("warning", reason="log_pinned"):
                producer.send(np.full((16, 65536), sent % 251, np.uint8), labels(16, seed=sent), WAIT_S)
                sent += 16
                producer.flush(WAIT_S)
                running.control().wait_idle(WAIT_S)
                running.control().request("checkpoint")
                running.daemon.learn._housekeeping._measured_at = 0.0
                assert sent < 16 * 100
            status = running.control().status()
            assert "fuser" in status["warnings"]["log_pinned"]
            assert status["journal"]["log_bytes"] > 8 * MIB
        wait_until(lambda: not running.control().status()["warnings"], WAIT_S, "the WAL is emptied")
        assert running.daemon.journal.log_bytes() < 8 * MIB
        assert_everything_is_learned(running, producer, sent)
