"""The connection of a peer that vanishes while it is being answered ends in bounded time."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from tests.in_process import INPUTS
from tests.unit.server.test_control import ControlSocket

HEARTBEAT_S = 5.0  # the default
WAIT_S = 90.0  # much longer than it takes, and much shorter than the 15 minutes of TCP

# Runs in its own network namespace, whose loopback interface goes down before the answer.
PROGRAM = """
import subprocess, sys, threading
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

import zmq
from ffstream.config import Limits
from ffstream.metrics import Metrics
from ffstream.server.control import ControlLoop
from ffstream.wire.images import ImageChecker
from tests.in_process import Peer
from tests.support import wait_until

started, gate, metrics = threading.Event(), threading.Event(), Metrics()

def hold():
    started.set()
    gate.wait()
    return {"answer": "x" * 1000}

loop = ControlLoop({"hold": lambda arguments: hold}, Limits(heartbeat_s=1), metrics, sys.exit,
                   checker=ImageChecker([16], 4, 10), boot="boot")
loop.bind(zmq.Context(), "tcp://127.0.0.1:*")
loop.start()
peer = Peer(loop.endpoint)
peer.send("request", id=1, command="hold", arguments={})
assert started.wait(30)
subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
gate.set()
ended = lambda: metrics.registry.get_sample_value("ffstream_connections_ended_total", {"socket": "control"})
wait_until(ended, float(sys.argv[1]), "the connection has ended")
assert not peer.socket.poll(0)
"""
_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]


def can_create_namespaces() -> bool:
    try:
        tried = subprocess.run([*_NAMESPACE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    except OSError:
        return False
    return tried.returncode == 0


def test_a_connection_ends_when_its_peer_vanishes_before_the_answer() -> None:
    if not can_create_namespaces():
        pytest.skip("needs `unshare` and `ip`, and the right to create a network namespace")
    program = [*_NAMESPACE, sys.executable, "-c", PROGRAM, str(WAIT_S)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=WAIT_S + 60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_every_connection_has_a_tcp_user_timeout() -> None:
    control = ControlSocket()
    try:
        control.ask(1, "echo", x=INPUTS)
        control.peer.answer()
        port = int(control.loop.endpoint.rpartition(":")[2])
        found = [
            each.fd
            for each in psutil.Process().net_connections("tcp")
            if each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
        ]
        assert len(found) == 1
        with socket.socket(fileno=os.dup(found[0])) as connection:
            limit_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert limit_ms == 4 * HEARTBEAT_S * 1000
    finally:
        control.close()
