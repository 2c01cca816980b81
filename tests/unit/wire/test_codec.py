import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ffstream.errors import BadFrames, BadHeader, ProtocolError, TooLarge, UnknownType, UnsupportedVersion
from ffstream.wire.codec import decode, encode, expect_payload, subject, table
from ffstream.wire.messages import (
    MAX_HEADER_BYTES,
    SENT_TO,
    Ack,
    Bye,
    ErrorReply,
    Hello,
    Message,
    Ping,
    Pong,
    Predict,
    Prediction,
    Reply,
    Request,
    Samples,
    Welcome,
)

ALL = table(Hello, Welcome, Samples, Bye, Ack, Predict, Prediction, Request, Reply, ErrorReply, Ping, Pong)

counts = st.integers(0, 2**63 - 1)
positives = st.integers(1, 2**63 - 1)
numbers = st.integers(1, 2**62 - 1)
names = st.text(min_size=1, max_size=64).filter(
    lambda name: len(name.encode()) <= 64 and "\x1f" not in name and name != "@page"
)
texts = st.text(max_size=200)
shapes = st.lists(st.integers(1, 2**31), min_size=1, max_size=4)
plain = st.recursive(
    st.none() | st.booleans() | counts | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
maps = st.dictionaries(texts, plain, max_size=4)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, client=st.none() | names),
    st.builds(Bye, client=names),
    st.builds(
        Welcome,
        socket=texts,
        boot=texts,
        next=counts,
        credit=counts,
        max_samples=counts,
        max_bytes=positives,
        inputs=positives,
        image_shape=shapes,
        labels=positives,
    ),
    st.builds(
        Samples,
        client=names,
        n=numbers,
        base=numbers,
        count=positives,
        dtype=texts,
        shape=shapes,
        labels=st.binary(max_size=200),
    ),
    st.builds(Ack, acks=st.lists(st.tuples(positives, positives, positives), max_size=8), credit=counts),
    st.builds(Predict, id=counts, count=positives, dtype=texts, shape=shapes),
    st.builds(Prediction, id=counts, labels=st.lists(counts, max_size=8), version=counts, seq=counts),
    st.builds(Request, id=counts, command=st.text(max_size=64), arguments=maps),
    st.builds(Reply, id=counts, result=maps),
    st.builds(
        ErrorReply,
        code=texts,
        message=texts,
        hint=texts,
        retry=st.booleans(),
        n=st.none() | counts,
        id=st.none() | counts,
        retry_after_s=st.none() | st.floats(0, 1e9),
    ),
    st.builds(Ping),
    st.builds(Pong, socket=texts, boot=texts, credit=counts),
)


def pack(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, **fields})
    return packed


@given(MESSAGES)
def test_every_message_is_equal_after_encoding_and_decoding(message: Message) -> None:
    again = decode(encode(message), ALL)
    assert type(again) is type(message)
    assert again == message


def test_a_handwritten_header_is_decoded() -> None:
    by_hand = b"\x83\xa1v\x01\xa4type\xa5hello\xa6client\xa3abc"
    assert decode(by_hand, ALL) == Hello(client="abc")
    assert encode(Hello(client="abc")) == by_hand


# --- headers that are wrong ---------------------------------------------------------------------------------------

