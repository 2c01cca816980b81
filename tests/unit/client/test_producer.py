from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import zmq

from ffstream.client import Producer
from ffstream.client.delivery import Counts, Rejected
from ffstream.errors import (
    BadDtype,
    BadShape,
    ConfigError,
    DeadlineExceeded,
    LabelOutOfRange,
    ProtocolError,
    Reason,
    RequestRefused,
    TooLarge,
    Unreachable,
)
from ffstream.wire.messages import NAMELESS_PREFIX
from tests.harness.daemon_directory import free_port
from tests.support import wait_until
from tests.unit.client.scripted import Scripted, ack_all

IMAGE = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
Script = Callable[..., Scripted]
Connect = Callable[..., Producer]


def _flush_until(producer: Producer, condition: Callable[[], bool]) -> None:
    """Lets the producer work until the condition holds."""

    def works() -> bool:
        with suppress(DeadlineExceeded):
            producer.flush(0.01)
        return condition()

    wait_until(works, 20, "the condition holds")


def silence(daemon: Scripted, fields: dict[str, Any]) -> None:
    pass


# --- greeting -------------------------------------------------------------------------------------------------------


def test_the_first_message_has_the_next_number_of_the_welcome(scripted: Script, connect: Connect) -> None:
    daemon = scripted(next=41)
    producer = connect(daemon)
    assert producer.send(IMAGE, [3]) == 41
    producer.flush(10)
    assert daemon.received[0] == {"v": 1, "type": "hello", "client": "me"}
    assert daemon.received[1] == {
        "v": 1,
        "type": "samples",
        "client": "me",
        "n": 41,
        "base": 41,
        "count": 1,
        "dtype": "uint8",
        "shape": [2, 3],
        "labels": b"\3\0",
    }
    assert daemon.payloads == [[bytes(range(6))]]


def test_a_high_message_number_costs_no_more_than_a_low_one(scripted: Script, connect: Connect) -> None:
    daemon = scripted(next=2**40)
    producer = connect(daemon)
    producer.send(IMAGE, [3])
    producer.flush(10)
    assert daemon.received[1]["base"] == daemon.received[1]["n"] == 2**40


def test_a_generated_name_is_given_up_when_everything_is_answered(scripted: Script, connect: Connect) -> None:
    daemon = scripted()
    with connect(daemon, client=None) as nameless:
        nameless.send(IMAGE, [3])
    nameless.close()
    wait_until(lambda: daemon.of_type("bye"), 10, "it has sent bye")
    assert daemon.received[-1] == {"v": 1, "type": "bye", "client": nameless.client}
    with connect(daemon) as named:
        named.send(IMAGE, [3])
    daemon.script = silence
    unanswered = connect(daemon, client=None)
    unanswered.send(IMAGE, [3])
    unanswered.close()
    connect(daemon)  # after another greeting, no message is in flight
    assert len(daemon.of_type("bye")) == 1


def test_generated_names_are_unique(scripted: Script, connect: Connect) -> None:
    daemon = scripted()
    names = {connect(daemon, client=None).client for _ in range(3)}
    assert len(names) == 3
    assert all(1 <= len(name.encode()) <= 64 for name in names)
    assert all(name.startswith(NAMELESS_PREFIX) for name in names)


def test_an_unreachable_daemon_raises_with_the_reason(scripted: Script) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    reasons: list[Reason] = []
    with pytest.raises(Unreachable, match="tried for") as caught:
        Producer(endpoint, connect_timeout_s=0.1, on_waiting=reasons.append)
    assert f"nobody listens at {endpoint} (Connection refused)" in caught.value.message
    assert "ffstream serve" in caught.value.hint
    assert [reason.code for reason in reasons] == ["unreachable"]
    assert caught.value.reason == reasons[0]


