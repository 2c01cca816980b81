"""Daemons in processes of their own: what the tools and the tests share."""

import random
import socket


def free_port() -> int:
    """A port that a daemon can have again after a restart.

    Outside the range that connections get theirs from, so that no other program takes it meanwhile and no client that
    reconnects meets itself there.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
