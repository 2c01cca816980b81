"""ZeroMQ and HTTP on IPv6 addresses."""

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq
from starlette.applications import Starlette

from ffstream.config import Listen, Security
from ffstream.errors import ConfigError
from ffstream.server.credentials import check_exposure, is_local
from ffstream.server.http import HttpServer
from tests.in_process import ANSWER_S, Running
from tests.unit.server.ingest import Ingest

LOOPBACK = tuple(f"listen.{name}=tcp://[::1]:*" for name in ("learn", "predict", "control"))


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address")


def ping(endpoint: str) -> str:
    """The name of the socket that answers at the endpoint."""
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.IPV6, 1)
    try:
        dealer.connect(endpoint)
        dealer.send(msgpack.packb({"v": 1, "type": "ping"}))
        assert dealer.poll(int(ANSWER_S * 1000)), f"no answer from {endpoint}"
        return str(msgpack.unpackb(dealer.recv())["socket"])
    finally:
        dealer.close()


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    ingest = Ingest(tmp_path)
    yield ingest
    ingest.close()


@needs_ipv6
def test_a_daemon_listens_on_the_ipv6_loopback_address(tmp_path: Path) -> None:
    with Running(tmp_path / "state", *LOOPBACK, "listen.http=[::1]:0") as running:
        for loop in (running.daemon.learn, running.daemon.predict, running.daemon.control):
            assert loop.endpoint.startswith("tcp://[::1]:")
            assert ping(loop.endpoint) == loop.socket_name
        address = running.daemon.http.address
        assert address.startswith("[::1]:")
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=ANSWER_S) as answer:
            assert b"ffstream_build_info" in answer.read()


@needs_ipv6
@pytest.mark.parametrize("host", ["[::]", "*"])
def test_a_wildcard_listens_on_ipv4_too(ingest: Ingest, host: str) -> None:
    ingest.loop._close()  # the fixture's own endpoint
    ingest.loop.bind(ingest._context, f"tcp://{host}:*")
    port = ingest.loop.endpoint.rpartition(":")[2]
    ingest.start()
    for reached in ("127.0.0.1", "[::1]"):
        assert ping(f"tcp://{reached}:{port}") == "learn"


@needs_ipv6
def test_http_on_a_wildcard_listens_on_ipv4_too() -> None:
    server = HttpServer(Starlette(), "[::]:0")
    server.start()
    port = server.address.removeprefix("[::]:")
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, int(port)), ANSWER_S) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 404")
    assert server.stop(ANSWER_S)


def test_an_ipv4_endpoint_is_reported_as_ipv4(ingest: Ingest) -> None:
    assert ingest.loop.endpoint.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize("host", ["[::1]", "[::ffff:127.0.0.1]", "127.0.0.1", "127.1.2.3", "localhost"])
def test_loopback_addresses_need_no_keys(host: str) -> None:
    assert is_local(f"tcp://{host}:5757")
    assert check_exposure(Listen(learn=f"tcp://{host}:5757", http=f"{host}:8757"), Security()) == []


@pytest.mark.parametrize("host", ["[::]", "[fe80::1]", "[::ffff:10.0.0.1]", "[2001:db8::1]", "0.0.0.0"])
def test_other_addresses_need_keys(host: str) -> None:
    with pytest.raises(ConfigError, match=r"listen\.learn"):
        check_exposure(Listen(learn=f"tcp://{host}:5757"), Security())
    with pytest.raises(ConfigError, match=r"listen\.http"):
        check_exposure(Listen(http=f"{host}:8757"), Security())
