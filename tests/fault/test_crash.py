"""SIGKILL and power loss on a small scale; `tools/crash` runs the same harness for thousands of kills.

No acked sample is lost or learned twice, and the state at the end is bit-equal to that of a daemon that was never
interrupted. The second half tests the harness: the audit reports each kind of broken promise, and the model of the
disk loses what was not fsynced.
"""

import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from ffstream.client import Control
from ffstream.errors import DeadlineExceeded
from ffstream.ff.presets import PRESETS
from ffstream.util.failpoints import FAILPOINTS
from tests.harness.crashing import disk, power, trace
from tests.harness.crashing.audit import Audit, FinalState, audit
from tests.harness.crashing.fork_server import CrashDirectory, ForkServer, stop_cleanly
from tests.harness.crashing.instrumented import Instrumentation
from tests.harness.crashing.killing import KillRun, reason_to_leave_out, run_without_kills
from tests.harness.crashing.presets import small_stream
from tests.harness.crashing.stream import CHECKPOINT_SAMPLES, StoredMessage, Stream, connect, message_sizes, send_all
from tests.harness.daemon import DaemonProcess

DEADLINE_S = 60.0
STREAM = Stream(1)


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.mark.timeout(600)
def test_a_daemon_killed_at_every_failpoint_learns_each_sample_once_and_in_order(
    tmp_path: Path, forks: ForkServer
) -> None:
    wanted = {each for each in FAILPOINTS if reason_to_leave_out(each) is None}
    kills = len(wanted) + len(wanted) // 2 + 1
    killed = KillRun(tmp_path, STREAM, forks).run(kills, lambda place: None)

    assert killed.audit == Audit(acked=killed.audit.acked, lost=0, twice=0, in_order=True)
    assert killed.different == []
    assert set(killed.by_failpoint) >= wanted
    assert set(killed.not_reached) == set(FAILPOINTS) - wanted, "every other failpoint was reached"
    assert killed.by_failpoint.total() == kills
    assert killed.starts["as_user"] > 1
    assert killed.starts["standby"] > 0
    assert killed.before_first_checkpoint > 0
    assert killed.resent > 0, "no message was unacked at a kill, so this run proves little"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_kills(preset: str, tmp_path: Path, forks: ForkServer) -> None:
    wanted = ("learned", "checkpoint.manifest.after", "rollback.discarded")
    killed = KillRun(tmp_path, small_stream(preset, 1), forks, wanted).run(4, lambda place: None)
    assert killed.audit == Audit(acked=killed.audit.acked, lost=0, twice=0, in_order=True)
    assert killed.different == []
    assert set(killed.by_failpoint) >= {*wanted}


@pytest.mark.timeout(600)
def test_a_rollback_interrupted_by_a_kill_skips_all_later_samples_or_none(tmp_path: Path, forks: ForkServer) -> None:
    skipped = state_after_rollback(tmp_path / "not-killed", forks)
    learned = run_without_kills(tmp_path / "no-rollback", STREAM, SIZES_OF_ROLLBACK, forks)
    assert "layers.0.parameters" in skipped.differences(learned)

    expected_after = {"rollback.before": learned, "rollback.skipped": skipped, "rollback.discarded": skipped}
    for failpoint, expected in expected_after.items():
        killed = state_after_rollback(tmp_path / failpoint, forks, failpoint)
        # A rollback publishes a snapshot, which changes this counter.
        assert set(killed.differences(expected)) <= {"progress.version"}, failpoint


SIZES_OF_ROLLBACK = message_sizes(120)


def state_after_rollback(folder: Path, forks: ForkServer, failpoint: str | None = None) -> FinalState:
    """The state after a stream in whose middle a rollback skips later samples.

    With a failpoint, the daemon is killed there during the rollback, and another one learns the rest of the stream.
    """
    folder.mkdir()
    directory = CrashDirectory(folder / "state")
    with forks.start(directory, Instrumentation(failpoint)) as daemon:
        daemon.await_ready()
        with connect(directory.learn) as producer, Control(daemon.control) as control:
            send_all(producer, STREAM, SIZES_OF_ROLLBACK, end=60)
            control.wait_idle(DEADLINE_S)
            arguments = {"to": CHECKPOINT_SAMPLES + 50, "later": "skip"}
            if failpoint is None:
                control.request("rollback", arguments, DEADLINE_S)
            else:
                with pytest.raises(DeadlineExceeded):
                    control.request("rollback", arguments, 1.0)
        if failpoint is None:
            return state_after_rest_of_stream(directory, daemon)
        assert daemon.wait() == -signal.SIGKILL
    with forks.start(directory) as daemon:
        daemon.await_ready()
        return state_after_rest_of_stream(directory, daemon)


