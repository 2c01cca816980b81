"""Daemons in the test's own process, on free ports of loopback, with a network that is small enough to learn at once.

Daemons as processes are in `tests/harness/daemon.py`.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
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
from tests.harness.daemon_directory import FREE_PORTS
from tests.harness.raw_client import RawClient

INPUTS = 16
ANSWER_S = 60.0
WAIT_S = 60.0
ANY_NETWORK = (
    *FREE_PORTS,
    "pipeline.device=cpu",
    "pipeline.precision=fp32",
    "learning.linger_s=0.01",
    "checkpoint.every_s=0",
    "checkpoint.every_samples=0",
)
SMALL = (
    *ANY_NETWORK,
    "network.image_shape=[4,4]",
    "network.widths=[32,32]",
    "network.labels=4",
    "network.batch_size=8",
    "network.warmup_batch_size=4",
    "network.warmup_samples=32",
    "network.replay=0",
    "network.replay_jitter=0",
    "network.replay_buffer=100",
)


def config(state: Path, *settings: str, base: Sequence[str] = SMALL) -> Config:
    """Free ports and a small network, unless the settings say otherwise. `base` is ANY_NETWORK for presets."""
    return load(settings=[f"state={state}", *base, *settings], environment={})


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random images."""
    return np.random.default_rng(seed).integers(0, 256, (count, INPUTS), np.uint8)


def labels(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Random labels."""
    return np.random.default_rng(seed).integers(0, 4, count)


@contextmanager
def cut_off(socket: zmq.Socket[bytes], timeout_s: float = ANSWER_S) -> Iterator[None]:
    """Asserts that the messages sent in the block end the connection and are not answered."""
    # An answer would come over this connection, so none can come once it is gone.
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        yield
        assert monitor.poll(int(timeout_s * 1000)), f"the connection is still there after {timeout_s:g} s"
        assert not socket.poll(0), "the message was answered"
    finally:
        socket.disable_monitor()


class Peer(RawClient):
    """A raw client whose answers a test expects. Waiting for one fails the test after a deadline."""

    def __init__(self, endpoint: str, keys: CurveKeys | None = None) -> None:
        super().__init__(endpoint, keys=keys)

    def send_frames(self, *frames: bytes) -> bool:
        """Sends a message of any frames. Waits while the socket is full."""
        self.socket.send_multipart(frames)
        return True

    def samples(self, n: int, **fields: Any) -> None:
        """Sends message `n` with one valid sample. `fields` override those of the header, and `payload`."""
        payload = fields.pop("payload", [bytes(INPUTS)])
        valid = {"client": "peer", "n": n, "base": 1, "count": 1, "dtype": "uint8", "shape": [INPUTS]}
        self.send("samples", *payload, **(valid | {"labels": b"\0\0"} | fields))

    def receive_frames(self, timeout_s: float = ANSWER_S) -> list[bytes]:
        """The frames of the next answer."""
        assert self.socket.poll(int(timeout_s * 1000)), f"no answer within {timeout_s:g} s"
        return self.socket.recv_multipart()

    def answer_and_payload(self, timeout_s: float = ANSWER_S) -> tuple[dict[str, Any], list[bytes]]:
        """The header and the payload of the next answer."""
        header, *payload = self.receive_frames(timeout_s)
        fields = msgpack.unpackb(header)
        assert fields["v"] == 1
        return fields, payload

    def answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The header of the next answer."""
        return self.answer_and_payload(timeout_s)[0]

    def acked(self, count: int) -> dict[int, tuple[int, int]]:
        """Receives acks for `count` messages. For each message number: first sequence number, samples."""
        found: dict[int, tuple[int, int]] = {}
        received = 0
        while received < count:
            answer = self.answer()
            assert answer["type"] == "ack", answer
            received += len(answer["acks"])
            found |= {n: (first_seq, samples) for n, first_seq, samples in answer["acks"]}
        return found

    def cut_off(self) -> AbstractContextManager[None]:
        """Asserts that the messages sent in the block end the connection and are not answered."""
        return cut_off(self.socket)


class Running:
    """A daemon that serves, and clients of it. All of them are closed at the end of the block."""

    def __init__(self, state: Path, *settings: str, base: Sequence[str] = SMALL) -> None:
        self.state = state
        self._base = base
        self.settings: Sequence[str] = settings
        self._clients: list[Producer | Predictor | Control | Peer] = []
        self._start()

    def _start(self) -> None:
        self._stopped = True  # a daemon whose start fails needs no stop
        self.daemon = Daemon(config(self.state, *self.settings, base=self._base))
        self.daemon.start()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self._clients:
            each.close()
        self.stop()

    def stop(self) -> None:
        """Stops the daemon, once. Raises the error that has ended it, if any."""
        if not self._stopped:
            self._stopped = True
            self.daemon.stop()

    def restart(self) -> None:
        """Stops the daemon and starts another one on the same state. Clients find it if its ports are fixed."""
        self.stop()
        self._start()

    def producer(self, **options: Any) -> Producer:
        """A new producer."""
        self._clients.append(producer := Producer(self.daemon.learn.endpoint, **options))
        return producer

    def predictor(self, **options: Any) -> Predictor:
        """A new predictor."""
        self._clients.append(predictor := Predictor(self.daemon.predict.endpoint, **options))
        return predictor

    def control(self, **options: Any) -> Control:
        """A new control client."""
        self._clients.append(control := Control(self.daemon.control.endpoint, **options))
        return control

    def peer(self, socket: str = "learn", keys: CurveKeys | None = None) -> Peer:
        """A new raw client of one of the sockets."""
        self._clients.append(peer := Peer(getattr(self.daemon, socket).endpoint, keys))
        return peer

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 while it has none."""
        return self.daemon.metrics.registry.get_sample_value(f"ffstream_{name}", labels) or 0.0

    def stored(self) -> list[tuple[str, int, int, int]]:
        """Client, message number, first sequence number and samples of each journaled message, in order."""
        query = "SELECT client, n, first_seq, count FROM messages ORDER BY first_seq"
        connection = sqlite3.connect(self.state / "journal.sqlite")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


Start = Callable[..., Running]  # type of the fixture `start` in tests/integration


def feed(running: Running, count: int, *, seed: int = 0, batch: int = 8) -> None:
    """Sends random samples and waits until they are learned."""
    producer = running.producer()
    for at in range(0, count, batch):
        size = min(batch, count - at)
        producer.send(images(size, seed + at), labels(size, seed + at))
    producer.flush(WAIT_S)
    running.control().wait_idle(WAIT_S)
