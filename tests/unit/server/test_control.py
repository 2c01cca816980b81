import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from subprocess import PIPE
from typing import Any

import pytest
import zmq

from ffstream.config import Limits
from ffstream.errors import ConfigError, SequenceUnknown, Unavailable
from ffstream.metrics import Metrics
from ffstream.server.control import Command, ControlLoop
from ffstream.wire.images import ImageChecker
from tests.in_process import INPUTS, Peer
from tests.support import wait_until


class ControlSocket:
    """A control socket with commands that wait until the test opens the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = 0
        self.failures: list[Exception] = []
        self.metrics = Metrics()
        works = {"echo": self._echo, "hold": self._hold, "reject": self._reject, "break": self._break}
        commands: dict[str, Command] = {name: partial(partial, work) for name, work in works.items()}
        commands["check"] = self._check
        self.loop = ControlLoop(
            commands,
            Limits(),
            self.metrics,
            self.failures.append,
            checker=ImageChecker([INPUTS], 4, 10),
            boot="boot",
            waits={"hold"},
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.loop.bind(self._context, "tcp://127.0.0.1:*")
        self.loop.start()
        self.peer = Peer(self.loop.endpoint)

    def _check(self, arguments: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        raise ConfigError("no such time", hint="another")

    def _echo(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments

    def _hold(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.started += 1
        assert self.gate.wait(30)
        return {"held": True}

    def _reject(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments:
            raise Unavailable("not now", hint="later")
        raise SequenceUnknown("no such number", hint="another")

    def _break(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"never": 1 // 0}

    def ask(self, id: int, command: str, **arguments: Any) -> None:
        self.peer.send("request", id=id, command=command, arguments=arguments)

    def rejected(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("ffstream_messages_rejected_total", {"reason": reason}) or 0.0

    def close(self) -> None:
        self.gate.set()
        assert self.loop.stop(10)
        self.peer.close()
        self._context.term()
        assert self.failures == []


@pytest.fixture
def control() -> Iterator[ControlSocket]:
    control = ControlSocket()
    yield control
    control.close()


def test_a_command_receives_the_arguments_and_its_result_is_the_reply(control: ControlSocket) -> None:
    control.ask(7, "echo", a=[1, {"b": None}], c="é")
    assert control.peer.answer() == {"v": 1, "type": "reply", "id": 7, "result": {"a": [1, {"b": None}], "c": "é"}}


def test_waiting_commands_do_not_delay_others(control: ControlSocket) -> None:
    """Even with the maximum of waiting commands, a client can request the status, or a stop."""
    for id in range(40):
        control.ask(id, "hold")
    wait_until(lambda: control.started == 40, 10, "all of them run")
    control.ask(100, "echo")
    assert control.peer.answer()["id"] == 100
    control.gate.set()
    assert {control.peer.answer()["id"] for _ in range(40)} == set(range(40))


def test_a_command_with_wrong_arguments_does_not_count_as_running(control: ControlSocket) -> None:
    for id in range(56):
        control.ask(id, "hold")
    wait_until(lambda: control.started == 56, 10, "all of them run")
    for id in range(100, 200):
        control.ask(id, "check")
    assert {control.peer.answer()["code"] for _ in range(100)} == {"config"}
    control.gate.set()


def test_too_many_commands_are_rejected(control: ControlSocket) -> None:
    for id in range(57):
        control.ask(id, "hold")
    answer = control.peer.answer()
    assert (answer["code"], answer["id"], answer["retry"]) == ("busy", 56, True)
    control.ask(100, "echo")
    assert control.peer.answer() == {"v": 1, "type": "reply", "id": 100, "result": {}}, (
        "waiting commands do not delay others"
    )
    control.gate.set()
    assert len({control.peer.answer()["id"] for _ in range(56)}) == 56


@pytest.mark.parametrize(
    ("command", "arguments", "code", "retry"),
    [
        ("nothing", {}, "bad_header", False),
        ("", {}, "bad_header", False),
        ("reject", {}, "sequence_unknown", False),
        ("reject", {"now": 1}, "unavailable", True),
        ("break", {}, "internal", False),
    ],
)
def test_a_failed_command_is_answered_with_an_error_and_its_id(
    control: ControlSocket, command: str, arguments: dict[str, Any], code: str, retry: bool
) -> None:
    control.ask(3, command, **arguments)
    answer = control.peer.answer()
    assert (answer["type"], answer["id"], answer["code"], answer["retry"]) == ("error", 3, code, retry)
    assert answer["message"]
    assert answer["hint"]
    assert control.rejected(code) == 1
    control.ask(4, "echo")
    assert control.peer.answer()["id"] == 4


def test_the_error_about_an_unknown_command_lists_the_known_ones(control: ControlSocket) -> None:
    control.ask(1, "help")
    assert control.peer.answer()["hint"] == "known commands are break, check, echo, hold, reject"


def test_a_payload_is_rejected(control: ControlSocket) -> None:
    control.peer.send("request", b"frame", id=5, command="echo", arguments={})
    answer = control.peer.answer()
    assert (answer["code"], answer["id"]) == ("bad_frames", 5)


def test_a_ping_is_answered_while_commands_wait(control: ControlSocket) -> None:
    control.ask(1, "hold")
    control.peer.send("ping")
    assert control.peer.answer() == {
        "v": 1,
        "type": "pong",
        "socket": "control",
        "boot": "boot",
        "credit": 0,
        "refusing": None,
        "message": "",
        "hint": "",
    }


def test_a_hello_is_answered_with_the_limits_of_this_socket(control: ControlSocket) -> None:
    control.peer.send("hello")
    assert control.peer.answer() == {
        "v": 1,
        "type": "welcome",
        "socket": "control",
        "boot": "boot",
        "max_samples": 0,
        "max_bytes": 0,
        "inputs": INPUTS,
        "image_shape": [INPUTS],
        "labels": 4,
        "unlabelled": False,
        "next": 0,
        "credit": 0,
        "refusing": None,
        "message": "",
        "hint": "",
    }


def test_a_stop_while_commands_wait_is_clean(control: ControlSocket) -> None:
    for id in range(10):
        control.ask(id, "hold")
    wait_until(lambda: control.started == 10, 10, "all of them run")
    assert control.loop.stop(10)
    assert control.failures == []


FIRST_PEER = """
import sys, zmq
from ffstream.config import Limits
from ffstream.metrics import Metrics
from ffstream.server.control import ControlLoop
from ffstream.wire.images import ImageChecker
from tests.in_process import Peer

loop = ControlLoop({}, Limits(), Metrics(), sys.exit, checker=ImageChecker([16], 4, 10), boot="boot")
loop.reply = lambda peer, *message: print(peer.hex(), flush=True)
loop.bind(zmq.Context(), "tcp://127.0.0.1:*")
loop.start()
peer = Peer(loop.endpoint)
peer.send("ping")
sys.stdin.read()
"""


def test_the_routing_id_of_a_peer_cannot_be_guessed() -> None:
    """A client that chooses an id that is about to be assigned makes libzmq abort the process."""
    numbers = set()
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", FIRST_PEER], stdin=PIPE, stdout=PIPE, text=True) as process:
            assert process.stdout is not None
            numbers.add(process.stdout.readline())
            process.kill()
    assert len(numbers) == 2
    assert all(len(number) == 11 for number in numbers)
