import threading

from ffstream.serving.snapshot import Snapshots
from tests.support import wait_until
from tests.unit.serving.answers import DEADLINE_S, begun_with, snapshot


class Waiter:
    """Somebody who waits for a snapshot on a thread of its own."""

    def __init__(self, snapshots: Snapshots, seq: int) -> None:
        self.result: bool | None = None
        self._snapshots, self._seq = snapshots, seq
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        self.result = self._snapshots.wait_for(self._seq, DEADLINE_S)

    def join(self) -> bool | None:
        self._thread.join(DEADLINE_S / 2)
        return self.result


def waiting(snapshots: Snapshots, count: int) -> None:
    waiters = snapshots._published._waiters  # type: ignore[attr-defined]
    wait_until(lambda: len(waiters) == count, DEADLINE_S, f"{count} wait")


def test_the_current_one_is_the_last_published() -> None:
    snapshots = begun_with(snapshot(0))
    assert snapshots.current.version == 0
    snapshots.publish(snapshot(1))
    assert snapshots.current.version == 1


def test_waiting_ends_when_the_sample_is_learned_and_not_before() -> None:
    snapshots = begun_with(snapshot(0))
    near, far = Waiter(snapshots, 100), Waiter(snapshots, 101)
    waiting(snapshots, 2)
    snapshots.publish(snapshot(1))
    assert near.join() is True
    waiting(snapshots, 1)
    assert far.result is None
    snapshots.publish(snapshot(2))
    assert far.join() is True


def test_wait_returns_at_once_for_learned_samples() -> None:
    snapshots = begun_with(snapshot(3))
    assert snapshots.wait_for(300, 0.0)
    assert not snapshots.wait_for(301, 0.0)


def test_close_ends_waits_with_the_right_result() -> None:
    snapshots = begun_with(snapshot(1))
    waiter = Waiter(snapshots, 101)
    waiting(snapshots, 1)
    snapshots.close()
    assert waiter.join() is False
    assert not snapshots.wait_for(101, DEADLINE_S)
    assert snapshots.wait_for(100, DEADLINE_S)
