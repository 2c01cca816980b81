import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ffstream.pipeline.channel import Channel, Closed, Item
from ffstream.pipeline.messages import Barrier, MicroBatch
from tests.support import wait_until

DEADLINE_S = 30.0


def micro(step: int) -> MicroBatch:
    return MicroBatch(step, step, "interleaved", torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 1)


def barrier(step: int) -> Barrier:
    return Barrier(step=step, seq=step, version=step, saves=False, contributors=["a"], on_complete=lambda each: None)


def drain(channel: Channel) -> Iterator[Item]:
    while len(channel):
        yield channel.get()


class Other:
    """A call on a thread of its own, for what may block."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(call, *arguments), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            self.result = call(*arguments)
        except Closed as error:
            self.error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> "Other":
        self._thread.join(DEADLINE_S)
        assert self.ended, "still blocked"
        return self


def blocked(channel: Channel, call: Callable[..., Any], *arguments: Any) -> Other:
    """A call that is known to wait in the channel's condition."""
    other = Other(call, *arguments)
    waiters = channel._changed._waiters  # type: ignore[attr-defined]
    wait_until(lambda: waiters or other.ended, DEADLINE_S, "waits")
    assert not other.ended
    return other


def test_items_keep_their_order() -> None:
    channel = Channel(3)
    sent: list[Item] = [micro(0), barrier(1), micro(2)]
    for item in sent:
        channel.put(item)
    assert len(channel) == 3
    assert list(drain(channel)) == sent


def test_a_full_channel_makes_the_sender_wait_and_loses_nothing() -> None:
    channel = Channel(2)
    for step in (0, 1):
        channel.put(micro(step))
    sender = blocked(channel, channel.put, micro(2))
    assert len(channel) == 2
    assert channel.get().step == 0
    sender.join()
    assert [item.step for item in drain(channel)] == [1, 2]
    assert channel.skipped == 0


def test_an_empty_channel_makes_the_reader_wait() -> None:
    channel = Channel(2)
    reader = blocked(channel, channel.get)
    channel.put(micro(7))
    assert reader.join().result.step == 7


def test_skip_gives_up_the_oldest_microbatch_and_counts_it() -> None:
    channel = Channel(3, "skip")
    for item in (barrier(0), micro(1), micro(2), micro(3), micro(4)):
        channel.put(item)
    assert channel.skipped == 2
    assert [item.step for item in drain(channel)] == [0, 3, 4]


def test_skip_waits_rather_than_give_up_a_barrier() -> None:
    channel = Channel(2, "skip")
    for step in (0, 1):
        channel.put(barrier(step))
    sender = blocked(channel, channel.put, micro(2))
    assert channel.get().step == 0
    sender.join()
    assert [item.step for item in drain(channel)] == [1, 2]
    assert channel.skipped == 0


@given(
    capacity=st.integers(1, 5),
    kinds=st.lists(st.sampled_from(["micro", "barrier", "get"]), max_size=60),
)
def test_skip_against_a_model(capacity: int, kinds: list[str]) -> None:
    channel = Channel(capacity, "skip")
    model: list[Item] = []
    skipped = 0
    for step, kind in enumerate(kinds):
        if kind == "get":
            if model:
                assert channel.get() is model.pop(0)
            continue
        oldest = next((item for item in model if isinstance(item, MicroBatch)), None)
        if len(model) == capacity:
            if oldest is None:
                continue  # would block
            model = [item for item in model if item is not oldest]
            skipped += 1
        item = micro(step) if kind == "micro" else barrier(step)
        channel.put(item)
        model.append(item)
        assert len(channel) == len(model) <= capacity
        assert channel.skipped == skipped
    received = list(drain(channel))
    assert len(received) == len(model)
    assert all(a is b for a, b in zip(received, model, strict=True))


def test_a_closed_channel_is_read_to_its_end_and_not_written() -> None:
    channel = Channel(3)
    channel.put(micro(0))
    channel.put(micro(1))
    channel.close()
    with pytest.raises(Closed):
        channel.put(micro(2))
    assert [channel.get().step, channel.get().step] == [0, 1]
    with pytest.raises(Closed):
        channel.get()


def test_a_dropped_channel_is_not_even_read() -> None:
    channel = Channel(3)
    channel.put(micro(0))
    channel.close()
    channel.close(drop=True)
    channel.close()  # does not bring back what was dropped
    with pytest.raises(Closed):
        channel.get()


@pytest.mark.parametrize("overflow", ["block", "skip"])
def test_close_wakes_sender_and_reader(overflow: Any) -> None:
    full = Channel(1, overflow)
    full.put(barrier(0))
    sender = blocked(full, full.put, micro(1))
    full.close()
    assert isinstance(sender.join().error, Closed)
    assert full.get().step == 0
    empty = Channel(1, overflow)
    reader = blocked(empty, empty.get)
    empty.close()
    assert isinstance(reader.join().error, Closed)


def test_two_threads_lose_and_reorder_nothing() -> None:
    channel = Channel(3)

    def send() -> None:
        for step in range(2000):
            channel.put(micro(step))
        channel.close()

    def receive() -> list[int]:
        steps = []
        while True:
            try:
                steps.append(channel.get().step)
            except Closed:
                return steps

    sender, reader = Other(send), Other(receive)
    assert sender.join().error is None
    assert reader.join().result == list(range(2000))
