"""Predict, then learn: each microbatch by exactly the snapshot sent before it."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ffstream.metrics import Metrics
from ffstream.serving.prequential import Prequential
from ffstream.util.error_record import WINDOW_SAMPLES, ErrorRecord
from ffstream.util.labels import UNLABELLED
from tests.support import wait_until
from tests.unit.serving.answers import DEADLINE_S, INPUTS, LABELS, snapshot

Make = Callable[..., Prequential]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes evaluators, and ends them all."""
    made: list[Prequential] = []

    def make(**options: Any) -> Prequential:
        given: dict[str, Any] = {
            "fraction": 1.0,
            "queue_depth": 64,
            "record": ErrorRecord(),
            "on_failure": failures.append,
        } | options
        made.append(Prequential(Metrics(), snapshot(0), **given))
        return made[-1]

    failures: list[Exception] = []
    yield make
    for each in made:
        if each.thread.is_alive():
            assert each.stop(DEADLINE_S)
    assert not failures


def observe(prequential: Prequential, version: int, size: int = 3, label: int | None = None) -> None:
    """A microbatch that its own version's snapshot predicts without an error."""
    labels = torch.full((size,), version % LABELS if label is None else label)
    prequential.observe(torch.zeros(size, INPUTS, dtype=torch.uint8), labels, version)


def marked(prequential: Prequential) -> dict[str, Any]:
    """The record after everything that was observed."""
    done = threading.Event()
    parts: list[dict[str, Any]] = []

    def contribute(part: dict[str, Any]) -> None:
        parts.append(part)
        done.set()

    prequential.mark(contribute)
    assert done.wait(DEADLINE_S), "the evaluator hangs"
    record: dict[str, Any] = parts[0]["prequential"]
    return record


def inbox(prequential: Prequential) -> int:
    return len(prequential._inbox)


def has_left(prequential: Prequential, batches: int) -> bool:
    return inbox(prequential) == batches


def test_every_batch_is_predicted_by_its_own_version(make: Make) -> None:
    prequential = make()
    prequential.start()
    for version in range(8):
        if version:
            prequential.publish(snapshot(version))
        for _ in range(3):
            observe(prequential, version)
    record = marked(prequential)
    assert record["samples"] == 8 * 3 * 3
    assert record["wrong"] == 0


def test_versions_that_come_late_are_waited_for(make: Make) -> None:
    """Batches are observed before the learner has come to the barriers before them."""
    prequential = make()
    prequential.start()
    for version in range(6):
        observe(prequential, version)
    for version in range(1, 6):
        wait_until(partial(has_left, prequential, 5 - version), DEADLINE_S, "it has the next batch in hand")
        # The metric, not the record: that belongs to the evaluator's thread, and has no lock.
        assert prequential._metrics.prequential_samples._value.get() == 3 * version
        prequential.publish(snapshot(version))
    record = marked(prequential)
    assert (record["samples"], record["wrong"]) == (18, 0)


def test_versions_that_overtake_one_another_are_told_apart(make: Make) -> None:
    """A barrier that saves waits for the evaluator, so that later ones complete before it."""
    prequential = make()
    for version in (0, 1, 2, 3, 4):
        observe(prequential, version)
    for version in (2, 4, 1, 3):
        prequential.publish(snapshot(version))
    prequential.start()
    record = marked(prequential)
    assert (record["samples"], record["wrong"]) == (15, 0)


def test_prediction_by_another_version_changes_the_error(make: Make) -> None:
    prequential = make()
    prequential.start()
    prequential.publish(snapshot(1))
    observe(prequential, 1, size=4, label=2)
    record = marked(prequential)
    assert (record["samples"], record["wrong"]) == (4, 4)


def test_a_mark_sees_all_before_it_and_nothing_behind(make: Make) -> None:
    prequential = make()
    marks: list[int] = []
    for count in range(4):
        prequential.mark(lambda part: marks.append(part["prequential"]["samples"]))
        observe(prequential, 0, size=count + 1)
    prequential.start()
    assert marked(prequential)["samples"] == 10
    assert marks == [0, 1, 3, 6]


def test_a_mark_excludes_later_batches(make: Make) -> None:
    prequential = make()
    prequential.start()
    observe(prequential, 0)
    record = marked(prequential)
    before = json.dumps(record)
    observe(prequential, 0, label=1)
    marked(prequential)
    assert json.dumps(record) == before


