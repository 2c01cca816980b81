"""Clients whose daemon is missing, starts late or restarts, and clients of an endpoint that is not a daemon's."""

import http.server
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from ffstream.client import Control, CurveKeys, Predictor, Producer
from ffstream.client.probe import probe
from ffstream.errors import ConfigError, Reason, RequestRefused, Unreachable
from ffstream.security.keys import KeyPair
from tests.harness.daemon_directory import free_port
from tests.support import wait_until
from tests.unit.client.scripted import Scripted

IMAGE = np.zeros((1, 6), np.uint8)
LONG_S = 60.0  # for things that take a moment
Script = Callable[..., Scripted]
CONNECT: dict[str, Callable[[str], object]] = {
    "Producer": lambda endpoint: Producer(endpoint, connect_timeout_s=LONG_S),
    "Predictor": lambda endpoint: Predictor(endpoint).predict(IMAGE, LONG_S),
    "Control": lambda endpoint: Control(endpoint).status(LONG_S),
}


def answer(daemon: Scripted, fields: dict[str, Any]) -> None:
    if fields["type"] == "predict":
        daemon.say("prediction", bytes(8), id=fields["id"], labels=[1], version=1, seq=1)
    elif fields["type"] == "request":
        daemon.say("reply", id=fields["id"], result={})
    else:
        daemon.ack(fields["n"])


