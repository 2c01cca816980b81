"""A client that sends any frames. It uses no code of the package, so it can break every rule of the protocol."""

import time
from typing import TYPE_CHECKING, Any, Self

import msgpack
import numpy as np
import zmq

if TYPE_CHECKING:
    from ffstream.client import CurveKeys

INPUTS = 784  # of the networks of the presets, for which `samples` makes messages
LABELS = 10
SHAPE = [28, 28]


class RawClient:
    """A DEALER socket. With a small `replies`, few unread answers fit in it, so the daemon soon notices."""

    def __init__(
        self,
        endpoint: str,
        *,
        keys: "CurveKeys | None" = None,
        replies: int = 1000,
        context: "zmq.Context[Any] | None" = None,
    ) -> None:
        self.socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, replies)
        if keys is not None:
            keys.use(self.socket)
        self.socket.connect(endpoint)

    def send_frames(self, *frames: bytes) -> bool:
        """Sends a message of any frames. Returns False when the socket is full."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def send(self, type: str, *payload: bytes, **fields: Any) -> bool:
        """Sends a message with a header of this protocol version. Returns False when the socket is full."""
        return self.send_frames(header(type, **fields), *payload)

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The header of the next answer; None after the timeout."""
        if not self.socket.poll(max(0, int(1000 * timeout_s))):
            return None
        fields: dict[str, Any] = msgpack.unpackb(self.socket.recv_multipart()[0])
        return fields

    def receive_all(self) -> list[dict[str, Any]]:
        """The headers of all answers that have arrived."""
        received = []
        while True:
            try:
                received.append(msgpack.unpackb(self.socket.recv_multipart(zmq.NOBLOCK)[0]))
            except zmq.Again:
                return received

    def close(self) -> None:
        """Closes the socket and discards the messages in it."""
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
    """The frames of a valid message of samples. Its images and labels depend only on `n`."""
    rng = np.random.default_rng(n)
    labels = rng.integers(0, LABELS, count).astype("<u2").tobytes()
    fields = {"client": client, "n": n, "base": base, "count": count, "dtype": "uint8", "shape": SHAPE}
    return header("samples", **fields, labels=labels), rng.integers(0, 256, count * INPUTS, np.uint8).tobytes()


def next_number(endpoint: str, client: str, timeout_s: float = 30.0) -> int:
    """The number that the daemon expects for the next message of this client. Raises RuntimeError."""
    with RawClient(endpoint) as raw:
        raw.send("hello", client=client)
        welcome = raw.receive(timeout_s)
        if welcome is None or welcome["type"] != "welcome":
            raise RuntimeError(f"no welcome for {client}: {welcome}")
        return int(welcome["next"])


def resend_until_acked(endpoint: str, client: str, last: int, count: int, timeout_s: float = 120.0) -> None:
    """Sends messages 1 to `last`, each of `count` samples, again and again until all are acked.

    After this each of them is stored exactly once, whether or not it was stored before. Raises RuntimeError after the
    timeout, or when the daemon rejects a message for good.
    """
    deadline = time.monotonic() + timeout_s
    unacked = dict.fromkeys(range(1, last + 1))
    with RawClient(endpoint) as raw:
        while unacked:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(unacked)} messages of {client} are not acked after {timeout_s:g} s")
            window = list(unacked)[:256]
            for n in window:
                raw.send_frames(*samples(client, n, window[0], count))
            missing = set(window)
            while missing and (answer := raw.receive(2.0)) is not None:
                if answer["type"] == "ack":
                    for n, _, _ in answer["acks"]:
                        missing.discard(n)
                        unacked.pop(n, None)
                elif answer["type"] == "error" and answer["retry"]:
                    missing.discard(answer["n"])
                elif answer["type"] == "error":
                    raise RuntimeError(f"message of {client} rejected: {answer}")