def test_a_daemon_that_dies_before_its_welcome_is_greeted_after_its_restart(scripted: Script) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(1) as pool:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as first:
            first.setsockopt(zmq.LINGER, 0)
            first.bind(endpoint)
            producer = pool.submit(Producer, endpoint)
            assert first.poll(10_000), "it sends hello"
        scripted(endpoint=endpoint, next=7)
        with producer.result(20) as greeted:
            assert greeted.send(IMAGE, [1]) == 7


def test_a_hello_that_is_rejected_for_good_raises(scripted: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = scripted()
    monkeypatch.setattr(daemon, "_answer", lambda fields, payload: daemon.error(None, "bad_header", retry=False))
    with pytest.raises(RequestRefused) as caught:
        Producer(daemon.endpoint)
    assert caught.value.remote_code == "bad_header"


def test_a_hello_that_is_rejected_for_now_is_repeated(scripted: Script, connect: Connect) -> None:
    daemon = scripted()
    greet = daemon._answer
    reasons: list[Reason] = []

    def reject_first(fields: dict[str, Any], payload: list[bytes]) -> None:
        if daemon.received:
            greet(fields, payload)
        else:
            daemon.received.append(fields)
            daemon.error(None, "too_many_clients", retry_after_s=0.01)

    daemon._answer = reject_first  # type: ignore[method-assign]
    producer = connect(daemon, on_waiting=reasons.append)
    assert len(daemon.of_type("hello")) == 2
    assert [(reason.code, reason.message, reason.hint) for reason in reasons] == [("too_many_clients", "what", "how")]
    assert producer.waiting is None


def test_the_deadline_error_of_a_rejected_hello_has_the_reason(
    scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = scripted()
    monkeypatch.setattr(daemon, "_answer", lambda fields, payload: daemon.error(None, "draining"))
    with pytest.raises(DeadlineExceeded, match=r"no answer from .* in .* s: what \[draining\]") as caught:
        Producer(daemon.endpoint, connect_timeout_s=0.3)
    assert caught.value.reason is not None
    assert (caught.value.reason.code, caught.value.hint) == ("draining", "how")


# --- sending --------------------------------------------------------------------------------------------------------


def test_counts_and_the_last_sequence_number(scripted: Script, connect: Connect) -> None:
    producer = connect(scripted())
    for n in (1, 2, 3):
        assert producer.send(IMAGE, [n]) == n
    producer.flush(10)
    assert producer.counts == Counts(sent=3, acked=3)
    assert (producer.last_seq, producer.unanswered) == (30, 0)


def test_one_image_needs_no_batch_axis(scripted: Script, connect: Connect) -> None:
    daemon = scripted()
    producer = connect(daemon)
    producer.send(IMAGE[0], 7)
    producer.flush(10)
    (fields,) = daemon.of_type("samples")
    assert (fields["count"], fields["shape"], fields["labels"]) == (1, [2, 3], b"\7\0")


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (np.zeros((2, 6), np.uint8), [1], BadShape),
        (np.zeros((0, 6), np.uint8), np.zeros(0, np.int64), BadShape),
        (np.zeros((1, 6), np.int64), [1], BadDtype),
        (np.zeros((1, 6), np.uint8), [-1], LabelOutOfRange),
        (np.zeros((11, 6), np.uint8), [1] * 11, TooLarge),
        (np.zeros((10, 61), np.uint8), [1] * 10, TooLarge),
    ],
)
def test_a_message_that_the_daemon_would_reject_is_not_sent(
    scripted: Script, connect: Connect, images: Any, labels: Any, error: type[ProtocolError]
) -> None:
    daemon = scripted()
    producer = connect(daemon)
    with pytest.raises(error) as caught:
        producer.send(images, labels)
    assert caught.value.hint
    assert producer.unanswered == 0
    assert producer.send(np.zeros((10, 6), np.uint8), [1] * 10) == 1, "no number is lost"
    producer.flush(10)
    assert daemon.numbers == [1]


