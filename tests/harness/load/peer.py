"""A client without manners of its own: it says what it is told to, and reads when told to. Knows no product code."""

import time
from typing import Any, Self

import msgpack
import numpy as np
import zmq

INPUTS = 784
LABELS = 10
SHAPE = [28, 28]


class Peer:
    """One DEALER. Few replies wait in it, so that one that is not read soon shows at the daemon."""

    def __init__(self, endpoint: str, *, replies: int = 1000, context: "zmq.Context[Any] | None" = None) -> None:
        self.socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, replies)
        self.socket.connect(endpoint)

    def say(self, *frames: bytes) -> bool:
        """Sends frames; False when the socket takes none now."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def send(self, type: str, *payload: bytes, **fields: Any) -> bool:
        """Sends a message with a good version."""
        return self.say(header(type, **fields), *payload)

    def hear(self, timeout_s: float) -> dict[str, Any] | None:
        """The next answer's header, None after the timeout."""
        if not self.socket.poll(max(0, int(1000 * timeout_s))):
            return None
        fields: dict[str, Any] = msgpack.unpackb(self.socket.recv_multipart()[0])
        return fields

    def hear_all(self) -> list[dict[str, Any]]:
        """All answers that wait."""
        heard = []
        while True:
            try:
                heard.append(msgpack.unpackb(self.socket.recv_multipart(zmq.NOBLOCK)[0]))
            except zmq.Again:
                return heard

    def close(self) -> None:
        """Closes the socket; what waits in it is gone."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def header(type: str, **fields: Any) -> bytes:
    """A header frame."""
    packed: bytes = msgpack.packb({"v": 1, "type": type, **fields})
    return packed


def samples(client: str, n: int, base: int, count: int) -> tuple[bytes, bytes]:
    """The frames of a good message: images and labels follow from its number."""
    rng = np.random.default_rng(n)
    labels = rng.integers(0, LABELS, count).astype("<u2").tobytes()
    fields = {"client": client, "n": n, "base": base, "count": count, "dtype": "uint8", "shape": SHAPE}
    return header("samples", **fields, labels=labels), rng.integers(0, 256, count * INPUTS, np.uint8).tobytes()


def next_number(endpoint: str, client: str, timeout_s: float = 30.0) -> int:
    """The lowest message number that the daemon says this client may use for something new."""
    with Peer(endpoint) as peer:
        peer.send("hello", client=client)
        welcome = peer.hear(timeout_s)
        if welcome is None or welcome["type"] != "welcome":
            raise RuntimeError(f"no welcome for {client}: {welcome}")
        return int(welcome["next"])


def settle(endpoint: str, client: str, last: int, count: int, timeout_s: float = 120.0) -> None:
    """Sends messages 1 to `last` of `count` samples again until each is acked, as the protocol says.

    Then each is stored once, whatever became of it before. Raises RuntimeError after the timeout, or when a message
    is refused for good.
    """
    deadline = time.monotonic() + timeout_s
    unanswered = dict.fromkeys(range(1, last + 1))
    with Peer(endpoint) as peer:
        while unanswered:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(unanswered)} messages of {client} are not acked after {timeout_s:g} s")
            window = list(unanswered)[:256]
            for n in window:
                peer.say(*samples(client, n, window[0], count))
            missing = set(window)
            while missing and (answer := peer.hear(2.0)) is not None:
                if answer["type"] == "ack":
                    for n, _, _ in answer["acks"]:
                        missing.discard(n)
                        unanswered.pop(n, None)
                elif answer["type"] == "error" and answer["retry"]:
                    missing.discard(answer["n"])
                elif answer["type"] == "error":
                    raise RuntimeError(f"message of {client} refused: {answer}")