PING = pack(type="ping")
DEEP = 20_000
BAD_HEADERS: dict[str, tuple[bytes, type[ProtocolError]]] = {
    "empty": (b"", BadHeader),
    "reserved byte": (b"\xc1", BadHeader),
    "text": (b"GET / HTTP/1.1\r\n", BadHeader),
    "a number": (b"\x01", BadHeader),
    "a list": (msgpack.packb(["v", 1]), BadHeader),
    "nil": (b"\xc0", BadHeader),
    "cut short": (PING[:-1], BadHeader),
    "something behind": (PING + b"\xc0", BadHeader),
    "twice": (PING * 2, BadHeader),
    "int key": (msgpack.packb({"v": 1, "type": "ping", 3: 1}), BadHeader),
    "nil key": (msgpack.packb({None: 1}), BadHeader),
    "list as key": (b"\x81\x91\x01\x01", BadHeader),
    "ext in arguments": (
        pack(type="request", id=1, command="x", arguments={"x": msgpack.ExtType(5, b"a")}),
        BadHeader,
    ),
    "65 entries in arguments": (pack(type="request", id=1, command="x", arguments={"x": [0] * 65}), BadHeader),
    "ext as client": (pack(type="hello", client=msgpack.ExtType(5, b"abc")), BadHeader),
    "ext as type": (pack(type=msgpack.ExtType(5, b"abc")), BadHeader),
    "timestamp as key": (b"\x81\xd6\xff\xff\xff\xff\xff\x01", BadHeader),
    "impossible timestamp": (b"\x81\xa1v\xd7\xff" + b"\xff" * 8, BadHeader),
    "deep lists": (b"\x91" * DEEP + b"\x90", BadHeader),
    "deep maps": (b"\x81\xa1a" * DEEP + b"\x80", BadHeader),
    "deep arguments": (
        b"\x85\xa1v\x01\xa4type\xa7request\xa2id\x01\xa7command\xa1x\xa9arguments" + b"\x81\xa1a" * DEEP + b"\x80",
        BadHeader,
    ),
    "2^32 map entries": (b"\xdf\xff\xff\xff\xff", BadHeader),
    "2^32 list entries": (b"\xdd\xff\xff\xff\xff", BadHeader),
    "2^32 bytes": (b"\x81\xa1v\xc6\xff\xff\xff\xff", BadHeader),
    "2^32 characters": (b"\x81\xa1v\xdb\xff\xff\xff\xff", BadHeader),
    "2^32 bytes of ext": (b"\x81\xa1v\xc9\xff\xff\xff\xff\x05", BadHeader),
    "65 keys": (msgpack.packb({"v": 1, "type": "ping"} | {f"k{n}": n for n in range(63)}), BadHeader),
    "not UTF-8": (b"\x83\xa1v\x01\xa4type\xa5hello\xa6client\xa2\xff\xfe", BadHeader),
    "surrogate": (b"\x83\xa1v\x01\xa4type\xa5hello\xa6client\xa3\xed\xa0\x80", BadHeader),
    "too long": (pack(type="ping", x="x" * MAX_HEADER_BYTES), TooLarge),
    "no version": (msgpack.packb({"type": "ping"}), UnsupportedVersion),
    "version 2": (msgpack.packb({"v": 2, "type": "ping"}), UnsupportedVersion),
    "version 0": (msgpack.packb({"v": 0, "type": "ping"}), UnsupportedVersion),
    "version '1'": (msgpack.packb({"v": "1", "type": "ping"}), UnsupportedVersion),
    "version 1.0": (msgpack.packb({"v": 1.0, "type": "ping"}), UnsupportedVersion),
    "version true": (msgpack.packb({"v": True, "type": "ping"}), UnsupportedVersion),
    "version NaN": (msgpack.packb({"v": float("nan"), "type": "ping"}), UnsupportedVersion),
    "version as bytes": (msgpack.packb({b"v": 1, "type": "ping"}), UnsupportedVersion),
    "no type": (msgpack.packb({"v": 1}), UnknownType),
    "unknown type": (pack(type="samplez"), UnknownType),
    "type of another case": (pack(type="PING"), UnknownType),
    "empty type": (pack(type=""), UnknownType),
    "type is a number": (pack(type=1), UnknownType),
    "type is a list": (pack(type=["ping"]), UnknownType),
    "type is a map": (pack(type={"ping": 1}), UnknownType),
    "type is bytes": (pack(type=b"ping"), UnknownType),
    "client is empty": (pack(type="hello", client=""), BadHeader),
    "client of 65 bytes": (pack(type="hello", client="x" * 65), BadHeader),
    "client of 33 characters, 66 bytes": (pack(type="hello", client="é" * 33), BadHeader),
    "client with a separator": (pack(type="hello", client="a\x1fb"), BadHeader),
    "client with the reserved name": (pack(type="hello", client="@page"), BadHeader),
    "command of 65": (pack(type="request", id=1, command="x" * 65), BadHeader),
    "bytes as key of arguments": (pack(type="request", id=1, command="x", arguments={b"a" * 60_000: 1}), BadHeader),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_an_invalid_header_raises_the_specified_error(name: str) -> None:
    header, kind = BAD_HEADERS[name]
    with pytest.raises(ProtocolError) as caught:
        decode(header, ALL, socket="learn")
    assert type(caught.value) is kind
    assert caught.value.hint
    answer = encode(ErrorReply(code=caught.value.code, message=caught.value.message, hint=caught.value.hint))
    assert len(answer) < 1024, "the answer is short, whatever the sender wrote"


def test_a_header_at_the_limits_is_accepted() -> None:
    padding = MAX_HEADER_BYTES - len(pack(type="ping", x="x" * 60_000)) + 60_000
    header = pack(type="ping", x="x" * padding)
    assert len(header) == MAX_HEADER_BYTES
    assert decode(header, ALL) == Ping()
    with pytest.raises(TooLarge):
        decode(pack(type="ping", x="x" * (padding + 1)), ALL)
    assert decode(pack(type="hello", client="é" * 32), ALL) == Hello(client="é" * 32)
    many = {"v": 1, "type": "ping"} | {f"k{n}": n for n in range(62)}
    assert decode(msgpack.packb(many), ALL) == Ping()


def test_a_message_number_leaves_room_for_the_next_one() -> None:
    fields = {"type": "samples", "client": "a", "base": 1, "count": 1}
    fields |= {"dtype": "uint8", "shape": [1], "labels": b"\0\0"}
    good = decode(pack(**fields, n=2**62 - 1), ALL)
    assert isinstance(good, Samples)
    for n in (0, 2**62, 2**63 - 1):
        with pytest.raises(BadHeader, match=r"samples\.n"):
            decode(pack(**fields, n=n), ALL)


UNKNOWN_VALUES: dict[str, bytes] = {
    "ext": msgpack.packb(msgpack.ExtType(5, b"abc")),
    "timestamp": msgpack.packb(msgpack.Timestamp(2**40, 5)),
    "impossible timestamp": b"\xd7\xff" + b"\xff" * 8,
    "ext in a list": msgpack.packb([[msgpack.ExtType(5, b"abc")]]),
    "65 entries": msgpack.packb([0] * 65),
    "60,000 entries": msgpack.packb([0] * 60_000),
    "65 keys": msgpack.packb({str(n): n for n in range(65)}),
    "int keys": msgpack.packb({3: 1}),
    "512 lists deep": b"\x91" * 512 + b"\xc0",
    "512 maps deep": b"\x81\xa1a" * 512 + b"\xc0",
    "not UTF-8": b"\xa2\xff\xfe",
    "2^64 - 1": msgpack.packb(2**64 - 1),
    "NaN": msgpack.packb(float("nan")),
}


@pytest.mark.parametrize("name", UNKNOWN_VALUES)
def test_an_unknown_key_may_have_any_value(name: str) -> None:
    value = UNKNOWN_VALUES[name]
    assert decode(b"\x84\xa1x" + value + msgpack.packb({"v": 1, "type": "hello", "client": "a"})[1:], ALL) == Hello(
        client="a"
    )
    # A key of another message is unknown here, too.
    assert decode(b"\x83\xa6labels" + value + msgpack.packb({"v": 1, "type": "ping"})[1:], ALL) == Ping()


def test_the_error_names_a_known_key_that_cannot_be_decoded() -> None:
    header = b"\x83\xa1v\x01\xa4type\xa5hello\xa6client\xc7\x03\x05abc"
    with pytest.raises(BadHeader, match="'client'"):
        decode(header, ALL)


# --- what an error is about -----------------------------------------------------------------------------------------

SAMPLES = {"v": 1, "type": "samples", "n": 7, "client": "a"}
SUBJECTS: dict[str, tuple[bytes, int | None, int | None]] = {
    "n": (msgpack.packb(SAMPLES), 7, None),
    "id": (pack(type="predict", id=0), None, 0),
    "both": (pack(id=5, n=6), 6, 5),
    "the largest": (pack(n=2**63 - 1), 2**63 - 1, None),
    "version 2": (msgpack.packb({"v": 2, "type": "later", "id": 3}), None, 3),
    "cut short": (msgpack.packb(SAMPLES)[:-1], 7, None),
    "something behind": (msgpack.packb(SAMPLES) + b"x", 7, None),
    "a known key that cannot be read, before": (b"\x82\xa6client\xc7\x03\x05abc\xa1n\x07", 7, None),
    "too long": (msgpack.packb({**SAMPLES, "x": "x" * MAX_HEADER_BYTES}), 7, None),
    "too long, behind what is read": (msgpack.packb({"x": "x" * MAX_HEADER_BYTES, **SAMPLES}), None, None),
    "negative": (pack(n=-1, id=4), None, 4),
    "2^63": (pack(n=2**63), None, None),
    "a float": (pack(n=1.0), None, None),
    "true": (pack(id=True), None, None),
    "text": (pack(id="1"), None, None),
    "ext": (pack(n=msgpack.ExtType(5, b"abc")), None, None),
    "none": (pack(type="ping"), None, None),
    "no map": (b"\x93\x01\x02\x03", None, None),
    "empty": (b"", None, None),
    "2^32 keys": (b"\xdf\xff\xff\xff\xff\xa1n\x07", None, None),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_n_and_id_are_read_from_an_invalid_header(name: str) -> None:
    header, n, id = SUBJECTS[name]
    assert subject(header) == (n, id)


@given(st.binary(max_size=300))
def test_n_and_id_of_random_bytes_are_numbers_or_none(header: bytes) -> None:
    for number in subject(header):
        assert number is None or 0 <= number < 2**63


@pytest.mark.parametrize("shape", [[], [0], [28, 0], [-1], [2**31 + 1], [1, 1, 1, 1, 1], [2**63], "28", [28.0], None])
def test_an_invalid_shape_is_rejected(shape: Any) -> None:
    with pytest.raises(BadHeader, match=r"predict\.shape"):
        decode(pack(type="predict", id=1, count=1, dtype="uint8", shape=shape), ALL)


def test_an_unknown_type_is_rejected_and_the_hint_lists_the_known_ones() -> None:
    with pytest.raises(UnknownType) as caught:
        decode(encode(Bye(client="a")), table(Ping, Predict))
    assert "ping, predict" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "socket", "right"),
    [
        ("samples", "predict", "learn"),
        ("bye", "control", "learn"),
        ("predict", "learn", "predict"),
        ("request", "learn", "control"),
    ],
)
def test_the_error_about_a_message_at_the_wrong_socket_names_the_right_one(
    name: str, socket: str, right: str
) -> None:
    with pytest.raises(UnknownType) as caught:
        decode(pack(type=name), table(*SENT_TO[socket]), socket=socket)
    assert f"this is the {socket} socket" in caught.value.hint
    assert f"(listen.{right})" in caught.value.hint


