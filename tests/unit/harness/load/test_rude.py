import random
import socket
import threading

import zmq

from tests.harness.load.rude import GREETING, RAW, READY, garble, say


def test_the_handshake_is_one_that_zeromq_takes() -> None:
    """Otherwise what comes after it would never be looked at, and prove nothing."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            say(connection, GREETING + READY + b"\x00\x05hello")
            assert router.poll(10_000)
            assert router.recv_multipart()[1:] == [b"hello"]


def test_none_of_it_becomes_a_message() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        endpoint = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        opened = garble(RAW, [endpoint], 3 * len(RAW), 1, threading.Event())
        assert opened == 3 * len(RAW)
        # ZeroMQ has taken in whatever came before the handshake of this one: what it made of that came out first.
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(endpoint)
            dealer.send(b"well-behaved")
            assert router.poll(10_000)
            assert router.recv_multipart()[1:] == [b"well-behaved"]
            assert not router.poll(0)


def test_noise_is_never_taken_for_an_older_protocol() -> None:
    """Versions 0 and 1 have no handshake to fail: once in a hundred times, any byte there would be one of them."""
    (noise,) = (raw for raw in RAW if raw.name == "noise")
    chance = random.Random(1)
    assert {noise.says(chance)[10] for _ in range(5000)} == set(range(3, 256))


def test_chance_has_it_the_same_way_again() -> None:
    first, second = ([raw.says(random.Random(5)) for raw in RAW] for _ in range(2))
    assert first == second
