"""What the log, the status and the readiness say while stages are placed again."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from ffstream.errors import StagesLost
from ffstream.learning.restarts import Restarts
from ffstream.metrics import Metrics
from tests.support import wait_until

WAIT_S = 30.0
LOST = StagesLost("ff-stage-0 is lost (process 7 on node n): its connection is gone", hint="it begins again")
FULL = StagesLost("stages cannot be placed: no node has room", hint="ray status")


class Cluster:
    """Stages are placed when the test says how that ends."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self._ends: SimpleQueue[StagesLost | None] = SimpleQueue()
        self._failures: list[Exception] = []
        self.restarts = Restarts(self._place, Metrics(), self._failures.append)

    def _place(self) -> None:
        self.asked.release()
        error = self._ends.get(timeout=WAIT_S)
        if error is not None:
            raise error

    def wait_until_asked(self) -> None:
        assert self.asked.acquire(timeout=WAIT_S)

    def answer(self, error: StagesLost | None = None) -> None:
        self._ends.put(error)
        if error is None:
            wait_until(lambda: not self.restarts.interrupted, WAIT_S, "stages are placed")

    def stop(self) -> None:
        assert self.restarts.stop(WAIT_S)
        assert self._failures == []


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    made.restarts.start()
    made.wait_until_asked()
    yield made
    made.stop()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO)
    return lambda: [re.sub(r"\bseconds=\d+\.\d\b", "seconds=S", record.getMessage()) for record in caplog.records]


def test_the_first_placement_is_no_interruption_of_learning(cluster: Cluster, said: Callable[[], list[str]]) -> None:
    status = cluster.restarts.status()
    assert status is not None
    assert (status["reason"], status["hint"], status["tries"]) == ("stages are being placed", "", 1)
    assert cluster.restarts.summary() == "stages are being placed"
    cluster.answer()
    assert (cluster.restarts.status(), cluster.restarts.summary(), cluster.restarts.interruption) == (
        None,
        None,
        None,
    )
    assert said() == []


def test_a_loss_is_one_event_and_its_end_another(cluster: Cluster, said: Callable[[], list[str]]) -> None:
    cluster.answer()
    cluster.restarts.request(LOST)
    cluster.wait_until_asked()
    status = cluster.restarts.status()
    assert status is not None
    assert (status["reason"], status["hint"], status["tries"]) == (LOST.message, LOST.hint, 1)
    assert status["seconds"] >= 0
    assert cluster.restarts.summary() == "ff-stage-0 is lost", "the readiness is public, and names no machine"
    cluster.answer(FULL)
    cluster.wait_until_asked()
    cluster.answer(FULL)
    cluster.wait_until_asked()
    assert cluster.restarts.summary() == "stages cannot be placed"
    cluster.answer()
    assert said() == [
        f"learning is interrupted reason={LOST.message!r} hint=it begins again",
        f"learning is interrupted reason={FULL.message!r} hint=ray status",
        "learning goes on seconds=S tries=3",
    ], "the same trouble is logged once"
    last = cluster.restarts.interruption
    assert last is not None
    assert (last.number, last.reason) == (1, LOST.message)
    assert last.lasted_s is not None


def test_every_loss_counts(cluster: Cluster) -> None:
    cluster.answer()
    for number in (1, 2):
        cluster.restarts.request(LOST)
        cluster.wait_until_asked()
        assert cluster.restarts.interruption == (number, LOST.message, None)
        cluster.answer()


def test_a_rollback_places_stages_and_is_no_interruption(cluster: Cluster, said: Callable[[], list[str]]) -> None:
    cluster.answer()
    cluster.restarts.request()
    cluster.wait_until_asked()
    assert cluster.restarts.summary() == "stages are being placed"
    cluster.answer()
    assert (said(), cluster.restarts.interruption) == ([], None)


def test_placing_that_takes_long_is_no_stall(cluster: Cluster) -> None:
    """A cluster without room is waited for as long as the options say. A stall would end the daemon."""
    assert not cluster.restarts.thread.is_busy
    cluster.answer()
