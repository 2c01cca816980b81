"""Which of thousands of checkpoints are kept."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffstream.checkpoint import manifest
from ffstream.checkpoint.ladder import Ladder, Rung
from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.config import load
from ffstream.errors import ConfigError
from tests.support import Watch

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
STEPS_S = (10 * MINUTE_S, HOUR_S, DAY_S, 7 * DAY_S)
LOTS = 1 << 60


def run(ladder: Ladder, written: list[Rung], look: Callable[[list[Rung]], object] = lambda kept: None) -> list[Rung]:
    """The checkpoints that are kept at the end. `look` gets those that are kept after each write."""
    kept: list[Rung] = []
    for rung in written:
        kept.append(rung)
        gone = ladder.surplus(kept)
        kept = [each for each in kept if each not in gone]
        look(kept)
    return kept


def steady(count: int, every_s: float, size: int = 100) -> list[Rung]:
    return [Rung(seq, seq * every_s, size) for seq in range(count)]


def test_ten_days_of_checkpoints_are_thinned_out_as_configured() -> None:
    written = steady(10 * 24 * 60, MINUTE_S)
    reached: list[float] = []

    def look(kept: list[Rung]) -> None:
        now_s = kept[-1].clock_s
        assert [rung.seq for rung in kept[-3:]] == [
            seq for seq in range(kept[-1].seq - 2, kept[-1].seq + 1) if seq >= 0
        ]
        ages = [now_s - rung.clock_s for rung in kept]
        reached.append(ages[0])
        assert len(kept) <= 3 + 7 + 25 + 8
        for step_s, reach_s in ((10 * MINUTE_S, HOUR_S), (HOUR_S, DAY_S), (DAY_S, 7 * DAY_S)):
            # For any age within the reach of a step, there is a checkpoint that is at most one step older.
            wanted = step_s
            while wanted + step_s <= min(reach_s, now_s):
                assert any(wanted <= age <= wanted + step_s for age in ages), (wanted, ages)
                wanted += step_s

    kept = run(Ladder(3, STEPS_S, LOTS), written, look)
    assert max(reached) < 7 * DAY_S
    assert reached[-1] > 6 * DAY_S - HOUR_S
    gaps = [b.clock_s - a.clock_s for a, b in pairwise(kept[:-3])]
    assert min(gaps) >= 10 * MINUTE_S, "no two of the ladder are closer than its smallest step"


def test_the_size_limit_makes_the_ladder_sparser_but_not_shorter() -> None:
    written = steady(3 * 24 * 60, MINUTE_S)

    def look(kept: list[Rung]) -> None:
        assert len(kept) <= 10
        assert sum(rung.bytes for rung in kept) <= 1000
        assert len(kept) >= 8 or kept[-1].clock_s < 3 * HOUR_S

    kept = run(Ladder(3, STEPS_S, 1000), written, look)
    ages = [kept[-1].clock_s - rung.clock_s for rung in kept]
    assert ages[0] > 2 * DAY_S
    assert any(10 * MINUTE_S <= age <= 2 * HOUR_S for age in ages)
    assert any(4 * HOUR_S <= age <= 30 * HOUR_S for age in ages)


def test_the_newest_are_kept_even_if_they_exceed_the_size_limit() -> None:
    kept = run(Ladder(3, STEPS_S, 0), steady(500, MINUTE_S))
    assert [rung.seq for rung in kept] == [497, 498, 499]


def test_without_steps_only_the_newest_are_kept() -> None:
    assert [rung.seq for rung in run(Ladder(2, (), LOTS), steady(100, HOUR_S))] == [98, 99]


@st.composite
def any_history(draw: st.DrawFn) -> tuple[Ladder, list[Rung]]:
    steps = draw(st.lists(st.floats(0.1, 1e6), max_size=5, unique=True))
    clocks = st.floats(0, 1e9) | st.floats(-1e9, 1e9)  # any value that a manifest may contain
    written = [
        Rung(seq, clock_s, size)
        for seq, (clock_s, size) in enumerate(
            draw(st.lists(st.tuples(clocks, st.integers(0, 1000)), min_size=1, max_size=40))
        )
    ]
    ladder = Ladder(draw(st.integers(1, 5)), sorted(steps), draw(st.integers(0, 5000)))
    return ladder, written


@settings(max_examples=300)
@given(history=any_history())
def test_the_invariants_hold_for_any_clocks_and_sizes(
    history: tuple[Ladder, list[Rung]],
) -> None:
    ladder, written = history
    seen: list[Rung] = []

    def look(kept: list[Rung]) -> None:
        seen.append(written[len(seen)])
        assert kept[-ladder.keep :] == seen[-ladder.keep :]
        assert len(kept) <= ladder.keep or sum(rung.bytes for rung in kept) <= ladder.max_bytes
        assert ladder.surplus(kept) == [], "what stayed once stays until something changes"

    kept = run(ladder, written, look)
    while gone := ladder.sparser(kept):
        kept = [rung for rung in kept if rung not in gone]
    if sum(rung.bytes for rung in kept):
        assert len(kept) >= min(len(written), ladder.keep)
        assert kept[-ladder.keep :] == written[-ladder.keep :]


@pytest.mark.parametrize("value", ["[600]", "[600,600]", "[600,60]", "[0,60]", "[600,inf]", "[600,nan]"])
def test_invalid_ladder_steps_are_rejected(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"checkpoint\.ladder_s.*: expected .*seconds|ladder_s.*finite|ladder_s.*number"
    ):
        load(settings=[f"checkpoint.ladder_s={value}"], environment={})


# --- on disk --------------------------------------------------------------------------------------------------------


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(folder: Path, clock: Clock, *, keep: int = 2, max_bytes: int = LOTS) -> CheckpointStore:
    return CheckpointStore(
        folder / "checkpoints",
        keep=keep,
        recipe={},
        ladder_s=(600.0, 3600.0, 86_400.0),
        max_bytes=max_bytes,
        monotonic_s=clock,
    )


def write(store: CheckpointStore, clock: Clock, count: int, every_s: float = 300.0) -> int:
    seq = (store.seqs() or [0])[-1]
    size = 0
    for _ in range(count):
        seq += 10
        clock.now_s += every_s
        size = store.write(Checkpoint(seq, {"w": torch.zeros(100)}, {}))
    return size


def test_running_time_continues_after_a_restart_and_ignores_the_time_of_day(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(make(tmp_path, clock), clock, 12)
    monkeypatch.setattr("time.time", lambda: 0.0)  # 1970
    clock.now_s = 7.0  # another boot
    store = make(tmp_path, clock)
    write(store, clock, 3)
    monkeypatch.setattr("time.time", lambda: 4e9)  # 2096
    write(store, clock, 3)
    assert [rung.clock_s for rung in store.rungs()] == [300, 2400, 3000, 3600, 4200, 4800, 5100, 5400]
    assert store.clock_s() == 5400


def test_a_manifest_without_a_clock_counts_as_the_oldest(tmp_path: Path, clock: Clock) -> None:
    store = make(tmp_path, clock)
    write(store, clock, 4)
    for seq in store.seqs():
        path = store.folder / f"{seq:020d}" / "manifest.json"
        found = manifest.read(store.folder, seq)
        del found["clock_s"]
        path.write_text(json.dumps(manifest.sign(found)))
    again = make(tmp_path, clock)
    write(again, clock, 4)
    assert {rung.clock_s for rung in again.rungs()} == {0, 600, 900, 1200}
    assert len(again.seqs()) <= 2 + 3


def test_nothing_is_removed_while_no_file_descriptors_are_left(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(make(tmp_path, clock), clock, 6)
    before = make(tmp_path, clock).seqs()
    store = make(tmp_path, clock)
    store._rungs.clear()

    def none_left(*arguments: Any) -> None:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "clock_and_size", none_left)
        write(store, clock, 1)
    assert store.seqs() == [*before, before[-1] + 10]
    write(store, clock, 1)
    assert len(store.seqs()) <= len(before) + 1


def test_checkpoints_after_a_rollback_age_like_all_others(tmp_path: Path, clock: Clock) -> None:
    store = make(tmp_path, clock)
    write(store, clock, 12)
    store.discard_after(10)
    write(store, clock, 12)
    oldest = store.rungs()[0]
    assert (oldest.seq, oldest.clock_s) == (10, 300)
    assert store.rungs()[-1].clock_s == 7200
    assert store.recent(at_most=130) == [120, 130]


def test_shedding_never_removes_the_newest(tmp_path: Path, clock: Clock) -> None:
    store = make(tmp_path, clock)
    size = write(store, clock, 12)
    kept = store.seqs()
    while freed := store.shed():
        assert freed > size
        assert len(store.seqs()) == len(kept) - 1
        kept = store.seqs()
    assert kept == [110, 120]


def test_a_crash_while_old_checkpoints_are_removed_leaves_whole_ones(
    tmp_path: Path, clock: Clock, watched: Watch
) -> None:
    class Death(BaseException):
        pass

    def die(moment: str) -> None:
        if moment == "checkpoint.remove.before":
            raise Death

    store = make(tmp_path, clock)
    write(store, clock, 3)
    watched(die)
    with pytest.raises(Death):
        write(store, clock, 3)
    watched(None)
    again = make(tmp_path, clock)
    assert again.seqs() == [10, 20, 30, 40, 50], "30 was to go"
    for seq in again.seqs():
        again.load(seq)
    write(again, clock, 1)
    assert again.recent(at_most=LOTS) == again.seqs()[-2:]
