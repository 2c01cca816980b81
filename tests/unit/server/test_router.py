"""Messages for another socket, too large ones, and messages from a socket of the wrong type."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from ffstream.wire.messages import MAX_HEADER_BYTES
from tests.in_process import INPUTS
from tests.support import wait_until
from tests.unit.server.ingest import MESSAGE_MAX_BYTES, Ingest

ANSWER_MS = 20_000
GOOD: dict[str, Any] = {
    "v": 1,
    "type": "samples",
    "client": "a",
    "n": 1,
    "base": 1,
    "count": 1,
    "dtype": "uint8",
    "shape": [INPUTS],
    "labels": b"\0\0",
}


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    ingest = Ingest(tmp_path).start()
    yield ingest
    ingest.close()


def refused(ingest: Ingest, **fields: Any) -> tuple[str, int | None]:
    """Sends a message that is valid except for these fields. Returns code and `n` of the error."""
    payload = fields.pop("payload", [bytes(INPUTS)])
    peer = ingest.peer()
    peer.send_frames(msgpack.packb(GOOD | {"n": 7} | fields), *payload)
    answer = peer.answer()
    assert answer["type"] == "error"
    return answer["code"], answer["n"]


# --- an error says which message it is about ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"count": 0, "labels": b""}, "bad_header"),
        ({"count": 1.0}, "bad_header"),
        ({"base": 0}, "bad_header"),
        ({"base": 8}, "bad_header"),
        ({"client": ""}, "bad_header"),
        ({"client": msgpack.ExtType(5, b"abc")}, "bad_header"),
        ({"shape": list(range(1, 100))}, "bad_header"),
        ({"v": 2}, "unsupported_version"),
        ({"type": "predict"}, "unknown_type"),
        ({"type": "sample"}, "unknown_type"),
        ({"dtype": "float64"}, "bad_dtype"),
        ({"shape": [3]}, "bad_shape"),
        ({"labels": b"\x09\0"}, "label_out_of_range"),
        ({"x": "x" * MAX_HEADER_BYTES}, "too_large"),
        ({"count": 11, "labels": bytes(22)}, "too_large"),
        ({"payload": [bytes(MESSAGE_MAX_BYTES + 1)]}, "too_large"),
        ({"payload": []}, "bad_frames"),
        ({"payload": [bytes(INPUTS)] * 2}, "bad_frames"),
        ({"payload": [b""] * 1000}, "bad_frames"),
    ],
)
def test_an_error_about_a_message_has_its_number(ingest: Ingest, fields: dict[str, Any], code: str) -> None:
    assert refused(ingest, **fields) == (code, 7)


@pytest.mark.parametrize("n", [-1, 2**63, 1.0, True, "7", None, [7]])
def test_an_invalid_number_is_not_returned(ingest: Ingest, n: Any) -> None:
    assert refused(ingest, n=n) == ("bad_header", None)


def test_the_error_about_a_message_for_another_socket_names_that_socket(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.send("predict", bytes(INPUTS), id=3, count=1, dtype="uint8", shape=[INPUTS])
    answer = peer.answer()
    assert (answer["code"], answer["id"]) == ("unknown_type", 3)
    assert answer["hint"] == (
        "this is the learn socket (listen.learn); predict goes to the predict socket (listen.predict)"
    )


# --- too large ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MESSAGE_MAX_BYTES + 1, 2 * MAX_HEADER_BYTES])
def test_a_frame_slightly_above_the_limit_gets_an_answer(ingest: Ingest, size: int) -> None:
    assert refused(ingest, payload=[bytes(size)]) == ("too_large", 7)
    assert ingest.rejected("too_large") == 1


def test_a_frame_far_above_the_limit_ends_the_connection(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.send("ping")
    assert peer.answer()["type"] == "pong"
    with peer.cut_off():
        peer.samples(1, payload=[bytes(2 * max(MAX_HEADER_BYTES, MESSAGE_MAX_BYTES) + 1)])
    wait_until(
        lambda: ingest.metric("connections_ended_total", socket="learn") == 1,
        ANSWER_MS / 1000,
        "the disconnection is counted",
    )


# --- other kinds of sockets -----------------------------------------------------------------------------------------


def asked(ingest: Ingest, kind: int, *frames: bytes, **options: Any) -> list[bytes]:
    """The answer to a socket of this type with these options."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    for name, value in options.items():
        socket.setsockopt(getattr(zmq, name), value)
    try:
        socket.connect(ingest.loop.endpoint)
        socket.send_multipart(frames)
        assert socket.poll(ANSWER_MS), "no answer"
        return socket.recv_multipart()
    finally:
        socket.close()


@pytest.mark.parametrize("correlate", [0, 1])
def test_a_req_socket_gets_an_error_that_recommends_a_dealer(ingest: Ingest, correlate: int) -> None:
    (header,) = asked(ingest, zmq.REQ, msgpack.packb(GOOD), bytes(INPUTS), REQ_CORRELATE=correlate)
    answer = msgpack.unpackb(header)
    assert (answer["code"], answer["n"], answer["retry"]) == ("bad_frames", 1, False)
    assert "DEALER" in answer["hint"]
    assert ingest.rejected("bad_frames") == 1


def test_the_answer_to_a_message_behind_an_empty_frame_has_one_too(ingest: Ingest) -> None:
    empty, header = asked(ingest, zmq.DEALER, b"", msgpack.packb(GOOD), bytes(INPUTS))
    assert (empty, msgpack.unpackb(header)["code"]) == (b"", "bad_frames")


@pytest.mark.parametrize("id", [b"worker-1", b"12345", b"1", b"\1\2\3\4\5", b"x" * 255])
def test_a_socket_with_a_routing_id_gets_an_error(ingest: Ingest, id: bytes) -> None:
    """libzmq ignores a second connection with the same id, so the first one gets the error."""
    (header,) = asked(ingest, zmq.DEALER, msgpack.packb(GOOD), bytes(INPUTS), ROUTING_ID=id)
    answer = msgpack.unpackb(header)
    assert (answer["code"], answer["n"]) == ("bad_frames", 1)
    assert "ZMQ_ROUTING_ID" in answer["hint"]
    assert ingest.journal.head.seq == 0
    assert ingest.rejected("bad_frames") == 1
