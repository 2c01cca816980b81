"""The bounded queue between two stages.

`block`: a full queue makes the sender wait. `skip`: a full queue drops its oldest microbatch, so that the receiver
learns from the newest activities and the sender never waits; dropped microbatches are counted. Barriers are never
dropped. A closed channel rejects writes, and ends its reader once it is empty.
"""

import threading
from collections import deque
from typing import Literal, Protocol

from ffstream.pipeline.messages import Barrier, Merge, MicroBatch, StageOutput

Overflow = Literal["block", "skip"]
Item = MicroBatch | StageOutput | Barrier | Merge


class Closed(Exception):
    """The other end of the channel is closed."""


class Inbox(Protocol):
    """What a stage reads from."""

    def get(self) -> Item:
        """Removes and returns the next item. Raises Closed when there will be none."""

    def close(self, *, drop: bool = False) -> None:
        """Accepts no more items. Queued items can still be read, unless `drop`."""


class Outbox(Protocol):
    """What the feeder or a stage writes to."""

    def put(self, item: Item) -> None:
        """Appends an item; waits while the queue is full. Raises Closed."""

    def close(self, *, drop: bool = False) -> None:
        """Accepts no more items. Queued items can still be read, unless `drop`."""


class Channel:
    """One writer, one reader."""

    def __init__(self, capacity: int, overflow: Overflow = "block") -> None:
        self.capacity = capacity
        self.overflow = overflow
        self.skipped = 0
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._broken = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Appends an item. Raises Closed."""
        with self._changed:
            while len(self._items) >= self.capacity and not self._closed:
                if self.overflow == "skip" and self._drop_oldest():
                    break
                self._changed.wait()
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def _drop_oldest(self) -> bool:
        for position, item in enumerate(self._items):
            if not isinstance(item, Barrier | Merge):
                del self._items[position]
                self.skipped += 1
                return True
        return False

    def get(self) -> Item:
        """Removes and returns the next item. Raises Closed when there will be none."""
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if self._broken or not self._items:
                raise Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, *, drop: bool = False) -> None:
        """Accepts no more items. Queued items can still be read, unless `drop`."""
        with self._changed:
            self._closed = True
            self._broken = self._broken or drop
            self._changed.notify_all()