def test_a_full_queue_passes_over_and_those_evaluated_stand_for_the_rest(make: Make) -> None:
    prequential = make(queue_depth=2)
    sizes = [3, 5, 7, 2, 4]
    for size in sizes:
        observe(prequential, 0, size=size)
    assert inbox(prequential) == 2
    skipped = prequential._metrics.prequential_skipped._value.get()
    assert skipped == 7 + 2 + 4
    prequential.start()
    assert marked(prequential)["samples"] == 8
    while (record := marked(prequential))["samples"] == 8:  # the first that is taken again stands for the rest
        observe(prequential, 0, size=1, label=9)
        skipped = prequential._metrics.prequential_skipped._value.get()
    assert record["samples"] == 8 + skipped + 1
    assert record["wrong"] == skipped + 1
    assert prequential.record.recent == pytest.approx(1 / 9)
    assert prequential.record.total == pytest.approx((skipped + 1) / (skipped + 9))


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25, 0.1])
def test_a_fraction_of_the_microbatches_is_predicted_and_stands_for_all(make: Make, fraction: float) -> None:
    prequential = make(fraction=fraction)
    prequential.start()
    for _ in range(200):
        observe(prequential, 0)
        marked(prequential)  # keeps up
    evaluated = prequential._metrics.prequential_samples._value.get() / 3
    assert evaluated == pytest.approx(200 * fraction, abs=2)
    assert 600 - 3 / fraction - 3 <= prequential.record.state()["samples"] <= 600


def test_a_fraction_of_zero_predicts_nothing(make: Make) -> None:
    prequential = make(fraction=0.0)
    prequential.start()
    for _ in range(20):
        observe(prequential, 0)
    assert marked(prequential)["samples"] == 0


def test_an_empty_microbatch_is_nothing(make: Make) -> None:
    prequential = make()
    prequential.start()
    observe(prequential, 0, size=0)
    assert marked(prequential) == {"window": [], "samples": 0, "wrong": 0.0}
    assert prequential.record.recent is None
    assert prequential.record.total is None


def test_samples_without_a_label_do_not_count(make: Make) -> None:
    """Neither as predicted nor as left out: the others do not stand for them."""
    prequential = make(queue_depth=2)
    images = torch.zeros(4, INPUTS, dtype=torch.uint8)
    prequential.observe(images, torch.tensor([0, UNLABELLED, 1, UNLABELLED]), 0)
    prequential.observe(images, torch.full((4,), UNLABELLED), 0)
    prequential.observe(images, torch.tensor([UNLABELLED, 0, 0, 1]), 0)
    prequential.observe(images, torch.tensor([UNLABELLED, 0, 0, 0]), 0)  # the queue is full
    prequential.start()
    assert marked(prequential) == {"window": [[2, 1], [3, 1]], "samples": 5, "wrong": 2.0}
    registry = prequential._metrics.registry
    assert registry.get_sample_value("ffstream_prequential_samples_total") == 5
    assert registry.get_sample_value("ffstream_prequential_skipped_samples_total") == 3


def test_snapshots_do_not_pile_up_when_nothing_is_observed(make: Make) -> None:
    prequential = make()
    prequential.start()
    marked(prequential)
    for version in range(1, 200):
        prequential.publish(snapshot(version))
    assert set(prequential._snapshots) == {199}
    observe(prequential, 199)
    assert marked(prequential)["wrong"] == 0


def test_snapshots_do_not_pile_up_while_the_evaluator_waits_or_is_behind(make: Make) -> None:
    prequential = make(queue_depth=3)
    observe(prequential, 0)
    observe(prequential, 1)
    prequential.start()
    wait_until(lambda: inbox(prequential) == 0, DEADLINE_S, "the evaluator waits for version 1")
    for version in range(1, 200):
        prequential.publish(snapshot(version))
        observe(prequential, version)
        assert len(prequential._snapshots) <= 6
    record = marked(prequential)
    assert record["wrong"] == 0


