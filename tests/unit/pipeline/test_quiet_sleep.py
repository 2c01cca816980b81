"""Sleep while the stream is quiet: decided once, on disk before it takes effect, and learned again exactly."""

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ffstream.config import Learning
from ffstream.journal import database, events, skips
from ffstream.journal.events import SLEEP_MICROBATCHES, Event
from ffstream.journal.schema import SEQ_MAX
from ffstream.pipeline.quiet_sleep import QuietSleep
from ffstream.pipeline.resume_state import ResumeState
from tests.battery import assert_equal
from tests.support import wait_until
from tests.unit.pipeline.run import (
    BATCH,
    DEADLINE_S,
    EVOKED,
    QUIET,
    Gated,
    Run,
    Serial,
    Store,
    Stream,
    assert_same,
    resume_state,
)

RECIPE = EVOKED.change(widths=[8], replay=3)
PHASES = replace(QUIET, wake=3, sleep=2)
LIMIT = SLEEP_MICROBATCHES
SLEEPY = replace(PHASES, sleep_when_quiet_s=0.01, sleep_when_quiet_max_microbatches=LIMIT)


def decided(store: Store) -> dict[int, int]:
    """The sleep microbatches after each sample that the journal knows of."""
    with closing(database.connect(store.journal.path, read_only=True)) as connection:
        found = Counter(events.sleeps(connection, store.journal.path))
    return {seq: times * SLEEP_MICROBATCHES for seq, times in found.items()}


def wait_step(run: Run, step: int) -> None:
    wait_until(
        lambda: run.failures or (run.barriers and run.barriers[-1].step >= step), DEADLINE_S, f"step {step} learned"
    )
    assert not run.failures


def write(store: Store, stream: Stream, first: int, last: int) -> None:
    store.write(stream.images[first:last], stream.labels[first:last])


def serial(stream: Stream, quiet: Mapping[int, int]) -> Serial:
    return Serial(RECIPE, stream, wake=3, sleep=2, quiet=quiet)


def test_a_quiet_stream_brings_sleep_up_to_the_limit(store: Store) -> None:
    stream = Stream.random(6 * BATCH)
    quiet, limit = 4 * BATCH, 2 * SLEEP_MICROBATCHES
    write(store, stream, 0, quiet + 1)  # one sample of an incomplete microbatch waits
    run = Run(store, RECIPE, replace(SLEEPY, sleep_when_quiet_max_microbatches=limit + 7)).start()
    by_counts = 4 + 2
    wait_step(run, by_counts + limit)
    wait_until(lambda: run.pipeline.phase == "wake", DEADLINE_S, "awake again")
    assert decided(store) == {quiet: limit}
    write(store, stream, quiet + 1, len(stream.labels))
    run.wait_applied(len(stream.labels))
    last = run.stop()
    found = decided(store)
    assert found[quiet] == limit
    reference = serial(stream, found)
    assert_same(last.tensors, reference.states[last.step])
    assert reference.phases[by_counts : by_counts + limit] == ["sleep"] * limit


def test_a_journal_is_learned_again_without_the_clock(store: Store) -> None:
    """From the beginning, and from a checkpoint after the first sleep."""
    stream = Stream.random(7 * BATCH)
    write(store, stream, 0, 4 * BATCH)
    run = Run(store, RECIPE, SLEEPY).start()
    wait_step(run, 6 + LIMIT)
    saved = run.save()
    write(store, stream, 4 * BATCH, 7 * BATCH)
    wait_step(run, 6 + LIMIT + 5 + LIMIT)
    last = run.stop()
    found = decided(store)
    assert found == {4 * BATCH: LIMIT, 7 * BATCH: LIMIT}
    for resume in (None, resume_state(saved)):
        again = Run(store, RECIPE, PHASES, resume=resume).start()
        wait_step(again, last.step)
        assert_equal(again.stop().tensors, last.tensors)
    assert decided(store) == found, "nothing was decided again"


def test_a_checkpoint_in_the_middle_of_the_sleep_knows_how_much_is_left(store: Store) -> None:
    stream = Stream.random(6 * BATCH)
    write(store, stream, 0, 4 * BATCH)
    options = replace(SLEEPY, queue_depth=1)
    before = Run(store, RECIPE, PHASES).start()
    wait_step(before, 6)
    resume = resume_state(before.stop())
    run = Run(store, RECIPE, options, resume=resume)
    gate = Gated(run.stages[0].layers[0])
    run.start()
    assert gate.entered.wait(DEADLINE_S), "it sleeps"
    request = run.pipeline.request_checkpoint()
    gate.open()
    request.result(DEADLINE_S)
    middle = next(each for each in run.barriers if each.saves)
    assert 0 < middle.progress["slept"] < SLEEP_MICROBATCHES
    assert run.pipeline.abort(DEADLINE_S)  # it dies; what follows the checkpoint is learned again
    write(store, stream, 4 * BATCH, 6 * BATCH)
    resumed = Run(store, RECIPE, PHASES, resume=resume_state(middle)).start()
    resumed.wait_applied(6 * BATCH)
    last = resumed.stop()
    assert_same(last.tensors, serial(stream, decided(store)).states[last.step])