def state_after_rest_of_stream(directory: CrashDirectory, daemon: DaemonProcess) -> FinalState:
    with connect(directory.learn) as producer:
        producer.resume_at(61)
        send_all(producer, STREAM, SIZES_OF_ROLLBACK, begin=60)
    stop_cleanly(daemon)
    return FinalState.read(directory.state)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> power.Recording:
    folder = tmp_path_factory.mktemp("recording")
    unavailable = trace.unavailable(folder)
    if unavailable:
        pytest.skip(unavailable)
    return power.record(folder, STREAM)


@pytest.mark.timeout(600)
def test_no_acked_sample_is_lost_or_learned_twice_after_power_loss(
    recording: power.Recording, tmp_path: Path, forks: ForkServer
) -> None:
    assert list(power.missing_when_only_fsynced(tmp_path, recording)) == []
    points = power.choose_points(recording, 5, random.Random(1))
    losses = list(power.lose_power(tmp_path, recording, points, forks))
    assert len(losses) == 5
    assert [each for each in losses if each.broken] == []


@pytest.mark.timeout(600)
def test_the_audit_reports_every_sample_on_a_disk_that_ignores_fsync(
    recording: power.Recording, tmp_path: Path, forks: ForkServer
) -> None:
    end = len(recording.operations)
    (loss,) = power.lose_power(tmp_path, recording, [end], forks, honors_fsync=False)
    assert loss.audit.lost == sum(recording.sizes)


def test_endpoints_json_is_complete_or_absent_after_power_loss(recording: power.Recording, tmp_path: Path) -> None:
    """Clients read it to find the daemon, also before the next daemon has replaced it."""
    state = disk.Disk(recording.root)
    renamed = 0
    for operation in recording.operations:
        state.apply(operation)
        if isinstance(operation, disk.Rename) and operation.to.endswith("endpoints.json"):
            renamed += 1
            for seed in range(8):
                folder = tmp_path / f"endpoints-{renamed}-{seed}"
                state.write_after_power_loss(folder, "anything", random.Random(seed))
                endpoints = folder / "state" / "endpoints.json"
                assert not endpoints.exists() or endpoints.read_text().endswith("}\n")
    assert renamed == 3


def test_a_daemon_fsyncs_the_files_it_finds_before_it_writes(recording: power.Recording) -> None:
    """The daemon before it may have ended before its own fsync."""
    state = disk.Disk(recording.root)
    not_fsynced: set[Path] = set()
    for at, operation in enumerate(recording.operations):
        if at in recording.starts[1:]:
            not_fsynced = {Path(each) for each in state.files()}
            not_fsynced |= {
                folder for each in not_fsynced for folder in each.parents if recording.root in folder.parents
            }
        if at >= recording.starts[1]:
            if isinstance(operation, disk.FsyncBegins):
                not_fsynced.discard(Path(operation.path))
            elif isinstance(operation, disk.Write | disk.Create | disk.Rename | disk.Remove):
                assert not_fsynced == set(), f"before {type(operation).__name__} {operation.path}"
        state.apply(operation)


# --- the audit ----------------------------------------------------------------------------------------------------

SIZES = [1, 8, 3, 5, 7]


def good_acks(sizes: Sequence[int] = SIZES) -> list[StoredMessage]:
    return [
        StoredMessage(n, *each) for n, each in enumerate(zip(accumulate(sizes, initial=1), sizes, strict=False), 1)
    ]


def final_state(rows: Sequence[StoredMessage], *, oldest: int = 9, learned: int = 24, passed: int = 24) -> FinalState:
    """By default everything is learned, and the journal was trimmed up to sample 9."""
    return FinalState(rows, [oldest, learned], {}, {"replay.added": passed})


def test_an_audit_of_a_complete_state_finds_nothing() -> None:
    assert audit(SIZES, good_acks(), final_state(good_acks()[2:])) == Audit(24, 0, 0, True)


def test_samples_of_a_missing_journal_row_are_lost() -> None:
    rows = good_acks()[2:]
    assert audit(SIZES, good_acks(), final_state([rows[0], rows[2]])).lost == 5
    assert audit(SIZES, good_acks(), final_state([])).lost == 3 + 5 + 7


