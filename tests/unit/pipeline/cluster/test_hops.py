"""The queue between two processes: its bound, its order, its end, and connections that are cut, or not its own."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import zmq

from ffstream.errors import StagesLost
from ffstream.pipeline.channel import Closed, Item
from ffstream.pipeline.cluster.frames import Message
from ffstream.pipeline.cluster.hops import HopIn, HopOut
from ffstream.pipeline.cluster.sockets import connected, listening
from ffstream.pipeline.messages import Barrier, MicroBatch
from tests.support import wait_until
from tests.unit.pipeline.cluster.local import Wire
from tests.unit.pipeline.run import DEADLINE_S

DEPTH = 3
TOKEN = "token"


def item(step: int) -> MicroBatch:
    return MicroBatch(step, step, "interleaved", torch.full((2, 4), step), torch.tensor([step, 1]), 2)


def barrier_of(message: Message) -> Barrier:
    return Barrier(**message.fields, contributors=["x"], on_complete=lambda barrier: None)


class Hop:
    """Both ends. `checks` counts the calls of `check`, which raise `error` if there is one."""

    def __init__(self, context: "zmq.Context[Any]", *, token: str = TOKEN) -> None:
        inlet, port = listening(context, "127.0.0.1", None)
        self.port = port
        self.wire = Wire(port)
        self.error: Exception | None = None
        self.checks = 0
        self.into = HopIn(inlet, TOKEN, self.check, barrier_of)
        self.out = HopOut(connected(context, "127.0.0.1", self.wire.port, token, None, ""), DEPTH, self.check)

    def check(self) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        self.error = self.error or Closed()
        if not self.out.released.is_set():
            self.out.release()
        self.out.monitor.close()
        self.into.release()
        self.wire.close()


@pytest.fixture
def context() -> Iterator["zmq.Context[Any]"]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def hop(context: "zmq.Context[Any]") -> Iterator[Hop]:
    hop = Hop(context)
    yield hop
    hop.end()


class Task:
    """Runs on a thread. `result` raises what it has raised."""

    def __init__(self, work: Any) -> None:
        self._work = work
        self._error: Exception | None = None
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


def send(hop: Hop, count: int) -> Task:
    """Sends items on a thread."""

    def work() -> None:
        for step in range(count):
            hop.out.put(item(step))

    return Task(work)


def take(hop: Hop, count: int) -> list[Item]:
    return Task(lambda: [hop.into.get() for _ in range(count)]).result()  # type: ignore[no-any-return]


def test_items_arrive_in_order(hop: Hop) -> None:
    sender = send(hop, 20)
    assert [each.step for each in take(hop, 20)] == list(range(20))
    sender.result()
    assert hop.out.sent == hop.into.taken == 20
    assert hop.out.bytes > 20 * 8
    assert hop.into.receive_s > 0


def test_barriers_travel_with_the_others(hop: Hop) -> None:
    hop.out.put(item(0))
    hop.out.put(Barrier(step=1, seq=4, version=2, saves=True, contributors=["a"], on_complete=lambda barrier: None))
    first, second = take(hop, 2)
    assert isinstance(first, MicroBatch)
    assert isinstance(second, Barrier)
    assert (second.step, second.seq, second.version, second.saves) == (1, 4, 2, True)


def test_credits_bound_what_is_on_its_way(hop: Hop) -> None:
    sender = send(hop, DEPTH + 2)
    wait_until(lambda: hop.out.sent == DEPTH and hop.checks, DEADLINE_S, "the sender waits")
    checks = hop.checks
    wait_until(lambda: hop.checks > checks + 1, DEADLINE_S, "it still waits")
    assert hop.out.sent == DEPTH
    take(hop, 1)
    wait_until(lambda: hop.out.sent == DEPTH + 1, DEADLINE_S, "one more is sent")
    take(hop, DEPTH + 1)
    sender.result()
    assert hop.out.wait_s > 0


def test_after_close_what_was_sent_is_taken_and_nothing_more(hop: Hop) -> None:
    hop.out.put(item(0))
    hop.out.put(item(1))
    hop.out.close()
    with pytest.raises(Closed):
        hop.out.put(item(2))
    releasing = Task(hop.out.release)
    assert [each.step for each in take(hop, 2)] == [0, 1]
    assert not hop.out.released.is_set(), "the connection stays until everything is taken, the end included"
    for _ in range(2):
        with pytest.raises(Closed):
            take(hop, 1)
    releasing.result()
    assert hop.out.released.is_set()


def test_a_full_queue_can_be_closed_and_taken_later(hop: Hop) -> None:
    for step in range(DEPTH):
        hop.out.put(item(step))
    hop.out.close()
    releasing = Task(hop.out.release)
    assert len(take(hop, DEPTH)) == DEPTH
    with pytest.raises(Closed):
        take(hop, 1)
    releasing.result()


def test_a_sender_that_waits_ends_when_check_says_so(hop: Hop) -> None:
    sender = send(hop, DEPTH + 1)
    wait_until(lambda: hop.checks, DEADLINE_S, "the sender waits")
    hop.error = Closed()
    with pytest.raises(Closed):
        sender.result()


def test_a_receiver_that_waits_ends_when_check_says_so(hop: Hop) -> None:
    receiver = Task(hop.into.get)
    wait_until(lambda: hop.checks, DEADLINE_S, "the receiver waits")
    hop.error = Closed()
    with pytest.raises(Closed):
        receiver.result()


def test_a_sender_that_waits_ends_when_it_is_dropped(hop: Hop) -> None:
    sender = send(hop, DEPTH + 1)
    wait_until(lambda: hop.checks, DEADLINE_S, "the sender waits")
    hop.out.close(drop=True)
    with pytest.raises(Closed):
        sender.result()


def test_a_cut_is_noticed_by_the_sender(hop: Hop) -> None:
    hop.out.put(item(0))
    take(hop, 1)
    assert not hop.out.is_cut
    hop.wire.cut()
    wait_until(lambda: hop.out.is_cut, DEADLINE_S, "the cut is noticed")


def test_what_is_lost_in_a_cut_is_never_skipped(hop: Hop) -> None:
    """ZeroMQ connects again and goes on with what it has not handed to the connection yet."""
    hop.out.put(item(0))
    take(hop, 1)
    hop.wire.holds = True  # swallows what is sent from now on
    hop.out.put(item(1))
    wait_until(lambda: hop.wire.swallowed > 8, DEADLINE_S, "it is on its way")
    hop.wire.holds = False
    hop.wire.cut()
    wait_until(lambda: hop.out.is_cut, DEADLINE_S, "the cut is noticed")
    hop.out.put(item(2))
    with pytest.raises(StagesLost, match="is lost on its way"):
        take(hop, 1)


def test_a_connection_with_a_wrong_token_is_ignored(context: "zmq.Context[Any]") -> None:
    hop = Hop(context, token="another")
    hop.out.put(item(0))
    receiver = Task(hop.into.get)
    wait_until(lambda: hop.checks > 3, DEADLINE_S, "the receiver still waits")
    hop.error = Closed()
    with pytest.raises(Closed):
        receiver.result()
    assert hop.into.taken == 0
    hop.end()


def test_a_second_connection_is_ignored(hop: Hop, context: "zmq.Context[Any]") -> None:
    hop.out.put(item(0))
    take(hop, 1)
    other = HopOut(connected(context, "127.0.0.1", hop.port, TOKEN, None, ""), DEPTH, hop.check)
    other.put(item(7))
    for step in range(1, 10):
        hop.out.put(item(step))
        (found,) = take(hop, 1)
        assert found.step == step
    other.close(drop=True)
    other.release()
    other.monitor.close()
