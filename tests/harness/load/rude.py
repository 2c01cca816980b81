"""Clients without manners: slow readers, those that never read, and what is no client at all."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.synchronize import Event
from typing import NamedTuple

from tests.harness.load.peer import INPUTS, SHAPE, Peer, header, samples
from tests.harness.load.workers import side_by_side

SAMPLES = 4  # in a message
_FEW_REPLIES = 10
_IMAGE = bytes(INPUTS)

# ZMTP 3.0: a greeting of 64 bytes, then each side's READY.
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_PROPERTIES = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
READY = b"\x04" + bytes([len(_PROPERTIES)]) + _PROPERTIES


def send_without_reading(stop: Event, endpoints: Mapping[str, str], per_second: float) -> dict[str, int]:
    """Slow readers and clients that never read, on every socket. Returns the messages that each producer sent, by
    its name: which of them are stored, only the daemon knows."""
    sent = {"slow": 0, "silent": 0}
    pause_s = 1 / per_second

    def produce(name: str, reads_every_s: float | None, ending: threading.Event) -> None:
        with Peer(endpoints["learn"], replies=_FEW_REPLIES) as peer:
            read_at = time.monotonic()
            while not ending.wait(pause_s):
                n = sent[name] + 1
                if peer.say(*samples(name, n, 1, SAMPLES)):
                    sent[name] = n
                if reads_every_s is not None and time.monotonic() - read_at > reads_every_s:
                    read_at = time.monotonic()
                    peer.hear(0.0)

    def ask(socket: str, frames: tuple[bytes, ...], ending: threading.Event) -> None:
        with Peer(endpoints[socket], replies=_FEW_REPLIES) as peer:
            while not ending.wait(pause_s):
                peer.say(*frames)

    query = header("predict", id=1, count=1, dtype="uint8", shape=SHAPE)
    status = header("request", id=1, command="status", arguments={})
    side_by_side(
        stop,
        [
            partial(produce, "slow", 1.0),
            partial(produce, "silent", None),
            partial(ask, "predict", (query, _IMAGE)),
            partial(ask, "control", (status,)),
        ],
    )
    return sent


class Raw(NamedTuple):
    """What is said on a bare TCP connection, and whether it is then held open for a while."""

    name: str
    says: Callable[[random.Random], bytes]
    holds: bool


def _noise(chance: random.Random) -> bytes:
    """Begins as a greeting of today does, its version (3 or later) too: nothing else in it can pass for a message."""
    version = bytes([chance.randrange(3, 256)])
    return b"\xff" + chance.randbytes(8) + b"\x7f" + version + chance.randbytes(chance.randrange(4096))


RAW = (
    Raw("nothing", lambda chance: b"", holds=True),
    Raw("noise", _noise, holds=False),
    Raw("noise, held", _noise, holds=True),
    Raw("http", lambda chance: b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", holds=False),
    Raw("half a greeting", lambda chance: GREETING[: chance.randrange(1, 64)], holds=True),
    Raw("a greeting and nothing", lambda chance: GREETING, holds=True),
    Raw("a greeting and noise", lambda chance: GREETING + chance.randbytes(200), holds=False),
    Raw("no such mechanism", lambda chance: GREETING.replace(b"NULL", b"VOID"), holds=False),
    Raw("half a READY", lambda chance: GREETING + READY[: chance.randrange(1, len(READY))], holds=True),
    Raw("a frame of 2^63 bytes", lambda chance: GREETING + READY + b"\x02" + b"\xff" * 8, holds=False),
    Raw(
        "a frame that never ends",
        lambda chance: GREETING + READY + b"\x02" + (1000).to_bytes(8, "big") + b"half",
        holds=True,
    ),
    Raw("a message that never ends", lambda chance: GREETING + READY + b"\x01\x01x" * 50, holds=True),
)
# ZMTP 1.0 had no greeting, so ZeroMQ takes such bytes for messages of an old peer: some get an answer.
OLD = (
    Raw("any noise", lambda chance: chance.randbytes(chance.randrange(1, 4096)), holds=False),
    Raw("tls", lambda chance: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500), holds=True),
)
_HELD_MAX = 64
_TCP_S = 5.0


def say(connection: socket.socket, words: bytes) -> None:
    """Sends them; what follows a whole greeting only when the other side has greeted, as ZMTP wants it."""
    if not words.startswith(GREETING):
        connection.sendall(words)
        return
    connection.sendall(GREETING)
    heard = 0
    while heard < len(GREETING) and (more := connection.recv(len(GREETING) - heard)):
        heard += len(more)
    connection.sendall(words[len(GREETING) :])


def garble(
    kinds: Sequence[Raw], endpoints: Sequence[str], connections: int, seed: int, ending: threading.Event
) -> int:
    """Opens so many bare TCP connections, a few dozen of them held open at a time. Returns how many were opened."""
    chance = random.Random(seed)
    held: list[socket.socket] = []
    opened = 0
    try:
        while opened < connections and not ending.is_set():
            raw = kinds[opened % len(kinds)]
            host, _, port = chance.choice(endpoints).removeprefix("tcp://").rpartition(":")
            connection = socket.create_connection((host, int(port)), _TCP_S)
            opened += 1
            with contextlib.suppress(OSError):  # cut off in the middle of it: as it should be
                say(connection, raw.says(chance))
            if raw.holds:
                held.append(connection)
            else:
                connection.close()
            if len(held) > _HELD_MAX:
                held.pop(0).close()
    finally:
        for each in held:
            each.close()
    return opened