def test_the_base_is_the_lowest_number_without_an_answer(scripted: Script, connect: Connect) -> None:
    def ack_two_last(daemon: Scripted, fields: dict[str, Any]) -> None:
        if fields["n"] == 6:
            daemon.ack(6, 2)
        elif fields["n"] != 2:
            daemon.ack(fields["n"])

    daemon = scripted(ack_two_last)
    producer = connect(daemon, window_messages=2, ack_timeout_s=60)
    for label in range(7):
        producer.send(IMAGE, [label], timeout_s=10)
    producer.flush(10)
    bases = {fields["n"]: fields["base"] for fields in daemon.of_type("samples")}
    assert [bases[n] for n in (1, 3, 4, 5, 6)] == [1, 2, 2, 2, 2]
    assert bases[7] > 2
    assert daemon.numbers == [1, 2, 3, 4, 5, 6, 7]


# --- resuming after a crash -----------------------------------------------------------------------------------------


def test_answered_n_is_the_highest_number_up_to_which_everything_is_answered(
    scripted: Script, connect: Connect
) -> None:
    def ack_last_first(daemon: Scripted, fields: dict[str, Any]) -> None:
        if fields["n"] == 43:
            daemon.ack(43)
        elif fields["n"] == 44:
            daemon.ack(44, 41)
        elif fields["n"] == 45:
            daemon.ack(45, 42)

    daemon = scripted(ack_last_first, next=41)
    producer = connect(daemon, ack_timeout_s=60)
    assert (producer.daemon_next, producer.next_n, producer.answered_n) == (41, 41, 40)
    for label in range(4):
        producer.send(IMAGE, [label])
    _flush_until(producer, lambda: producer.unanswered == 1)
    assert (producer.next_n, producer.answered_n) == (45, 41)
    producer.send(IMAGE, [4])
    producer.flush(10)
    assert (producer.next_n, producer.answered_n) == (46, 45)


def test_a_resumed_producer_sends_from_start_at(scripted: Script, connect: Connect) -> None:
    def answer(daemon: Scripted, fields: dict[str, Any]) -> None:
        if fields["n"] < 5:
            daemon.error(fields["n"], "below_base", retry=False)
        else:
            daemon.ack(fields["n"])

    daemon = scripted(answer, next=9)
    producer = connect(daemon, start_at=4)
    assert (producer.daemon_next, producer.next_n, producer.answered_n) == (9, 4, 3)
    for label in range(3):
        producer.send(IMAGE, [label])
    producer.flush(10)
    assert daemon.numbers == [4, 5, 6]
    assert producer.counts == Counts(sent=3, acked=2, resolved_earlier=1)
    assert producer.answered_n == 6


@pytest.mark.parametrize("start_at", [0, -1, 2**62])
def test_start_at_out_of_range_is_rejected(start_at: int) -> None:
    with pytest.raises(ConfigError, match="start_at"):
        Producer(start_at=start_at)


# --- the window -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "credit", "expected"), [(3, 8, 3), (8, 3, 3), (1, 1, 1)])
def test_unanswered_messages_are_limited_by_window_and_credit(
    scripted: Script, connect: Connect, window: int, credit: int, expected: int
) -> None:
    daemon = scripted(silence, credit=credit)
    producer = connect(daemon, window_messages=window, ack_timeout_s=60)
    for label in range(expected):
        producer.send(IMAGE, [label])
    with pytest.raises(DeadlineExceeded, match="window stays full") as caught:
        producer.send(IMAGE, [0], timeout_s=0.05)
    assert caught.value.hint
    assert producer.unanswered == expected
    assert producer.counts.sent == expected


def test_unanswered_bytes_are_limited_but_one_message_is_always_sent(scripted: Script, connect: Connect) -> None:
    producer = connect(scripted(silence), window_bytes=10, ack_timeout_s=60)
    producer.send(np.zeros((3, 6), np.uint8), [1, 2, 3])
    with pytest.raises(DeadlineExceeded):
        producer.send(IMAGE, [0], timeout_s=0.05)