def test_a_flushed_microbatch_is_cut_at_the_same_place_again(store: Store) -> None:
    stream = Stream.random(5 * BATCH)
    end = 2 * BATCH + 1
    write(store, stream, 0, end)
    run = Run(store, RECIPE, replace(SLEEPY, partial="flush", linger_s=0.01)).start()
    wait_step(run, 5 + LIMIT)
    resume = resume_state(run.stop())
    assert decided(store) == {end: LIMIT}
    write(store, stream, end, 5 * BATCH)
    first, sizes = rest_and_all(store, resume, 5 * BATCH, 5 + LIMIT + 4)
    assert first == [3, BATCH, BATCH]
    assert sizes == [BATCH, BATCH, 1, *first]


def rest_and_all(store: Store, resume: ResumeState, samples: int, steps: int) -> tuple[list[int], list[int]]:
    """Learns the rest of the journal without the clock, and all of it; the states are equal. Returns the sizes of the
    microbatches of both."""
    tensors, sizes = [], []
    for begin in (resume, None):
        run = Run(store, RECIPE, PHASES, resume=begin).start()
        run.wait_applied(samples)
        wait_step(run, steps)
        tensors.append(run.stop().tensors)
        sizes.append([micro.fresh for micro, _ in run.observed])
    assert_equal(tensors[0], tensors[1])
    return sizes[0], sizes[1]


def test_a_paused_network_does_not_fall_asleep(store: Store) -> None:
    stream = Stream.random(2 * BATCH)
    write(store, stream, 0, 2 * BATCH)
    run = Run(store, RECIPE, SLEEPY)
    run.pipeline.pause(True)
    run.start()
    run.save()  # the feeder has passed its loop
    run.pipeline.pause(False)
    wait_until(lambda: decided(store), DEADLINE_S, "sleep once it is resumed")
    run.pipeline.pause(True)
    before = decided(store)
    run.save()
    run.save()
    assert decided(store) == before
    run.stop()


def test_without_room_on_disk_it_stays_awake_and_tries_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_WAIT_MS", 1)
    stream = Stream.random(2 * BATCH)
    write(store, stream, 0, 2 * BATCH)
    run = Run(store, RECIPE, SLEEPY)
    with closing(sqlite3.connect(store.journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run.start()
        run.wait_applied(2 * BATCH)
        for _ in range(3):
            run.save()
        assert run.pipeline.phase == "wake"
    wait_until(lambda: decided(store), DEADLINE_S, "sleep")
    run.stop()


def test_what_followed_skipped_samples_is_forgotten_and_new_sleep_there_is_learned_again(store: Store) -> None:
    stream = Stream.random(6 * BATCH)
    path = store.journal.path
    write(store, stream, 0, 4 * BATCH)
    for seq in (BATCH, 3 * BATCH, 4 * BATCH, 4 * BATCH):
        events.add(path, Event("sleep", seq))
    skips.add(path, skips.Skip(2 * BATCH + 1, 4 * BATCH))
    assert decided(store) == {BATCH: SLEEP_MICROBATCHES}
    run = Run(store, RECIPE, SLEEPY).start()
    steps = 2 + SLEEP_MICROBATCHES + LIMIT
    wait_step(run, steps)
    resume = resume_state(run.stop())
    assert decided(store) == {BATCH: SLEEP_MICROBATCHES, 4 * BATCH: LIMIT}
    write(store, stream, 4 * BATCH, 6 * BATCH)
    rest_and_all(store, resume, 6 * BATCH, steps + 4)


def test_places_and_what_is_left(tmp_path: Path) -> None:
    quiet = QuietSleep(tmp_path / "journal", [8, 8, 20], Learning())
    assert [quiet.next_place(seq) for seq in (0, 7, 8, 19, 20)] == [8, 8, 20, 20, SEQ_MAX]
    assert [quiet.left(8, slept) for slept in (0, 5, 32, 40)] == [32, 27, 0, 0]
    assert quiet.left(9, 0) == 0
    assert not quiet.decide(20, 0, head=20, now=1e9), "it is disabled"