def test_snapshots_that_waiting_batches_need_are_kept(make: Make) -> None:
    """Publishing, observing and evaluating in any order: a version observed is there when its batch is predicted."""
    rng = random.Random(3)
    prequential = make(queue_depth=8)
    prequential.start()
    version, unpublished, taken = 0, list[int](), 0
    for _ in range(400):
        action = rng.random()
        if action < 0.3:
            version += 1
            unpublished.append(version)
        elif action < 0.6 and unpublished:
            prequential.publish(snapshot(unpublished.pop(0)))
        else:
            observe(prequential, version)
            taken += 1
    while unpublished:
        prequential.publish(snapshot(unpublished.pop(0)))
    record = marked(prequential)
    assert record["wrong"] == 0
    assert 0 < record["samples"] <= 3 * taken


def test_stopping_evaluates_the_queue_including_marks(make: Make) -> None:
    prequential = make()
    marks: list[int] = []
    for version in range(3):
        observe(prequential, version)
    prequential.mark(lambda part: marks.append(part["prequential"]["samples"]))
    for version in (1, 2):
        prequential.publish(snapshot(version))
    prequential.start()
    assert prequential.stop(DEADLINE_S)
    assert marks == [9]
    assert prequential.record.state()["wrong"] == 0


def test_stopping_does_not_wait_for_a_version_that_never_comes(make: Make) -> None:
    prequential = make()
    marks: list[int] = []
    observe(prequential, 0)
    observe(prequential, 7)
    prequential.mark(lambda part: marks.append(part["prequential"]["samples"]))
    prequential.start()
    wait_until(lambda: inbox(prequential) == 1, DEADLINE_S, "the evaluator waits for version 7")
    assert prequential.stop(DEADLINE_S)
    assert marks == [3]


def test_a_failure_is_reported_once_and_ends_the_thread() -> None:
    failures: list[Exception] = []
    prequential = Prequential(
        Metrics(), snapshot(0), fraction=1.0, queue_depth=4, record=ErrorRecord(), on_failure=failures.append
    )
    prequential.start()
    prequential.observe(torch.zeros(1, INPUTS + 1), torch.zeros(1, dtype=torch.int64), 0)
    prequential.thread.join(DEADLINE_S)
    assert not prequential.thread.is_alive()
    assert len(failures) == 1


# --- the record --------------------------------------------------------------------------------------------------


def test_the_window_holds_the_last_ten_thousand_samples_to_a_batch() -> None:
    record = ErrorRecord()
    batches = 3 * WINDOW_SAMPLES // 32
    wrong = [(7 * number) % 33 for number in range(batches)]
    for each in wrong:
        record.add(32, each, 32)
    held = -(-WINDOW_SAMPLES // 32)  # the fewest batches that hold ten thousand
    assert len(record.state()["window"]) == held
    assert record.recent == pytest.approx(sum(wrong[-held:]) / (32 * held))
    assert record.total == pytest.approx(sum(wrong) / (32 * batches))


def test_a_burst_of_errors_leaves_the_window_and_not_the_total() -> None:
    record = ErrorRecord()
    record.add(5000, 5000, 5000)
    record.add(5000, 0, 5000)
    assert record.recent == pytest.approx(0.5)
    record.add(5000, 0, 5000)
    assert record.recent == 0
    assert record.total == pytest.approx(1 / 3)


def test_one_batch_larger_than_the_window_is_kept_whole() -> None:
    record = ErrorRecord()
    record.add(100, 100, 100)
    record.add(WINDOW_SAMPLES + 5, 0, WINDOW_SAMPLES + 5)
    assert record.recent == 0
    assert record.state()["window"] == [[WINDOW_SAMPLES + 5, 0]]


@given(
    st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 4000), st.integers(0, 9000)), max_size=30),
    st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 4000), st.integers(0, 9000)), max_size=10),
)
def test_a_record_goes_on_from_its_state_through_json(
    before: list[tuple[int, int, int]], after: list[tuple[int, int, int]]
) -> None:
    whole = ErrorRecord()
    for size, wrong, more in before:
        whole.add(size, min(wrong, size), size + more)
    resumed = ErrorRecord(json.loads(json.dumps(whole.state())))
    for size, wrong, more in after:
        for record in (whole, resumed):
            record.add(size, min(wrong, size), size + more)
    assert resumed.state() == whole.state()
    assert resumed.recent == whole.recent
    assert resumed.total == whole.total
    assert whole.total is None or 0 <= whole.total <= 1
