"""The queue between two stages in different processes: a socket with credits.

The receiver returns a credit for each item that it takes, and the sender has at most `depth` items without one. So at
most `depth` items wait, as in a queue in memory, and a slow stage slows down the one before it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import zmq

from ffstream.pipeline.channel import Closed, Item
from ffstream.pipeline.cluster.frames import Message, microbatch_of, output_of, pack, pack_item, unpack
from ffstream.pipeline.cluster.sockets import Socket
from ffstream.pipeline.messages import Barrier

_POLL_MS: Final = 100  # after which `check` is called again
_CLOSE: Final = "close"


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
        self._check = check
        self._poller = zmq.Poller()
        for each in (socket, *also):
            self._poller.register(each, zmq.POLLIN)
        self._closed = False
        self.sent = 0  # items
        self._credits = depth
        self.bytes = 0
        self.send_s = 0.0
        self.wait_s = 0.0

    def put(self, item: Item) -> None:
        """Sends an item; waits while too many are queued. Raises Closed."""
        self._wait_for_credit()
        if self._closed:
            raise Closed
        start = time.perf_counter()
        frames = pack_item(item)
        self._socket.send_multipart(frames)  # copied: the sender's buffers are used again
        self.sent += 1
        self._credits -= 1
        self.bytes += sum(map(len, frames))
        self.send_s += time.perf_counter() - start

    def _wait_for_credit(self) -> None:
        self._take_credits()
        if self._credits > 0:
            return
        start = time.perf_counter()
        while self._credits < 1 and not self._closed:
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
            self._credits += 1

    def close(self, *, drop: bool = False) -> None:
        """Nothing follows what was sent. With `drop`, from any thread: `put` raises Closed from now on."""
        if drop:
            self._closed = True
        elif not self._closed:
            self._closed = True
            self._socket.send_multipart(pack(_CLOSE))

    def release(self) -> None:
        """Closes the socket, after `put` has returned for the last time. What was sent is still delivered."""
        self._socket.close()


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
        self._socket = socket
        self._device = device
        self._token = token.encode()
        self._check = check
        self._make: dict[str, Callable[[Message], Item]] = {
            "microbatch": microbatch_of,
            "output": output_of,
            "barrier": barrier,
        }
        self._poller = zmq.Poller()
        for each in (socket, *also):
            self._poller.register(each, zmq.POLLIN)
        self._is_open = False
        self._closed = False
        self.taken = 0  # items
        self.receive_s = 0.0

    def get(self) -> Item:
        """Takes the next item. Raises Closed when there will be none."""
        while True:
            self._check()
            frames = self._receive()
            if frames is None:
                self._poller.poll(_POLL_MS)
                continue
            start = time.perf_counter()
            message = unpack(frames)
            if message.kind == _CLOSE:
                self._closed = True
                raise Closed
            if self._device is not None:
                tensors = {name: value.to(self._device) for name, value in message.tensors.items()}
                message = message._replace(tensors=tensors)
            item = self._make[message.kind](message)
            self._socket.send(b"")
            self.taken += 1
            self.receive_s += time.perf_counter() - start
            return item

    def _receive(self) -> list[zmq.Frame] | None:
        if self._closed:
            raise Closed
        while True:
            try:
                frames: list[Any] = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            if self._is_open:
                return frames
            self._is_open = len(frames) == 1 and frames[0].bytes == self._token

    def close(self, *, drop: bool = False) -> None:
        """Takes no more."""
        self._closed = True

    def release(self) -> None:
        """Closes the socket."""
        self._socket.close(linger=0)
