"""Daemons in this process, on free ports of loopback, with a network that learns in no time."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from ffstream.client import Control, CurveKeys, Predictor, Producer
from ffstream.config import Config, load
from ffstream.daemon.daemon import Daemon

INPUTS = 16
ANSWER_S = 20.0
SMALL = (
    "listen.learn=tcp://127.0.0.1:*",
    "listen.predict=tcp://127.0.0.1:*",
    "listen.control=tcp://127.0.0.1:*",
    "listen.http=127.0.0.1:0",
    "network.image_shape=[4,4]",
    "network.widths=[32,32]",
    "network.labels=4",
    "network.batch_size=8",
    "network.warmup_batch_size=4",
    "network.warmup_samples=32",
    "network.replay=0",
    "network.replay_jitter=0",
    "network.replay_buffer=100",
    "pipeline.device=cpu",
    "pipeline.precision=fp32",
    "learning.linger_s=0.01",
    "checkpoint.every_s=0",
    "checkpoint.every_samples=0",
)


def config(state: Path, *settings: str) -> Config:
    """Free ports and a small network, unless the settings say otherwise."""
    return load(settings=[f"state={state}", *SMALL, *settings], environment={})


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random images."""
    return np.random.default_rng(seed).integers(0, 256, (count, INPUTS), np.uint8)


def labels(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Random labels."""
    return np.random.default_rng(seed).integers(0, 4, count)


@contextmanager
def cut_off(socket: zmq.Socket[bytes], timeout_s: float = ANSWER_S) -> Iterator[None]:
    """What is said in the block ends the connection, and has no answer."""
    # An answer would have come over that connection, so once it is gone nothing more can come.
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        yield
        assert monitor.poll(int(timeout_s * 1000)), f"the connection is still there after {timeout_s:g} s"
        assert not socket.poll(0), "an answer"
    finally:
        socket.disable_monitor()


class Peer:
    """A client that says what it is told to say, frame by frame."""

    def __init__(self, endpoint: str, keys: CurveKeys | None = None) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            keys.use(self._socket)
        self._socket.connect(endpoint)

    def say(self, *frames: bytes) -> None:
        """Sends frames."""
        self._socket.send_multipart(frames)

    def send(self, type: str, *payload: bytes, **fields: Any) -> None:
        """Sends a message with a good version."""
        self.say(msgpack.packb({"v": 1, "type": type, **fields}), *payload)

    def samples(self, n: int, **fields: Any) -> None:
        """One good sample under that number, unless the fields say otherwise."""
        payload = fields.pop("payload", [bytes(INPUTS)])
        good = {"client": "peer", "n": n, "base": 1, "count": 1, "dtype": "uint8", "shape": [INPUTS]}
        self.send("samples", *payload, **(good | {"labels": b"\0\0"} | fields))

    def frames(self, timeout_s: float = ANSWER_S) -> list[bytes]:
        """The frames of the next answer."""
        assert self._socket.poll(int(timeout_s * 1000)), f"no answer within {timeout_s:g} s"
        return self._socket.recv_multipart()

    def hear(self, timeout_s: float = ANSWER_S) -> tuple[dict[str, Any], list[bytes]]:
        """The next answer and its payload."""
        header, *payload = self.frames(timeout_s)
        fields = msgpack.unpackb(header)
        assert fields["v"] == 1
        return fields, payload

    def answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The next answer's header."""
        return self.hear(timeout_s)[0]

    def acked(self, count: int) -> dict[int, tuple[int, int]]:
        """The next that many acks: first sequence number and samples by message."""
        found: dict[int, tuple[int, int]] = {}
        heard = 0
        while heard < count:
            answer = self.answer()
            assert answer["type"] == "ack", answer
            heard += len(answer["acks"])
            found |= {n: (first_seq, samples) for n, first_seq, samples in answer["acks"]}
        return found

    def cut_off(self) -> AbstractContextManager[None]:
        """What it says in the block ends its connection, and has no answer."""
        return cut_off(self._socket)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Running:
    """A daemon that serves, and who talks to it. Everything is closed at the end of the block."""

    def __init__(self, state: Path, *settings: str) -> None:
        self.state = state
        self.settings: Sequence[str] = settings
        self._open: list[Producer | Predictor | Control | Peer] = []
        self._start()

    def _start(self) -> None:
        self._has_ended = True  # until it has begun
        self.daemon = Daemon(config(self.state, *self.settings))
        self.daemon.start()
        self._has_ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self._open:
            each.close()
        self.stop()

    def stop(self) -> None:
        """Ends the daemon in good order, once. Raises what it ended of."""
        if not self._has_ended:
            self._has_ended = True
            self.daemon.stop()

    def restart(self) -> None:
        """Stops, and starts another on the same state. Give it ports of its own, or clients lose it."""
        self.stop()
        self._start()

    def producer(self, **options: Any) -> Producer:
        """A new producer."""
        self._open.append(producer := Producer(self.daemon.learn.endpoint, **options))
        return producer

    def predictor(self, **options: Any) -> Predictor:
        """A new predictor."""
        self._open.append(predictor := Predictor(self.daemon.predict.endpoint, **options))
        return predictor

    def control(self, **options: Any) -> Control:
        """A new control connection."""
        self._open.append(control := Control(self.daemon.control.endpoint, **options))
        return control

    def peer(self, socket: str = "learn", keys: CurveKeys | None = None) -> Peer:
        """A new raw client of one of the sockets."""
        self._open.append(peer := Peer(getattr(self.daemon, socket).endpoint, keys))
        return peer

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, 0 before it has one."""
        return self.daemon.metrics.registry.get_sample_value(f"ffstream_{name}", labels) or 0.0

    def stored(self) -> list[tuple[str, int, int, int]]:
        """client, message number, first sequence number and samples of each journaled message, in order."""
        query = "SELECT client, n, first_seq, count FROM messages ORDER BY first_seq"
        connection = sqlite3.connect(self.state / "journal.sqlite")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