def test_a_message_in_two_journal_rows_is_stored_twice() -> None:
    rows = [*good_acks()[2:], StoredMessage(4, 25, 5)]
    assert audit(SIZES, good_acks(), final_state(rows, learned=29, passed=29)).twice == 5


def test_acked_samples_that_are_not_learned_are_lost() -> None:
    rows = good_acks()[2:]
    assert audit(SIZES, good_acks(), final_state(rows, learned=22, passed=22)).lost == 2
    assert audit(SIZES, good_acks(), final_state(rows, passed=23)).lost == 1
    assert audit(SIZES, good_acks(), final_state([], oldest=0, learned=0, passed=0)).lost == 24


def test_more_samples_passed_than_were_sent_means_learned_twice() -> None:
    assert audit(SIZES, good_acks(), final_state(good_acks()[2:], passed=32)).twice == 8


def test_contradicting_acks_mean_stored_twice() -> None:
    two_places = [*good_acks(), StoredMessage(2, 30, 8)]
    assert audit(SIZES, two_places, final_state(good_acks()[2:])).twice == 8
    overlapping = [*good_acks()[:2], StoredMessage(3, 8, 3), *good_acks()[3:]]
    assert audit(SIZES, overlapping, final_state(good_acks()[3:], oldest=12)) == Audit(24, 0, 2, False)


def test_states_that_differ_in_one_bit_are_reported_as_different() -> None:
    one = replace(final_state([]), tensors={"w": np.zeros(2, np.float32)})
    assert one.differences(replace(one, tensors={"w": np.zeros(2, np.float32)})) == []
    assert one.differences(replace(one, tensors={"w": np.array([0, -0.0], np.float32)})) == ["w"]
    assert one.differences(replace(one, tensors={})) == ["w"]
    assert one.differences(replace(one, progress={"replay.added": 23})) == ["progress.replay.added"]


# --- the model of the disk ----------------------------------------------------------------------------------------


def after_power_loss(kept: disk.Kept, *operations: disk.Operation, folder: Path, seed: int = 0) -> dict[str, bytes]:
    """Name and content of each file."""
    state = disk.Disk(Path("/d"))
    for each in operations:
        state.apply(each)
    target = folder / f"after-{seed}"
    state.write_after_power_loss(target, kept, random.Random(seed))
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    target.rename(folder / f"{len(list(folder.iterdir()))}")
    return found


def fsync(path: str, ticket: int) -> tuple[disk.FsyncBegins, disk.FsyncEnds]:
    return disk.FsyncBegins(path, ticket), disk.FsyncEnds(ticket)


CREATED = (disk.Create("/d/a", folder=False), disk.Write("/d/a", 0, b"old"), *fsync("/d/a", 1), *fsync("/d", 2))


def test_only_fsynced_bytes_and_names_survive_power_loss(tmp_path: Path) -> None:
    write = disk.Write("/d/a", 0, b"new")
    assert after_power_loss("nothing", *CREATED[:4], folder=tmp_path) == {}, "the bytes are durable, the name is not"
    assert after_power_loss("nothing", *CREATED, write, folder=tmp_path) == {"a": b"old"}
    assert after_power_loss("everything", *CREATED, write, folder=tmp_path) == {"a": b"new"}
    assert after_power_loss("nothing", *CREATED, write, *fsync("/d/a", 3), folder=tmp_path) == {"a": b"new"}


def test_an_fsync_covers_only_earlier_writes_and_only_once_it_has_returned(tmp_path: Path) -> None:
    begins, ends = fsync("/d/a", 3)
    write = disk.Write("/d/a", 0, b"new")
    assert after_power_loss("nothing", *CREATED, begins, write, ends, folder=tmp_path) == {"a": b"old"}
    assert after_power_loss("nothing", *CREATED, write, begins, folder=tmp_path) == {"a": b"old"}


def test_writes_that_are_not_fsynced_may_be_there_absent_torn_or_length_only(tmp_path: Path) -> None:
    operations = (*CREATED, disk.Write("/d/a", 0, b"x" * 2000), disk.Rename("/d/a", "/d/b"))
    found = [after_power_loss("anything", *operations, folder=tmp_path, seed=seed) for seed in range(100)]
    assert all(len(each) == 1 for each in found), "a rename is atomic"
    assert {name for each in found for name in each} == {"a", "b"}
    contents = {content for each in found for content in each.values()}
    assert {b"old", b"x" * 2000, b"old" + bytes(1997)} <= contents, "absent, there, length only"
    assert any(each[:512] == b"x" * 512 and each != b"x" * 2000 for each in contents), "torn"
