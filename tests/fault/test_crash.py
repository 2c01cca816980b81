"""kill -9 and power loss, in short: `tools/crash` does the same a thousand times.

Nothing acked is lost, nothing is learned twice, and the state at the end is bit for bit that of a daemon that nobody
harmed. And what says so can say otherwise.
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
from ffstream.util.failpoints import FAILPOINTS
from tests.harness.crashing import disk, power, trace
from tests.harness.crashing.accounts import Account, Remains, settle
from tests.harness.crashing.killing import Killing, end_in_order, never_killed, reason_to_pass_over
from tests.harness.crashing.lives import ForkServer, Home
from tests.harness.crashing.stream import CHECKPOINT_SAMPLES, Heard, connect, send_all, sizes
from tests.harness.crashing.victim import Death

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.mark.timeout(600)
def test_killed_at_every_failpoint_it_learns_each_sample_once_and_in_order(tmp_path: Path, forks: ForkServer) -> None:
    wanted = {each for each in FAILPOINTS if reason_to_pass_over(each) is None}
    kills = len(wanted) + len(wanted) // 2 + 1
    killed = Killing(tmp_path, 1, forks).run(kills, lambda way: None)

    assert killed.account == Account(acked=killed.account.acked, lost=0, twice=0, in_order=True)
    assert killed.different == [], "bit for bit"
    assert set(killed.by_failpoint) >= wanted
    assert set(killed.passed_over) == set(FAILPOINTS) - wanted, "each failpoint that nothing reaches has a reason"
    assert killed.by_failpoint.total() == kills
    assert killed.starts["real"] > 1
    assert killed.starts["standby"] > 0
    assert killed.before_first_checkpoint > 0
    assert killed.resent > 0, "no kill met a message under way: this run proves little"


@pytest.mark.timeout(600)
def test_killed_in_a_rollback_it_skips_all_that_came_later_or_nothing(tmp_path: Path, forks: ForkServer) -> None:
    skipped = rolled_back(tmp_path / "alive", forks)
    learned = never_killed(tmp_path / "never", 1, SENT, forks)
    assert "layers.0.parameters" in skipped.differs_from(learned)

    expected_after = {"rollback.before": learned, "rollback.skipped": skipped, "rollback.discarded": skipped}
    for failpoint, expected in expected_after.items():
        killed = rolled_back(tmp_path / failpoint, forks, failpoint)
        assert set(killed.differs_from(expected)) <= {"progress.version"}, (
            failpoint
        )  # a rollback counts as a snapshot


SENT = sizes(120)


def rolled_back(folder: Path, forks: ForkServer, failpoint: str | None = None) -> Remains:
    """What is left after a rollback in mid-stream that skips what came later; it dies of `failpoint`, if of any."""
    folder.mkdir()
    home = Home(folder / "state")
    life = forks.start(home, Death(failpoint))
    with life.or_dies():
        life.await_ready()
        with connect(home.learn) as producer, Control(home.control) as control:
            send_all(producer, 1, SENT, end=60)
            control.wait_idle(DEADLINE_S)
            arguments = {"to": CHECKPOINT_SAMPLES + 50, "later": "skip"}
            if failpoint is None:
                control.request("rollback", arguments, DEADLINE_S)
            else:
                with pytest.raises(DeadlineExceeded):
                    control.request("rollback", arguments, 1.0)
    if failpoint is not None:
        assert life.ended(DEADLINE_S)
        assert life.end() == -signal.SIGKILL
        life = forks.start(home)
    with life.or_dies():
        life.await_ready()
        with connect(home.learn) as producer:
            producer.resume_at(61)
            send_all(producer, 1, SENT, begin=60)
        end_in_order(home, life)
    return Remains.of(home.state)


@pytest.mark.timeout(600)
def test_without_power_it_keeps_what_it_acked_and_a_disk_that_lies_is_found_out(
    tmp_path: Path, forks: ForkServer
) -> None:
    why_not = trace.why_not(tmp_path)
    if why_not is not None:
        pytest.skip(why_not)
    recording = power.record(tmp_path, 1)
    assert list(power.unsafe(tmp_path, recording)) == []
    flushes_what_it_finds(recording)
    points = power.points(recording, 5, random.Random(1))
    honest = list(power.lose_power(tmp_path, recording, points, forks))
    assert len(honest) == 5
    assert [each for each in honest if each.broken] == []

    (lied_to,) = power.lose_power(tmp_path, recording, [len(recording.operations)], forks, honest=False)
    assert lied_to.account.lost == sum(recording.sizes)

    # Clients read where it listens before it serves again.
    state = disk.Disk(recording.root)
    renamed = 0
    for operation in recording.operations:
        state.do(operation)
        if isinstance(operation, disk.Rename) and operation.to.endswith("endpoints.json"):
            renamed += 1
            for seed in range(8):
                folder = tmp_path / f"endpoints-{renamed}-{seed}"
                state.write_after_power_loss(folder, "anything", random.Random(seed))
                there = folder / "state" / "endpoints.json"
                assert not there.exists() or there.read_text().endswith("}\n")
    assert renamed == 3


def flushes_what_it_finds(recording: power.Recording) -> None:
    """Each life but the first flushes all that is there before it writes: the one before may not have come to it."""
    state = disk.Disk(recording.root)
    unflushed: set[Path] = set()
    for at, operation in enumerate(recording.operations):
        if at in recording.births[1:]:
            unflushed = {Path(each) for each in state.files()}
            unflushed |= {parent for each in unflushed for parent in each.parents if recording.root in parent.parents}
        if at >= recording.births[1]:
            if isinstance(operation, disk.SyncBegins):
                unflushed.discard(Path(operation.path))
            elif isinstance(operation, disk.Write | disk.Make | disk.Rename | disk.Remove):
                assert unflushed == set(), f"before {type(operation).__name__} {operation.path}"
        state.do(operation)


# --- the accounts -------------------------------------------------------------------------------------------------

SIZES = [1, 8, 3, 5, 7]


def told(sizes: Sequence[int] = SIZES) -> list[Heard]:
    """The acks of a stream where all is well."""
    return [Heard(n, *each) for n, each in enumerate(zip(accumulate(sizes, initial=1), sizes, strict=False), 1)]


def remains(rows: Sequence[Heard], *, oldest: int = 9, learned: int = 24, went_by: int = 24) -> Remains:
    """A journal that was trimmed up to sample 9, and all is learned."""
    return Remains(rows, [oldest, learned], {}, {"replay.added": went_by})


def test_good_accounts() -> None:
    assert settle(SIZES, told(), remains(told()[2:])) == Account(24, 0, 0, True)


def test_a_row_that_is_gone_is_lost() -> None:
    rows = told()[2:]
    assert settle(SIZES, told(), remains([rows[0], rows[2]])).lost == 5
    assert settle(SIZES, told(), remains([])).lost == 3 + 5 + 7


def test_a_row_that_is_there_again_is_twice() -> None:
    rows = told()[2:]
    assert settle(SIZES, told(), remains([*rows, Heard(4, 25, 5)], learned=29, went_by=29)).twice == 5


def test_an_ack_for_what_was_not_learned_is_lost() -> None:
    assert settle(SIZES, told(), remains(told()[2:], learned=22, went_by=22)).lost == 2
    assert settle(SIZES, told(), remains(told()[2:], went_by=23)).lost == 1
    assert settle(SIZES, told(), remains([], oldest=0, learned=0, went_by=0)).lost == 24


def test_learning_again_is_twice() -> None:
    assert settle(SIZES, told(), remains(told()[2:], went_by=32)).twice == 8


def test_acks_that_contradict_each_other_are_twice() -> None:
    elsewhere = [*told(), Heard(2, 30, 8)]
    assert settle(SIZES, elsewhere, remains(told()[2:])).twice == 8
    overlapping = [*told()[:2], Heard(3, 8, 3), *told()[3:]]
    assert settle(SIZES, overlapping, remains(told()[3:], oldest=12)) == Account(24, 0, 2, False)


def test_one_bit_is_a_difference() -> None:
    one = replace(remains([]), tensors={"w": np.zeros(2, np.float32)})
    assert one.differs_from(replace(one, tensors={"w": np.zeros(2, np.float32)})) == []
    assert one.differs_from(replace(one, tensors={"w": np.array([0, -0.0], np.float32)})) == ["w"]
    assert one.differs_from(replace(one, tensors={})) == ["w"]
    assert one.differs_from(replace(one, progress={"replay.added": 23})) == ["progress.replay.added"]


# --- the disk -----------------------------------------------------------------------------------------------------


def after(kept: disk.Kept, *operations: disk.Operation, folder: Path, seed: int = 0) -> dict[str, bytes]:
    """Names and bytes after power loss."""
    state = disk.Disk(Path("/d"))
    for each in operations:
        state.do(each)
    target = folder / f"after-{seed}"
    state.write_after_power_loss(target, kept, random.Random(seed))
    there = {path.name: path.read_bytes() for path in target.iterdir()}
    target.rename(folder / f"{len(list(folder.iterdir()))}")
    return there


def flush(path: str, ticket: int) -> tuple[disk.SyncBegins, disk.SyncEnds]:
    return disk.SyncBegins(path, ticket), disk.SyncEnds(ticket)


MADE = (disk.Make("/d/a", folder=False), disk.Write("/d/a", 0, b"old"), *flush("/d/a", 1), *flush("/d", 2))


def test_only_what_is_flushed_is_safe(tmp_path: Path) -> None:
    written = disk.Write("/d/a", 0, b"new")
    assert after("nothing", *MADE[:4], folder=tmp_path) == {}, "the bytes are safe, the name is not"
    assert after("nothing", *MADE, written, folder=tmp_path) == {"a": b"old"}
    assert after("everything", *MADE, written, folder=tmp_path) == {"a": b"new"}
    assert after("nothing", *MADE, written, *flush("/d/a", 3), folder=tmp_path) == {"a": b"new"}


def test_a_flush_covers_what_was_written_before_it_began_once_it_has_ended(tmp_path: Path) -> None:
    begins, ends = flush("/d/a", 3)
    written = disk.Write("/d/a", 0, b"new")
    assert after("nothing", *MADE, begins, written, ends, folder=tmp_path) == {"a": b"old"}
    assert after("nothing", *MADE, written, begins, folder=tmp_path) == {"a": b"old"}


def test_anything_may_become_of_the_rest(tmp_path: Path) -> None:
    operations = (*MADE, disk.Write("/d/a", 0, b"x" * 2000), disk.Rename("/d/a", "/d/b"))
    seen = [after("anything", *operations, folder=tmp_path, seed=seed) for seed in range(100)]
    assert all(len(each) == 1 for each in seen), "a rename is whole"
    assert {name for each in seen for name in each} == {"a", "b"}
    contents = {content for each in seen for content in each.values()}
    assert {b"old", b"x" * 2000, b"old" + bytes(1997)} <= contents, "absent, there, length only"
    assert any(each[:512] == b"x" * 512 and each != b"x" * 2000 for each in contents), "torn"
