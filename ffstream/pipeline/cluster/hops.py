"""The queue between two stages in different processes: a socket with credits.

The receiver returns a credit for each item that it takes, and the sender has at most `depth` items without one. So at
most `depth` items wait, as in a queue in memory, and a slow stage slows down the one before it.

A connection that ends may lose what is on its way, and ZeroMQ connects again without saying so. So items are
numbered: each is taken once and in order, or StagesLost is raised. The sender, which may wait for a credit that is
lost, hears of the end of the connection. It closes its socket once everything is taken.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import torch
import zmq

from ffstream.errors import StagesLost
from ffstream.pipeline.channel import Closed, Item
from ffstream.pipeline.cluster.frames import Message, microbatch_of, output_of, pack, pack_item, unpack
from ffstream.pipeline.cluster.sockets import Opened, Socket, monitor_of, poller_of
from ffstream.pipeline.messages import Barrier, Merge

_POLL_MS: Final = 100  # after which `check` is called again
_CLOSE: Final = "close"


def _number(items: int) -> bytes:
    """The first frame of what follows so many items."""
    return items.to_bytes(8, "little")


class HopOut:
    """The sender's end. `check` is called while it waits, and raises Closed when that must end.

    `also` are sockets whose messages `check` reads: it is called at once when there is one.
    """

    def __init__(
        self,
        socket: Socket,
        depth: int,
        check: Callable[[], None],
        also: Sequence[Socket] = (),
    ) -> None:
        self._socket = socket
        self.monitor = monitor_of(socket)  # has a message if the connection has ended
        self._check = check
        self._poller = poller_of(socket, *also)
        self._closed = False
        self.sent = 0  # items
        self._taken = 0  # items, and the end, for which there is a credit
        self._depth = depth
        self._ends = False  # the end was sent
        self.released = threading.Event()  # after which the owner of `monitor` closes it
        self.bytes = 0
        self.send_s = 0.0
        self.wait_s = 0.0

    def put(self, item: Item) -> None:
        """Sends an item; waits while too many are queued. Raises Closed."""
        self._wait_for_credit()
        if self._closed:
            raise Closed
        start = time.perf_counter()
        frames = [_number(self.sent), *pack_item(item)]
        self._socket.send_multipart(frames)  # copied: the sender's buffers are used again
        self.sent += 1
        self.bytes += sum(map(len, frames))
        self.send_s += time.perf_counter() - start

    def _wait_for_credit(self) -> None:
        self._take_credits()
        if self.sent - self._taken < self._depth:
            return
        start = time.perf_counter()
        while self.sent - self._taken >= self._depth and not self._closed:
            self._check()
            self._poller.poll(_POLL_MS)
            self._take_credits()
        self.wait_s += time.perf_counter() - start

    def _take_credits(self) -> None:
        while True:
            try:
                self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._taken += 1

    @property
    def is_cut(self) -> bool:
        """Whether the connection has ended, so that items may be lost. For the thread that owns the socket."""
        return bool(self.monitor.poll(0))

    def close(self, *, drop: bool = False) -> None:
        """Nothing follows what was sent. With `drop`, from any thread: `put` raises Closed from now on."""
        if drop:
            self._closed = True
        elif not self._closed:
            self._closed = True
            self._ends = True
            self._socket.send_multipart([_number(self.sent), *pack(_CLOSE)])

    def release(self) -> None:
        """Closes the socket, after `put` has returned for the last time. Waits until what was sent before `close` is
        taken, or `check` raises: what the receiver has not read when the connection ends may be lost."""
        with suppress(Closed, StagesLost):
            while self._ends and self._taken <= self.sent:
                self._check()
                self._poller.poll(_POLL_MS)
                self._take_credits()
        self._socket.disable_monitor()
        self._socket.close(linger=0)
        self.released.set()


class HopIn:
    """The receiver's end, for a stage. `barrier` makes a barrier to which the stage contributes."""

    def __init__(
        self,
        socket: Socket,
        token: str,
        check: Callable[[], None],
        barrier: Callable[[Message], Barrier],
        also: Sequence[Socket] = (),
        device: torch.device | None = None,
    ) -> None:
        self._inlet = Opened(socket, token)
        self._device = device
        self._check = check
        self._make: dict[str, Callable[[Message], Item]] = {
            "microbatch": microbatch_of,
            "output": output_of,
            "barrier": barrier,
            "merge": lambda message: Merge(message.fields["step"]),
        }
        self._poller = poller_of(socket, *also)
        self._closed = False
        self.taken = 0  # items
        self.receive_s = 0.0

    def get(self) -> Item:
        """Takes the next item. Raises Closed when there will be none."""
        while True:
            self._check()
            if self._closed:
                raise Closed
            frames = self._inlet.receive()
            if frames is None:
                self._poller.poll(_POLL_MS)
                continue
            start = time.perf_counter()
            if frames[0].bytes != _number(self.taken):
                raise StagesLost("what the stage before has sent is lost on its way", hint="see the network")
            message = unpack(frames[1:])
            if message.kind == _CLOSE:
                self._closed = True
                self._give_credit()
                raise Closed
            if self._device is not None:
                tensors = {name: value.to(self._device) for name, value in message.tensors.items()}
                message = message._replace(tensors=tensors)
            item = self._make[message.kind](message)
            self._give_credit()
            self.taken += 1
            self.receive_s += time.perf_counter() - start
            return item

    def _give_credit(self) -> None:
        with suppress(zmq.Again):  # the connection has ended: the sender knows
            self._inlet.socket.send(b"", zmq.NOBLOCK)

    def close(self, *, drop: bool = False) -> None:
        """Takes no more."""
        self._closed = True

    def release(self) -> None:
        """Closes the socket."""
        self._inlet.close()
