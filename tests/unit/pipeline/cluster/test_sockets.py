"""With keys, only the peer that was named connects."""

from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ffstream.pipeline.cluster.sockets import (
    Allowed,
    Keys,
    Socket,
    authenticate,
    connected,
    listening,
    monitor_of,
)
from tests.unit.pipeline.run import DEADLINE_S

TOKEN = "token"
HOST = "127.0.0.1"


@pytest.fixture
def context() -> Iterator["zmq.Context[Any]"]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


class Server:
    """A listening socket with keys, to which `allowed` may connect."""

    def __init__(self, context: "zmq.Context[Any]") -> None:
        self.keys = Keys.new()
        self.allowed = Allowed()
        self._authenticator = authenticate(context, self.allowed)
        self.socket, self.port = listening(context, HOST, self.keys)

    def receives(self, timeout_s: float = DEADLINE_S) -> bytes | None:
        return self.socket.recv() if self.socket.poll(int(timeout_s * 1000)) else None

    def end(self) -> None:
        self._authenticator.stop()


@pytest.fixture
def server(context: "zmq.Context[Any]") -> Iterator[Server]:
    server = Server(context)
    yield server
    server.end()


def refused(client: Socket) -> Socket:
    """A monitor of the client, which has a message when the server refuses it."""
    failed = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
    return client.get_monitor_socket(failed | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)


def connecting(server: Server, keys: Keys | None, server_key: str | None = None) -> Socket:
    # A context of its own, as in another process.
    key = server.keys.public if server_key is None else server_key
    return connected(zmq.Context(), HOST, server.port, TOKEN, keys, key)


def test_the_right_key(server: Server) -> None:
    keys = Keys.new()
    server.allowed.only([keys.public])
    client = connecting(server, keys)
    assert server.receives() == TOKEN.encode()
    server.socket.send(b"answer")
    assert client.recv() == b"answer"
    client.context.destroy(linger=0)


@pytest.mark.parametrize("wrong", ["another key", "no key", "another server", "a key of before"])
def test_a_wrong_key(server: Server, wrong: str) -> None:
    keys, other = Keys.new(), Keys.new()
    server.allowed.only([keys.public])
    match wrong:
        case "another key":
            client = connecting(server, other)
        case "no key":
            client = connecting(server, None)
        case "another server":
            client = connecting(server, keys, other.public)
        case _:
            server.allowed.only([other.public])
            client = connecting(server, keys)
    monitor = refused(client)
    for _ in range(2):  # it tries again
        assert monitor.poll(int(DEADLINE_S * 1000))
        recv_monitor_message(monitor)
    assert server.receives(0.0) is None
    client.context.destroy(linger=0)


def test_the_right_peer_connects_after_a_wrong_one(server: Server) -> None:
    keys = Keys.new()
    server.allowed.only([keys.public])
    stranger = connecting(server, Keys.new())
    monitor = refused(stranger)
    assert monitor.poll(int(DEADLINE_S * 1000))
    client = connecting(server, keys)
    assert server.receives() == TOKEN.encode()
    for each in (stranger, client):
        each.context.destroy(linger=0)


def test_the_monitor_tells_the_end_of_a_connection(context: "zmq.Context[Any]") -> None:
    socket, port = listening(context, HOST, None)
    monitor = monitor_of(socket)
    client = connected(context, HOST, port, TOKEN, None, "")
    assert socket.recv() == TOKEN.encode()
    assert not monitor.poll(0)
    client.close()
    assert monitor.poll(int(DEADLINE_S * 1000))
