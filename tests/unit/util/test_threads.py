"""A worker: its death is reported once, and since when it is at the same work can be asked."""

import logging
import sys
import threading

import pytest
import torch

from ffstream.errors import FFStreamError, JournalDamaged, StageFailed
from ffstream.util.threads import Worker
from tests.support import wait_until

DEADLINE_S = 30.0


def test_what_it_raises_is_reported_once_under_its_name_with_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[FFStreamError] = []

    def work() -> None:
        raise ZeroDivisionError("by nothing")

    worker = Worker("ff-test", work, failures.append)
    worker.start()
    assert worker.ends(DEADLINE_S)
    (failure,) = failures
    assert isinstance(failure, StageFailed)
    assert "ff-test" in failure.message
    assert "by nothing" in failure.message
    assert "in work" in caplog.text


def test_an_error_that_says_what_to_do_is_reported_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    damaged = JournalDamaged("a row", hint="put it back")
    failures: list[FFStreamError] = []

    def work() -> None:
        raise damaged

    worker = Worker("ff-test", work, failures.append)
    worker.start()
    assert worker.ends(DEADLINE_S)
    assert failures == [damaged]
    assert "name=ff-test" in caplog.text


def test_an_exit_on_a_thread_is_a_death_like_any_other() -> None:
    failures: list[FFStreamError] = []
    worker = Worker("ff-test", sys.exit, failures.append)
    worker.start()
    assert worker.ends(DEADLINE_S)
    (failure,) = failures
    assert "SystemExit" in failure.message


def test_it_is_stuck_with_the_same_work_and_never_while_it_waits_or_goes_on() -> None:
    steps = [threading.Event() for _ in range(4)]
    reached = threading.Semaphore(0)

    def stop_at(step: int) -> None:
        reached.release()
        assert steps[step].wait(DEADLINE_S)

    def work() -> None:
        with worker.waiting():
            stop_at(0)
        stop_at(1)
        worker.progressed()
        stop_at(2)
        with worker.waiting():
            stop_at(3)

    def until(step: int) -> None:
        if step:
            steps[step - 1].set()
        assert reached.acquire(timeout=DEADLINE_S)

    worker = Worker("ff-test", work, lambda error: None)
    assert not worker.is_stuck(0)
    worker.start()
    until(0)
    assert not worker.is_stuck(0)
    until(1)
    wait_until(lambda: worker.is_stuck(0.05), DEADLINE_S, "it has had the same work in hand")
    assert not worker.is_stuck(DEADLINE_S)
    until(2)
    assert not worker.is_stuck(DEADLINE_S)
    until(3)
    assert not worker.is_stuck(0)
    steps[3].set()
    assert worker.ends(DEADLINE_S)


def test_what_has_ended_is_not_stuck_however_it_ended() -> None:
    def work() -> None:
        worker.progressed()
        raise ValueError

    worker = Worker("ff-test", work, lambda error: None)
    worker.start()
    assert worker.ends(DEADLINE_S)
    assert not worker.is_stuck(0)


def test_the_end_of_one_that_was_never_started_is_not_waited_for() -> None:
    assert Worker("ff-test", lambda: None, lambda error: None).ends(0)


def test_an_end_that_does_not_come_is_waited_for_no_longer_than_said() -> None:
    goes_on = threading.Event()

    def work() -> None:
        goes_on.wait(DEADLINE_S)

    worker = Worker("ff-test", work, lambda error: None)
    worker.start()
    try:
        assert not worker.ends(0.01)
    finally:
        goes_on.set()
    assert worker.ends(DEADLINE_S)


def test_it_computes_on_one_core_whatever_others_do() -> None:
    counts: list[int] = []
    worker = Worker("ff-test", lambda: counts.append(torch.get_num_threads()), logging.error)
    worker.start()
    assert worker.ends(DEADLINE_S)
    assert counts == [1]