def test_an_ack_makes_room_in_the_window(scripted: Script, connect: Connect) -> None:
    daemon = scripted()
    producer = connect(daemon, window_messages=1)
    for label in range(9):
        producer.send(IMAGE, [label], timeout_s=10)
    producer.flush(10)
    assert daemon.numbers == list(range(1, 10))
    assert producer.counts.resent == 0


def test_without_credit_the_producer_waits_and_sends_pings(scripted: Script, connect: Connect) -> None:
    def ack_and_stop(daemon: Scripted, fields: dict[str, Any]) -> None:
        daemon.ack(fields["n"], credit=0 if fields["n"] == 1 else 8)

    daemon = scripted(ack_and_stop)
    daemon.pong = 0
    producer = connect(daemon)
    producer.send(IMAGE, [1])
    producer.flush(10)
    with pytest.raises(DeadlineExceeded):
        producer.send(IMAGE, [2], timeout_s=0.05)
    daemon.pong = 5
    producer.send(IMAGE, [2], timeout_s=10)
    producer.flush(10)
    assert len(daemon.of_type("ping")) >= 1
    assert daemon.numbers == [1, 2]


# --- late and missing answers ---------------------------------------------------------------------------------------


def test_an_overdue_message_is_sent_again_under_its_number(scripted: Script, connect: Connect) -> None:
    def ack_the_second_time(daemon: Scripted, fields: dict[str, Any]) -> None:
        if daemon.numbers.count(fields["n"]) > 1:
            daemon.ack(fields["n"])

    daemon = scripted(ack_the_second_time)
    producer = connect(daemon, ack_timeout_s=60)
    for label in range(3):
        producer.send(IMAGE, [label])
    producer._delivery.ack_timeout_s = 0.1  # only now, so that nothing is overdue while the first three are sent
    producer.flush(20)
    assert daemon.numbers[:6] == [1, 2, 3, 1, 2, 3]
    assert producer.counts.acked == 3
    assert producer.counts.resent >= 3
    same = [fields for fields in daemon.of_type("samples") if fields["n"] == 2]
    assert same[0]["labels"] == same[1]["labels"] == b"\1\0"
    assert len(daemon.of_type("hello")) >= 2, "it greets again, because the daemon may be another one"


def test_a_repeated_ack_counts_once(scripted: Script, connect: Connect) -> None:
    def ack_twice(daemon: Scripted, fields: dict[str, Any]) -> None:
        daemon.ack(fields["n"], fields["n"])
        daemon.ack(fields["n"], 77)

    producer = connect(scripted(ack_twice))
    producer.send(IMAGE, [1])
    producer.flush(10)
    producer.send(IMAGE, [2])
    producer.flush(10)
    assert producer.counts.acked == 2


def test_a_restarted_daemon_receives_the_unanswered_messages(scripted: Script, connect: Connect) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(silence, endpoint)
    producer = connect(first, ack_timeout_s=60)
    for label in range(3):
        producer.send(IMAGE, [label])
    wait_until(lambda: first.numbers == [1, 2, 3], 10, "all have arrived")
    first.close()
    second = scripted(ack_all, endpoint)
    producer.flush(20)
    assert sorted(set(second.numbers)) == [1, 2, 3]
    assert producer.counts.acked == 3


def test_nothing_is_sent_again_over_the_first_connection(scripted: Script, connect: Connect) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(silence, endpoint)
    producer = connect(first, ack_timeout_s=60)
    producer.send(IMAGE, [1])
    with pytest.raises(DeadlineExceeded):
        producer.flush(0.3)
    assert producer.counts.resent == 0
    first.close()
    scripted(ack_all, endpoint)
    producer.flush(20)
    assert producer.counts.resent == 1


