"""What the plain TCP connections send does not become a message, so that nothing in it can be answered."""

import random
import socket
import threading

import zmq

from tests.harness.load.misbehaving import CURRENT_PROTOCOL, GREETING, READY, open_raw_connections, send_raw


def test_zeromq_accepts_the_handshake() -> None:
    """Otherwise ZeroMQ would never read what follows the handshake."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            send_raw(connection, GREETING + READY + b"\x00\x05hello")
            assert router.poll(10_000)
            assert router.recv_multipart()[1:] == [b"hello"]


def test_nothing_that_is_sent_becomes_a_message() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        endpoint = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        opened = open_raw_connections(CURRENT_PROTOCOL, [endpoint], 3 * len(CURRENT_PROTOCOL), 1, threading.Event())
        assert opened == 3 * len(CURRENT_PROTOCOL)
        # ZeroMQ has read everything that came before the handshake of this socket, so any message would come first.
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(endpoint)
            dealer.send(b"well-behaved")
            assert router.poll(10_000)
            assert router.recv_multipart()[1:] == [b"well-behaved"]
            assert not router.poll(0)


def test_noise_never_has_the_version_of_an_older_protocol() -> None:
    """Versions 0 and 1 have no handshake that could fail, so their noise may become a message."""
    (noise,) = (raw for raw in CURRENT_PROTOCOL if raw.name == "noise")
    rng = random.Random(1)
    assert {noise.data(rng)[10] for _ in range(5000)} == set(range(3, 256))


def test_the_same_seed_sends_the_same_bytes() -> None:
    first, second = ([raw.data(random.Random(5)) for raw in CURRENT_PROTOCOL] for _ in range(2))
    assert first == second
