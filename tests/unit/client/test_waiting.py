"""The reason why a producer waits, and when it reads answers and sends again."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zmq

from ffstream.client import Producer
from ffstream.client.delivery import Rejected
from ffstream.client.producer import _READ_S
from ffstream.errors import DeadlineExceeded, LabelOutOfRange, Reason, RequestRefused
from tests.harness.daemon_directory import free_port
from tests.support import wait_until
from tests.unit.client.scripted import Scripted

IMAGE = np.arange(6, dtype=np.uint8).reshape(1, 6)
Script = Callable[..., Scripted]
Connect = Callable[..., Producer]


def reject(code: str, **fields: Any) -> Callable[[Scripted, dict[str, Any]], None]:
    return lambda daemon, message: daemon.error(message["n"], code, **fields)


@pytest.mark.parametrize(
    "code", ["journal_full", "backlog_full", "too_many_clients", "rate_limited", "too_many_unresolved", "draining"]
)
def test_the_reason_is_available_while_it_waits_and_in_the_error(
    scripted: Script, connect: Connect, code: str
) -> None:
    reasons: list[Reason] = []
    producer = connect(scripted(reject(code)), on_waiting=reasons.append)
    producer.send(IMAGE, 1)
    wait_until(lambda: producer.poll(0.05) and producer.waiting, 20, "the rejection has arrived")
    with pytest.raises(DeadlineExceeded, match=rf"1 messages; what \[{code}\]") as caught:
        producer.flush(0.3)
    reason = producer.waiting
    assert reason is not None
    assert (reason.code, reason.message, reason.hint) == (code, "what", "how")
    assert caught.value.reason == reason
    assert caught.value.hint == "how"
    assert [each.code for each in reasons] == [code], "once, however often it is rejected"
    assert reasons[0].since == reason.since <= time.monotonic()


def test_the_error_about_a_full_window_says_for_how_long(scripted: Script, connect: Connect) -> None:
    daemon = scripted(reject("backlog_full"))
    daemon.pong = 0
    producer = connect(daemon)
    producer.send(IMAGE, 1)
    wait_until(lambda: producer.poll(0.05) and producer.waiting, 20, "the rejection has arrived")
    waited: list[float] = []

    def is_long() -> bool:
        with pytest.raises(DeadlineExceeded, match=r"window stays full after [\d.]+ s: 1 mess.*backlog_full") as e:
            producer.send(IMAGE, 1, timeout_s=0.02)
        waited.append(float(e.value.message.split("after ")[1].split(" s")[0]))
        return waited[-1] > 0.5

    wait_until(is_long, 20, "many short waits count as a long one")
    assert waited == sorted(waited)
    assert len(waited) > 1


def test_the_welcome_gives_the_reason_for_no_credit(scripted: Script, connect: Connect) -> None:
    why = {"refusing": "backlog_full", "message": "9 samples wait", "hint": "slow down"}
    daemon = scripted(credit=0, **why)
    daemon.pong = 0
    daemon.pong_fields = why | {"refusing": "draining"}
    reasons: list[Reason] = []
    producer = connect(daemon, on_waiting=reasons.append)
    with pytest.raises(
        DeadlineExceeded, match=r"window stays full .* 0 messages; 9 samples wait \[backlog_full\]"
    ) as e:
        producer.send(IMAGE, 1, timeout_s=0.1)
    assert e.value.hint == "slow down"
    wait_until(lambda: producer.poll(0.05) == 0 and len(reasons) > 1, 20, "a pong has the current reason")
    daemon.pong, daemon.pong_fields = 8, {}
    producer.send(IMAGE, 1, timeout_s=20)
    producer.flush(20)
    assert [reason.code for reason in reasons] == ["backlog_full", "draining"]
    assert producer.waiting is None


def test_the_reason_is_cleared_when_messages_are_acked_again(scripted: Script, connect: Connect) -> None:
    def reject_once(daemon: Scripted, message: dict[str, Any]) -> None:
        if daemon.numbers.count(message["n"]) == 1:
            daemon.error(message["n"], "rate_limited", retry_after_s=0.05)
        else:
            daemon.ack(message["n"])

    reasons: list[Reason] = []
    producer = connect(scripted(reject_once), on_waiting=reasons.append)
    producer.send(IMAGE, 1)
    producer.flush(20)
    assert [reason.code for reason in reasons] == ["rate_limited"]
    assert producer.waiting is None


def test_a_retry_waits_for_retry_after_s(scripted: Script, connect: Connect) -> None:
    times: list[float] = []

    def reject_twice(daemon: Scripted, message: dict[str, Any]) -> None:
        times.append(time.monotonic())
        if len(times) <= 2:
            daemon.error(message["n"], "rate_limited", retry_after_s=0.7)
        else:
            daemon.ack(message["n"])

    producer = connect(scripted(reject_twice))
    producer.send(IMAGE, 1)
    producer.flush(20)
    assert all(later - earlier >= 0.69 for earlier, later in itertools.pairwise(times))


def test_new_messages_wait_for_those_rejected_for_now(scripted: Script, connect: Connect) -> None:
    def reject_first(daemon: Scripted, message: dict[str, Any]) -> None:
        if message["n"] == 1 and daemon.numbers.count(1) == 1:
            daemon.error(1, "rate_limited", retry_after_s=0.2)
        else:
            daemon.ack(message["n"])

    daemon = scripted(reject_first)
    producer = connect(daemon)
    producer.send(IMAGE, 1)
    wait_until(lambda: producer.poll() and producer.waiting is not None, 20, "the rejection has arrived")
    producer.send(IMAGE, 2, timeout_s=20)
    producer.flush(20)
    assert daemon.numbers == [1, 1, 2]


def test_a_broken_connection_is_a_reason_to_wait(scripted: Script, connect: Connect) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(lambda daemon, message: None, endpoint)
    producer = connect(first)
    producer.send(IMAGE, 1)
    first.close()

    def says_so() -> bool:
        with pytest.raises(DeadlineExceeded, match="1 messages") as caught:
            producer.flush(0.05)
        return "nobody listens at" in caught.value.message

    wait_until(says_so, 20, "the error says that nobody listens")
    assert producer.waiting is not None
    assert producer.waiting.code == "unreachable"
    scripted(endpoint=endpoint)
    producer.flush(20)
    assert producer.waiting is None


def test_a_slow_producer_learns_about_a_rejection_in_its_next_send(scripted: Script, connect: Connect) -> None:
    rejected: list[Rejected] = []
    daemon = scripted(reject("stored_differently", retry=False))
    producer = connect(daemon, on_rejected=rejected.append)
    for _ in range(4):
        producer.send(IMAGE, 1)
        # A producer that sends faster does not read answers each time.
        wait_until(lambda: producer._connection.await_event(zmq.POLLIN, 0.0), 20, "the answer has arrived")
        wait_until(lambda: time.monotonic() - producer._delivery.worked_at > 2 * _READ_S, 20, "time has passed")
    producer.send(IMAGE, 1)
    assert [each.n for each in rejected] == [1, 2, 3, 4]


def test_poll_reads_answers_and_sends_again(scripted: Script, connect: Connect) -> None:
    def reject_once(daemon: Scripted, message: dict[str, Any]) -> None:
        if daemon.numbers.count(message["n"]) == 1:
            daemon.error(message["n"], "rate_limited", retry_after_s=0.0)
        else:
            daemon.ack(message["n"])

    producer = connect(scripted(reject_once))
    producer.send(IMAGE, 1)
    wait_until(lambda: producer.poll(0.05) == 0, 20, "nothing is unanswered")
    assert (producer.counts.acked, producer.counts.resent) == (1, 1)


def test_poll_raises_for_a_rejected_message(scripted: Script, connect: Connect) -> None:
    producer = connect(scripted(reject("stored_differently", retry=False)))
    producer.send(IMAGE, 1)
    with pytest.raises(RequestRefused, match="stored_differently"):
        producer.poll(20)


# --- a daemon that was replaced -------------------------------------------------------------------------------------


def test_the_last_sequence_number_is_reset_when_the_daemon_restarts(scripted: Script, connect: Connect) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(endpoint=endpoint, boot="one")
    producer = connect(first)
    for _ in range(3):
        producer.send(IMAGE, 1)
    producer.flush(20)
    assert producer.last_seq == 30
    first.close()
    second = scripted(lambda daemon, message: None, endpoint, boot="two")
    wait_until(lambda: producer.poll(0.05) == 0 and second.of_type("hello"), 20, "it has greeted the new daemon")
    wait_until(lambda: producer.poll(0.05) == 0 and producer.last_seq == 0, 20, "the welcome has arrived")
    second.script = lambda daemon, message: daemon.say("ack", acks=[[message["n"], 1, 1]], credit=8)
    assert producer.send(IMAGE, 1) == 4
    producer.flush(20)
    assert producer.last_seq == 1
    assert producer.counts.acked == 4


def test_messages_are_sent_again_only_after_the_welcome(scripted: Script, connect: Connect) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(lambda daemon, message: None, endpoint)
    producer = connect(first, ack_timeout_s=60)
    producer.send(IMAGE, 1)
    wait_until(lambda: first.numbers == [1], 20, "the message has arrived")
    first.close()
    second = scripted(endpoint=endpoint, labels=4)
    producer.flush(20)
    assert [fields["type"] for fields in second.received] == ["hello", "samples"]
    with pytest.raises(LabelOutOfRange, match="label 4"):
        producer.send(IMAGE, 4)


def test_messages_above_the_limit_of_a_restarted_daemon_are_rejected(scripted: Script, connect: Connect) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    first = scripted(lambda daemon, message: None, endpoint)
    rejected: list[Rejected] = []
    producer = connect(first, on_rejected=rejected.append)
    producer.send(np.zeros((9, 6), np.uint8), [1] * 9)
    producer.send(IMAGE, 1)
    first.close()
    second = scripted(endpoint=endpoint, max_bytes=50)
    producer.flush(20)
    assert [(each.n, each.samples, each.code) for each in rejected] == [(1, 9, "too_large")]
    assert second.numbers == [2]
    assert producer.counts.acked == 1


def test_rejected_messages_are_sent_again_a_few_at_a_time(scripted: Script, connect: Connect) -> None:
    """All at once, they would meet the same limit: a thousand rejections for each message that is accepted."""
    taken: list[int] = []

    def take_a_few(daemon: Scripted, message: dict[str, Any]) -> None:
        first_time = daemon.numbers.count(message["n"]) == 1
        if first_time or (len(taken) == 20 and daemon.numbers.count(message["n"]) == 2):
            daemon.error(message["n"], "rate_limited", retry_after_s=0.05)
        else:
            taken.append(message["n"])
            daemon.ack(message["n"])

    daemon = scripted(take_a_few, credit=64)
    producer = connect(daemon)
    for _ in range(64):
        producer.send(IMAGE, 1, timeout_s=20)
        if producer.waiting is not None:
            break
    sent = producer.next_n - 1
    producer.flush(30)
    assert sorted(taken) == list(range(1, sent + 1))
    assert producer.counts.resent <= 3 * sent
