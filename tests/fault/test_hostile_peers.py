"""Any message gets exactly one answer of the protocol. The log has no traceback, and the socket continues to work."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ffstream.errors import FFStreamError
from ffstream.wire import codec
from ffstream.wire.messages import MAX_HEADER_BYTES, Ack, ErrorReply, Message, Ping, Pong, Prediction, Reply, Welcome
from tests.in_process import INPUTS, Peer, Running, images, labels

ANSWERS = {
    "control": codec.table(Reply, ErrorReply, Pong),
    "learn": codec.table(Welcome, Ack, ErrorReply, Pong),
    "predict": codec.table(Prediction, ErrorReply, Pong),
}
COMMANDS = ("status", "wait_idle", "checkpoint", "pause", "resume", "config", "snapshot")
GOOD: dict[str, list[tuple[dict[str, Any], list[bytes]]]] = {
    "control": [({"type": "request", "id": 1, "command": command, "arguments": {}}, []) for command in COMMANDS],
    "learn": [
        ({"type": "hello", "client": "a"}, []),
        (
            {
                "type": "samples",
                "client": "a",
                "n": 1,
                "base": 1,
                "count": 2,
                "dtype": "uint8",
                "shape": [INPUTS],
                "labels": bytes(4),
            },
            [bytes(2 * INPUTS)],
        ),
    ],
    "predict": [
        ({"type": "predict", "id": 1, "count": 2, "dtype": "uint8", "shape": [4, INPUTS // 4]}, [bytes(2 * INPUTS)]),
        ({"type": "predict", "id": 1, "count": 1, "dtype": "float32", "shape": [INPUTS]}, [bytes(4 * INPUTS)]),
    ],
}
sockets = st.sampled_from(sorted(GOOD))
some = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def codes(kind: type[FFStreamError]) -> set[str]:
    return {kind.code}.union(*map(codes, kind.__subclasses__()))


CODES = codes(FFStreamError) - {"internal"}


class Records(logging.Handler):
    """Collects warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # "message rejected" is the line about a message that was answered with an error.
        if not record.getMessage().startswith("message rejected "):
            self.lines.append(self.format(record))


