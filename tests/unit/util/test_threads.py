"""A worker reports its failure once, and tells whether it is idle, busy or stuck."""

import logging
import sys
import threading

import pytest
import torch

from ffstream.errors import FFStreamError, JournalDamaged, StageFailed
from ffstream.util.threads import Worker
from tests.support import wait_until

DEADLINE_S = 30.0


def test_an_exception_is_reported_once_with_the_name_of_the_worker_and_logged_with_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[FFStreamError] = []

    def work() -> None:
        raise ZeroDivisionError("by zero")

    worker = Worker("ff-test", work, failures.append)
    worker.start()
    assert worker.join(DEADLINE_S)
    (failure,) = failures
    assert isinstance(failure, StageFailed)
    assert "ff-test" in failure.message
    assert "by zero" in failure.message
    assert "in work" in caplog.text


def test_an_ffstream_error_is_reported_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    damaged = JournalDamaged("a row", hint="put it back")
    failures: list[FFStreamError] = []

    def work() -> None:
        raise damaged

    worker = Worker("ff-test", work, failures.append)
    worker.start()
    assert worker.join(DEADLINE_S)
    assert failures == [damaged]
    assert "name=ff-test" in caplog.text


def test_sys_exit_on_a_worker_is_reported_as_a_failure() -> None:
    failures: list[FFStreamError] = []
    worker = Worker("ff-test", sys.exit, failures.append)
    worker.start()
    assert worker.join(DEADLINE_S)
    (failure,) = failures
    assert "SystemExit" in failure.message


def test_a_worker_is_stuck_when_it_does_not_progress_and_never_while_it_waits() -> None:
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
    wait_until(lambda: worker.is_stuck(0.05), DEADLINE_S, "it has not progressed")
    assert not worker.is_stuck(DEADLINE_S)
    until(2)
    assert not worker.is_stuck(DEADLINE_S)
    until(3)
    assert not worker.is_stuck(0)
    steps[3].set()
    assert worker.join(DEADLINE_S)


def test_a_worker_that_has_failed_is_not_stuck() -> None:
    def work() -> None:
        worker.progressed()
        raise ValueError

    worker = Worker("ff-test", work, lambda error: None)
    worker.start()
    assert worker.join(DEADLINE_S)
    assert not worker.is_stuck(0)


def test_joining_a_worker_that_was_never_started_returns_at_once() -> None:
    assert Worker("ff-test", lambda: None, lambda error: None).join(0)


def test_join_returns_false_when_the_deadline_passes() -> None:
    goes_on = threading.Event()

    def work() -> None:
        goes_on.wait(DEADLINE_S)

    worker = Worker("ff-test", work, lambda error: None)
    worker.start()
    try:
        assert not worker.join(0.01)
    finally:
        goes_on.set()
    assert worker.join(DEADLINE_S)


def test_a_worker_computes_on_one_core() -> None:
    counts: list[int] = []
    worker = Worker("ff-test", lambda: counts.append(torch.get_num_threads()), logging.error)
    worker.start()
    assert worker.join(DEADLINE_S)
    assert counts == [1]