def test_flush_raises_at_its_deadline(scripted: Script, connect: Connect) -> None:
    producer = connect(scripted(silence), ack_timeout_s=60)
    producer.send(IMAGE, [1])
    with pytest.raises(DeadlineExceeded, match="1 messages") as caught:
        producer.flush(0.05)
    assert caught.value.hint


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_message_rejected_for_now_is_sent_again_until_it_is_acked(scripted: Script, connect: Connect) -> None:
    def reject_twice(daemon: Scripted, fields: dict[str, Any]) -> None:
        if daemon.numbers.count(fields["n"]) <= 2:
            daemon.error(fields["n"])
        else:
            daemon.ack(fields["n"])

    daemon = scripted(reject_twice)
    producer = connect(daemon)
    for label in range(3):
        producer.send(IMAGE, [label])
    producer.flush(20)
    assert [daemon.numbers.count(n) for n in (1, 2, 3)] == [3, 3, 3]
    assert producer.counts == Counts(sent=3, acked=3, resent=6)


def test_a_message_rejected_for_good_raises(scripted: Script, connect: Connect) -> None:
    producer = connect(scripted(lambda daemon, fields: daemon.error(fields["n"], "bad_shape", retry=False)))
    producer.send(IMAGE, [1])
    with pytest.raises(RequestRefused, match="bad_shape") as caught:
        producer.flush(10)
    assert (caught.value.remote_code, caught.value.hint) == ("bad_shape", "how")
    assert producer.unanswered == 0
    assert producer.counts == Counts(sent=1, rejected=1)


def test_a_message_rejected_for_good_is_passed_to_on_rejected(scripted: Script, connect: Connect) -> None:
    def reject_even(daemon: Scripted, fields: dict[str, Any]) -> None:
        if fields["n"] % 2:
            daemon.ack(fields["n"])
        else:
            daemon.error(fields["n"], "label_out_of_range", retry=False)

    rejected: list[Rejected] = []
    producer = connect(scripted(reject_even), on_rejected=rejected.append)
    for label in range(5):
        producer.send(IMAGE, [label])
    producer.flush(10)
    assert rejected == [Rejected(n, 1, "label_out_of_range", "what", "how") for n in (2, 4)]
    assert producer.counts == Counts(sent=5, acked=3, rejected=2)


def test_unauthorized_raises_and_the_message_stays_unanswered(scripted: Script, connect: Connect) -> None:
    def reject_once(daemon: Scripted, fields: dict[str, Any]) -> None:
        if daemon.numbers.count(fields["n"]) > 1:
            daemon.ack(fields["n"])
        else:
            daemon.error(fields["n"], "unauthorized", retry=False)

    rejected: list[Rejected] = []
    producer = connect(scripted(reject_once), on_rejected=rejected.append, ack_timeout_s=0.1)
    producer.send(IMAGE, [1])
    with pytest.raises(RequestRefused, match="unauthorized"):
        producer.flush(10)
    assert (producer.unanswered, producer.counts.rejected) == (1, 0)
    producer.flush(20)
    assert (producer.counts.acked, rejected) == (1, [])


def test_an_error_without_a_number_raises(scripted: Script, connect: Connect) -> None:
    producer = connect(scripted(lambda daemon, fields: daemon.error(None, "bad_header", retry=False)))
    producer.send(IMAGE, [1])
    with pytest.raises(RequestRefused, match="bad_header"):
        producer.flush(10)


def test_leaving_the_with_block_waits_for_every_answer(scripted: Script) -> None:
    daemon = scripted()
    with Producer(daemon.endpoint) as producer:
        for label in range(3):
            producer.send(IMAGE, [label])
    assert producer.counts.acked == 3


def test_leaving_the_with_block_by_an_exception_does_not_wait(scripted: Script) -> None:
    daemon = scripted(silence)

    def leave() -> None:
        with Producer(daemon.endpoint) as producer:
            producer.send(IMAGE, [1])
            raise InterruptedError

    with pytest.raises(InterruptedError):
        leave()