class Target:
    """A daemon, and one raw client for each of its sockets."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.peers: dict[str, Peer] = {name: running.peer(name) for name in GOOD}
        self.log = Records()
        logging.getLogger("ffstream").addHandler(self.log)
        self.acked: set[tuple[int, int, int]] = set()

    def send(self, socket: str, frames: list[bytes]) -> Message:
        """Sends a message and a ping. Asserts that the protocol defines both answers; returns the first one."""
        peer = self.peers[socket]
        self.running.daemon.learner.pause(False)  # or a valid wait_idle would wait because of an earlier pause
        peer.send_frames(*frames)
        answer, payload = self._receive(peer, socket)
        if isinstance(answer, ErrorReply):
            assert answer.code in CODES, answer
            assert answer.hint
        elif isinstance(answer, Ack):
            self.acked |= set(answer.acks)
        elif isinstance(answer, Prediction):
            goodness = np.frombuffer(payload[0], "<f4")
            assert len(goodness) == 4 * len(answer.labels)
            assert np.isfinite(goodness).all()
        peer.send_frames(codec.encode(Ping()))
        assert isinstance(self._receive(peer, socket)[0], Pong)
        assert self.log.lines == []
        assert self.running.daemon.failure is None
        return answer

    def _receive(self, peer: Peer, socket: str) -> tuple[Message, list[bytes]]:
        frames = peer.receive_frames()
        if b"" in frames[:2]:  # the envelope in which a REQ socket gets its answer
            del frames[: frames.index(b"") + 1]
        header, *payload = frames
        return codec.decode(header, ANSWERS[socket], list_max=MAX_HEADER_BYTES), payload

    def still_works(self) -> None:
        """Well-behaved clients are not affected, and exactly the acked samples are stored."""
        control = self.running.control()
        control.request("resume", {}, 20.0)
        producer = self.running.producer()
        producer.send(images(8), labels(8), 60.0)
        producer.flush(60.0)
        control.request("wait_idle", {"timeout_s": 20}, 30.0)
        assert len(self.running.predictor().predict(images(3), 10.0).labels) == 3
        end = self.running.daemon.journal.head.seq
        assert sum(count for _, _, count in self.acked) + 8 == end

    def close(self) -> None:
        logging.getLogger("ffstream").removeHandler(self.log)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with Running(tmp_path_factory.mktemp("hostile") / "state", "limits.message_max_bytes=1000000") as running:
        target = Target(running)
        yield target
        target.still_works()
        target.close()


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from([0, 1, 2, 2**31, 2**62 - 1, 2**63 - 1, "uint8", "float32", [INPUTS], b"\0\0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9) | st.binary(max_size=9) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=8,
)
payloads = st.lists(st.binary(max_size=200) | st.sampled_from([bytes(INPUTS), bytes(4 * INPUTS)]), max_size=3)


@some
@given(socket=sockets, frames=st.lists(st.binary(max_size=100), min_size=1, max_size=4))
@example(socket="learn", frames=[b""])
@example(socket="control", frames=[b"", b"", b""])
@example(socket="predict", frames=[b"\xc1" * 70_000])
def test_any_frames_are_answered(target: Target, socket: str, frames: list[bytes]) -> None:
    target.send(socket, frames)


@some
@given(socket=sockets, header=anything, payload=payloads)
def test_any_header_is_answered(target: Target, socket: str, header: Any, payload: list[bytes]) -> None:
    if isinstance(header, dict):
        header |= {"v": 1}
    target.send(socket, [msgpack.packb(header), *payload])


@settings(some, max_examples=300)
@given(data=st.data())
def test_a_valid_message_with_any_changed_field_is_answered(target: Target, data: st.DataObject) -> None:
    socket = data.draw(sockets)
    fields, payload = data.draw(st.sampled_from(GOOD[socket]))
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(fields)), anything, max_size=2))
    header = (
        {"v": 1} | fields | {name: value for name, value in changes.items() if (socket, name) != ("control", "type")}
    )
    more = data.draw(st.just(payload) | payloads)
    target.send(socket, [msgpack.packb(header), *more])


@settings(some, max_examples=200)
@given(socket=sockets, data=st.data())
def test_a_valid_message_with_any_changed_bytes_is_answered(target: Target, socket: str, data: st.DataObject) -> None:
    fields, payload = data.draw(st.sampled_from(GOOD[socket]))
    frames = [bytearray(msgpack.packb({"v": 1} | fields)), *map(bytearray, payload)]
    for _ in range(data.draw(st.integers(1, 3))):
        frame = data.draw(st.sampled_from(frames))
        at = data.draw(st.integers(0, len(frame)))
        frame[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    target.send(socket, [bytes(frame) for frame in frames])


arguments = st.dictionaries(
    st.sampled_from(["timeout_s", "seq", "boot", "after", "recipe", "x", ""]), anything, max_size=3
)


@settings(some, max_examples=200)
@given(command=st.sampled_from(COMMANDS), arguments=arguments)
@example(command="wait_idle", arguments={"timeout_s": float("nan")})
@example(command="wait_idle", arguments={"timeout_s": True})
@example(command="checkpoint", arguments={"timeout_s": float("inf")})
@example(command="checkpoint", arguments={"timeout_s": 0})
@example(command="checkpoint", arguments={"timeout_s": 2**64 - 1})
@example(command="wait_idle", arguments={"timeout_s": 5e-324})
@example(command="snapshot", arguments={"timeout_s": float("nan"), "boot": "x" * 60_000})
@example(command="snapshot", arguments={"after": 2**63})
@example(command="snapshot", arguments={"after": 2**63 - 1, "boot": "\ud7ff", "recipe": True})
@example(command="snapshot", arguments={"recipe": "true"})
def test_a_command_with_any_arguments_is_answered(target: Target, command: str, arguments: dict[str, Any]) -> None:
    request = {"v": 1, "type": "request", "id": 1, "command": command, "arguments": arguments}
    answer = target.send("control", [msgpack.packb(request)])
    assert isinstance(answer, Reply | ErrorReply)
    assert answer.id in (1, None)


@pytest.mark.parametrize("socket", sorted(GOOD))
def test_a_message_of_very_many_frames_is_answered(target: Target, socket: str) -> None:
    fields, _ = GOOD[socket][0]
    many = [msgpack.packb({"v": 1} | fields | {"type": "request" if socket == "control" else "predict"})]
    answer = target.send(socket, many + [b""] * 100_000)
    assert isinstance(answer, ErrorReply)


def test_lists_that_announce_more_items_than_they_hold_are_rejected_quickly(target: Target) -> None:
    """msgpack would allocate memory for all announced items, in each of a thousand nested lists."""
    nested = b"\x81\xa1a" + b"\xdc\xff\xff" * 1000
    began = time.process_time()
    for _ in range(20):
        answer = target.send("learn", [nested])
        assert isinstance(answer, ErrorReply)
        assert answer.code == "bad_header"
    assert time.process_time() - began < 1.0, "every other client waits meanwhile"