# --- anything at all ----------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=80)
    | st.binary(max_size=80),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=9) | st.binary(max_size=9) | st.integers(0, 9), inner, max_size=5)
    ),
    max_leaves=10,
)


def only_protocol_errors(header: bytes) -> None:
    try:
        message = decode(header, ALL)
    except ProtocolError as protocol_error:
        found = protocol_error
        assert (found.message != "", found.hint != "", len(found.message) < 500) == (True, True, True)
    else:
        assert decode(encode(message), ALL) == message


@given(st.binary(max_size=300))
@settings(max_examples=300)
@example(b"\x81\xa1v\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff")
def test_random_bytes_raise_a_protocol_error_or_are_a_message(header: bytes) -> None:
    only_protocol_errors(header)


@given(
    st.sampled_from(sorted(ALL)),
    st.dictionaries(
        st.sampled_from(sorted({key for each in ALL.values() for key in each.model_fields})), anything, max_size=8
    ),
)
@settings(max_examples=150)
def test_random_fields_raise_a_protocol_error_or_are_a_message(name: str, fields: dict[str, Any]) -> None:
    only_protocol_errors(pack(type=name, **fields))


@given(message=MESSAGES, data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_headers_raise_a_protocol_error_or_are_a_message(message: Message, data: st.DataObject) -> None:
    header = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(header)))
        cut = data.draw(st.integers(0, 3))
        header[at : at + cut] = data.draw(st.binary(max_size=3))
    only_protocol_errors(bytes(header))


LARGEST: dict[str, Callable[[], bytes]] = {
    "acks": lambda: pack(type="ack", credit=1, acks=[[0, 0, 0]] * 16_000),
    "labels": lambda: pack(type="prediction", id=1, version=1, seq=1, labels=["x"] * 32_000),
    "shape": lambda: pack(type="predict", id=1, count=1, dtype="uint8", shape=[-1] * 65_000),
    "arguments": lambda: pack(type="request", id=1, command="x", arguments={"a": [[]] * 65_000}),
    "nested": lambda: b"\x91" * 65_000 + b"\x90",
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_header_is_decoded_or_rejected_quickly(name: str) -> None:
    header = LARGEST[name]()
    assert len(header) <= MAX_HEADER_BYTES
    start = time.process_time()
    only_protocol_errors(header)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(("there", "wanted"), [(0, 1), (2, 1), (1, 0), (100, 1)])
def test_a_wrong_number_of_payload_frames_is_rejected(there: int, wanted: int) -> None:
    with pytest.raises(BadFrames, match=str(there)) as caught:
        expect_payload([b""] * there, wanted)
    assert str(wanted) in caught.value.hint
    assert expect_payload([b"x"] * wanted, wanted) == [b"x"] * wanted