@pytest.fixture
def web() -> Iterator[str]:
    """The endpoint of an HTTP server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"tcp://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(LONG_S)


@pytest.mark.parametrize("kind", ["Predictor", "Control"])
def test_a_refused_connection_fails_a_request_long_before_its_timeout(kind: str) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        CONNECT[kind](endpoint)
    assert time.monotonic() - began < LONG_S / 2
    assert f"nobody listens at {endpoint} (Connection refused)" in caught.value.message
    assert "ffstream serve" in caught.value.hint


def test_an_ipc_socket_that_is_missing_or_abandoned(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"nobody listens at ipc://.*none \(No such file or directory\)"):
        Control(f"ipc://{tmp_path}/none").status()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))  # as left behind by a daemon that was killed
    with left, pytest.raises(Unreachable, match=r"nobody listens at ipc://.*left \(Connection refused\)"):
        Control(f"ipc://{tmp_path}/left").status()


@pytest.mark.parametrize("name", ["no.such.host.invalid", "two..dots", "x" * 70 + ".invalid"])
def test_a_host_name_that_cannot_be_resolved(name: str) -> None:
    with pytest.raises(Unreachable, match=f"the name '{re.escape(name)}' cannot be resolved"):
        Control(f"tcp://{name}:5757", connect_timeout_s=0.1).status(LONG_S)


def test_a_client_that_was_connected_waits_for_a_restart_of_the_daemon(scripted: Script) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(answer, endpoint, socket="predict")
    with Predictor(endpoint, connect_timeout_s=0.0) as predictor:
        predictor.predict(IMAGE, LONG_S)
        first.close()
        with pytest.raises(Unreachable, match=r"nobody listens at .*; tried for 1\.?\d* s"):
            predictor.predict(IMAGE, 1.0)
        second = scripted(answer, endpoint, socket="predict")
        assert predictor.predict(IMAGE, LONG_S).labels.tolist() == [1]
        assert len(second.of_type("hello")) == 1


@pytest.mark.parametrize("kind", CONNECT)
def test_an_http_server_is_recognised(web: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"an HTTP server listens at {web}") as caught:
        CONNECT[kind](web)
    assert "listen.http" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "there", "option"),
    [
        ("Producer", "predict", "listen.learn"),
        ("Producer", "control", "listen.learn"),
        ("Predictor", "learn", "listen.predict"),
        ("Control", "predict", "listen.control"),
    ],
)
def test_another_socket_of_the_daemon_is_recognised(scripted: Script, kind: str, there: str, option: str) -> None:
    daemon = scripted(answer, socket=there)
    with pytest.raises(ConfigError, match=f"is the {there} socket of the daemon") as caught:
        CONNECT[kind](daemon.endpoint)
    assert option in caught.value.hint
    assert kind in caught.value.hint


def test_a_silent_server_is_recognised(scripted: Script) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = "tcp://127.0.0.1:{1}".format(*silent.getsockname())
        reasons: list[Reason] = []
        with pytest.raises(Unreachable, match="does not greet as a ZeroMQ server"):
            Producer(endpoint, connect_timeout_s=LONG_S / 6, on_waiting=reasons.append)
        assert [reason.code for reason in reasons] == ["unreachable"]


def test_a_client_waits_for_a_daemon_that_starts_late(scripted: Script) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    reasons: list[Reason] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Producer, endpoint, connect_timeout_s=LONG_S, on_waiting=reasons.append)
        wait_until(lambda: reasons, LONG_S, "the reason is known")
        assert f"nobody listens at {endpoint}" in reasons[0].message
        scripted(answer, endpoint)
        with waiting.result(LONG_S) as producer:
            producer.send(IMAGE, [1])
        assert producer.waiting is None


def test_a_proxy_whose_daemon_starts_late_is_not_a_rejection(scripted: Script) -> None:
    """It accepts connections and closes them again, as a load balancer or a forwarded port does."""
    own = zmq.curve_keypair()
    keys = CurveKeys(KeyPair(*own), zmq.curve_keypair()[0])
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        endpoint = "tcp://127.0.0.1:{1}".format(*proxy.getsockname())
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(Producer, endpoint, connect_timeout_s=LONG_S, keys=keys)
            for _ in range(8):
                proxy.accept()[0].close()
            assert not waiting.done() or waiting.exception() is None
            proxy.close()
            server: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
            server.setsockopt(zmq.LINGER, 0)
            server.bind(endpoint)  # without keys, so that the error of the client comes from a handshake
            with pytest.raises(RequestRefused, match="uses no keys"):
                waiting.result(LONG_S)
            server.close()


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1", "localhost"])
@pytest.mark.parametrize("kind", ["Predictor", "Control"])
def test_ipv4_and_ipv6_addresses(scripted: Script, host: str, kind: str) -> None:
    its_socket = {"Predictor": "predict", "Control": "control"}[kind]
    daemon = scripted(answer, f"tcp://{host if '[' in host else '127.0.0.1'}:*", socket=its_socket)
    port = daemon.endpoint.rpartition(":")[2]
    CONNECT[kind](f"tcp://{host}:{port}")


def _names_of_ipv6_loopback() -> list[str]:
    found = []
    for name in ("ip6-localhost", "localhost6", "localhost"):
        try:
            if any(each[4][0] == "::1" for each in socket.getaddrinfo(name, 1, socket.AF_INET6)):
                found.append(name)
        except OSError:
            continue
    return found


def test_a_host_name_with_an_ipv6_address(scripted: Script) -> None:
    names = _names_of_ipv6_loopback()
    if not names:
        pytest.skip("no name resolves to ::1 here")
    daemon = scripted(answer, "tcp://[::1]:*", socket="control")
    assert Control(f"tcp://{names[0]}:{daemon.endpoint.rpartition(':')[2]}").status(LONG_S) == {}


def test_the_probe_finds_the_security_mechanism() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as plain, context.socket(zmq.ROUTER) as curve:
        curve.setsockopt(zmq.CURVE_SERVER, 1)
        curve.setsockopt(zmq.CURVE_SECRETKEY, zmq.curve_keypair()[1])
        for server, mechanism in ((plain, "NULL"), (curve, "CURVE")):
            server.setsockopt(zmq.LINGER, 0)
            port = server.bind_to_random_port("tcp://127.0.0.1")
            found = probe(f"tcp://localhost:{port}", LONG_S)
            assert found is not None
            assert (found.mechanism, found.connects, found.is_http) == (mechanism, True, False)


def test_a_stopped_process_is_not_reported_as_absent() -> None:
    code = """if True:
        import socket, sys
        server = socket.create_server(("127.0.0.1", 0))
        print(server.getsockname()[1], flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stopped:
        try:
            assert stopped.stdout is not None
            port = int(stopped.stdout.readline())
            stopped.send_signal(signal.SIGSTOP)
            reasons: list[Reason] = []
            with ThreadPoolExecutor(1) as pool:
                asking = pool.submit(
                    Producer, f"tcp://127.0.0.1:{port}", connect_timeout_s=LONG_S / 4, on_waiting=reasons.append
                )
                wait_until(lambda: reasons, LONG_S, "the reason is known")
                with pytest.raises(Unreachable, match="accepts connections, but does not greet as a ZeroMQ server"):
                    asking.result(LONG_S)
            assert all("nobody listens" not in reason.message for reason in reasons)
        finally:
            stopped.kill()


def test_clients_that_are_dropped_without_close_do_not_block_the_others(
    scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All clients share libzmq's I/O thread, which reports events to each of them until it is gone."""
    monkeypatch.setattr("ffstream.client.connection._RECONNECT_MS", 1)
    monkeypatch.setattr("ffstream.client.connection._RECONNECT_MAX_MS", 1)
    nobody = f"tcp://127.0.0.1:{free_port()}"
    for _ in range(300):
        Control(nobody)
    assert Control(scripted(answer, socket="control").endpoint).status(LONG_S) == {}


def test_an_idle_client_does_not_block_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq's I/O thread reports each attempt to the client, which does not read the reports. It must not block."""
    monkeypatch.setattr("ffstream.client.connection._RECONNECT_MS", 1)
    monkeypatch.setattr("ffstream.client.connection._RECONNECT_MAX_MS", 1)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        server.settimeout(LONG_S)
        with Control("tcp://127.0.0.1:{1}".format(*server.getsockname())):
            for _ in range(1200):  # more than 2,000 events, the default limit of a queue
                server.accept()[0].close()


def test_a_command_whose_connection_breaks_is_not_repeated(scripted: Script) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(lambda daemon, fields: None, endpoint, socket="control")
    again = partial(scripted, answer, endpoint, socket="control")
    with Control(endpoint) as control, ThreadPoolExecutor(1) as pool:

        def restart() -> Scripted:
            wait_until(lambda: first.of_type("request"), LONG_S, "the command has arrived")
            first.close()
            return again()

        restarted = pool.submit(restart)
        with pytest.raises(Unreachable, match="may have been carried out"):
            control.request("checkpoint", timeout_s=LONG_S)
        second = restarted.result(LONG_S)
        assert second.of_type("request") == []
        assert control.status(LONG_S) == {}


def test_a_query_whose_connection_breaks_is_asked_again(scripted: Script) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(lambda daemon, fields: None, endpoint, socket="predict")
    with Predictor(endpoint) as predictor, ThreadPoolExecutor(1) as pool:

        def restart() -> Scripted:
            wait_until(lambda: first.of_type("predict"), LONG_S, "the query has arrived")
            first.close()
            return scripted(answer, endpoint, socket="predict")

        restarted = pool.submit(restart)
        assert predictor.predict(IMAGE, LONG_S).labels.tolist() == [1]
        restarted.result(LONG_S)
