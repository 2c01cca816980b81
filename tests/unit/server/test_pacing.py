"""The share of the time for learning, with a clock that the test sets."""

import pytest

from ffstream.server.pacing import BURST_S, Pacer


class Thread:
    """A thread that works and waits on a clock of its own."""

    def __init__(self, min_share: float) -> None:
        self.now = 1000.0
        self.worked = 0.0
        self.pacer = Pacer(min_share, clock=lambda: self.now)

    def work(self, seconds: float) -> None:
        self.pacer.begin()
        self.now += seconds
        self.worked += seconds
        self.pacer.end()

    def wait(self) -> float:
        waited = self.pacer.owed_s()
        self.now += waited
        return waited


@pytest.mark.parametrize("min_share", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("batch_s", [0.001, 0.3, 5.0])
def test_a_thread_that_always_has_work_pauses_for_the_share(min_share: float, batch_s: float) -> None:
    thread = Thread(min_share)
    for _ in range(1000):
        thread.work(batch_s)
        thread.wait()
    assert thread.worked / (thread.now - 1000.0) == pytest.approx(1 - min_share)


def test_a_thread_that_is_idle_for_the_share_never_pauses() -> None:
    thread = Thread(0.25)
    for _ in range(1000):
        thread.now += 0.17
        thread.work(0.5)
        assert thread.wait() == 0.0


def test_idle_time_counts_up_to_a_limit() -> None:
    thread = Thread(0.5)
    thread.now += 3600
    thread.work(BURST_S)
    assert thread.wait() == 0.0, "a burst after a quiet time"
    thread.work(1.0)
    assert thread.wait() == pytest.approx(1.0), "and no more than that"


def test_the_rest_of_an_interrupted_pause_is_still_owed() -> None:
    thread = Thread(0.5)
    thread.work(1.0)
    thread.now += 0.4
    assert thread.pacer.owed_s() == pytest.approx(0.6)


def test_nothing_is_owed_after_forgive() -> None:
    thread = Thread(0.5)
    thread.work(1.0)
    thread.pacer.forgive()
    assert thread.wait() == 0.0
    thread.work(1.0)
    assert thread.wait() == pytest.approx(1.0)


def test_a_share_of_0_never_pauses() -> None:
    thread = Thread(0.0)
    thread.work(100.0)
    assert thread.wait() == 0.0
