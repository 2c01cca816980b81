"""Misbehaving clients: they read their answers slowly or never, or speak no ZMTP at all."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.synchronize import Event
from typing import NamedTuple

from tests.harness.load.workers import run_in_threads
from tests.harness.raw_client import INPUTS, SHAPE, RawClient, header, samples

SAMPLES = 4  # in a message
_FEW_REPLIES = 10
_IMAGE = bytes(INPUTS)

# ZMTP 3.0: each side sends a greeting of 64 bytes, then READY.
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_PROPERTIES = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
READY = b"\x04" + bytes([len(_PROPERTIES)]) + _PROPERTIES


def send_without_reading(stop: Event, endpoints: Mapping[str, str], per_second: float) -> dict[str, int]:
    """Clients on every socket that read one answer a second, or none.

    Returns how many messages each of the two producers sent, by its name. Only the daemon knows which are stored.
    """
    sent = {"slow": 0, "silent": 0}
    pause_s = 1 / per_second

    def produce(name: str, reads_every_s: float | None, ending: threading.Event) -> None:
        with RawClient(endpoints["learn"], replies=_FEW_REPLIES) as raw:
            read_at = time.monotonic()
            while not ending.wait(pause_s):
                n = sent[name] + 1
                if raw.send_frames(*samples(name, n, 1, SAMPLES)):
                    sent[name] = n
                if reads_every_s is not None and time.monotonic() - read_at > reads_every_s:
                    read_at = time.monotonic()
                    raw.receive(0.0)

    def request(socket: str, frames: tuple[bytes, ...], ending: threading.Event) -> None:
        with RawClient(endpoints[socket], replies=_FEW_REPLIES) as raw:
            while not ending.wait(pause_s):
                raw.send_frames(*frames)

    query = header("predict", id=1, count=1, dtype="uint8", shape=SHAPE)
    status = header("request", id=1, command="status", arguments={})
    run_in_threads(
        stop,
        [
            partial(produce, "slow", 1.0),
            partial(produce, "silent", None),
            partial(request, "predict", (query, _IMAGE)),
            partial(request, "control", (status,)),
        ],
    )
    return sent


class RawConnection(NamedTuple):
    """What is sent on a plain TCP connection, and whether the connection then stays open for a while."""

    name: str
    data: Callable[[random.Random], bytes]
    stays_open: bool


def _noise(rng: random.Random) -> bytes:
    """Random bytes behind the signature and a version of 3 or higher, so that ZeroMQ expects a ZMTP 3 greeting.

    Then no part of it can be taken for a message.
    """
    version = bytes([rng.randrange(3, 256)])
    return b"\xff" + rng.randbytes(8) + b"\x7f" + version + rng.randbytes(rng.randrange(4096))


CURRENT_PROTOCOL = (
    RawConnection("nothing", lambda rng: b"", stays_open=True),
    RawConnection("noise", _noise, stays_open=False),
    RawConnection("noise on an open connection", _noise, stays_open=True),
    RawConnection("http", lambda rng: b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", stays_open=False),
    RawConnection("half a greeting", lambda rng: GREETING[: rng.randrange(1, 64)], stays_open=True),
    RawConnection("only a greeting", lambda rng: GREETING, stays_open=True),
    RawConnection("a greeting and noise", lambda rng: GREETING + rng.randbytes(200), stays_open=False),
    RawConnection("an unknown mechanism", lambda rng: GREETING.replace(b"NULL", b"VOID"), stays_open=False),
    RawConnection("half a READY", lambda rng: GREETING + READY[: rng.randrange(1, len(READY))], stays_open=True),
    RawConnection("a frame of 2^63 bytes", lambda rng: GREETING + READY + b"\x02" + b"\xff" * 8, stays_open=False),
    RawConnection(
        "an incomplete frame",
        lambda rng: GREETING + READY + b"\x02" + (1000).to_bytes(8, "big") + b"half",
        stays_open=True,
    ),
    RawConnection("an incomplete message", lambda rng: GREETING + READY + b"\x01\x01x" * 50, stays_open=True),
)
# ZMTP 1.0 has no greeting, so ZeroMQ takes such bytes for messages of an old peer. Some of them are answered.
OLD_PROTOCOL = (
    RawConnection("any noise", lambda rng: rng.randbytes(rng.randrange(1, 4096)), stays_open=False),
    RawConnection(
        "tls",
        lambda rng: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        stays_open=True,
    ),
)
_OPEN_MAX = 64
_TCP_S = 5.0


def send_raw(connection: socket.socket, data: bytes) -> None:
    """Sends bytes. After a complete greeting it waits for the greeting of the other side, as ZMTP requires."""
    if not data.startswith(GREETING):
        connection.sendall(data)
        return
    connection.sendall(GREETING)
    received = 0
    while received < len(GREETING) and (more := connection.recv(len(GREETING) - received)):
        received += len(more)
    connection.sendall(data[len(GREETING) :])


def open_raw_connections(
    kinds: Sequence[RawConnection], endpoints: Sequence[str], connections: int, seed: int, ending: threading.Event
) -> int:
    """Opens plain TCP connections, of which a few dozen stay open at a time. Returns how many were opened."""
    rng = random.Random(seed)
    still_open: list[socket.socket] = []
    opened = 0
    try:
        while opened < connections and not ending.is_set():
            raw = kinds[opened % len(kinds)]
            host, _, port = rng.choice(endpoints).removeprefix("tcp://").rpartition(":")
            connection = socket.create_connection((host, int(port)), _TCP_S)
            opened += 1
            with contextlib.suppress(OSError):  # the daemon may close the connection meanwhile, as it should
                send_raw(connection, raw.data(rng))
            if raw.stays_open:
                still_open.append(connection)
            else:
                connection.close()
            if len(still_open) > _OPEN_MAX:
                still_open.pop(0).close()
    finally:
        for each in still_open:
            each.close()
    return opened
