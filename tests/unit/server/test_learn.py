import itertools
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ffstream.config import Limits
from ffstream.errors import ConfigError, DiskFull, StartBlocked
from ffstream.metrics import Metrics
from ffstream.server import housekeeping, rate_limit
from ffstream.server.control import ControlLoop
from ffstream.server.received import Received
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import Bye, Hello, Pong, Samples
from tests.in_process import INPUTS, Peer
from tests.support import wait_until
from tests.unit.server.ingest import LIMITS, MESSAGE_MAX_BYTES, Ingest, look_at_every_turn

Serve = Callable[..., Ingest]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Creates an ingest. Its failures fail the test at the end."""
    made: list[Ingest] = []

    def make(**limits: int) -> Ingest:
        made.append(Ingest(tmp_path, **limits))
        return made[-1].start()

    yield make
    for each in made:
        each.close()


@pytest.fixture
def ingest(serve: Serve) -> Ingest:
    return serve()


def on_disk(ingest: Ingest) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(ingest.journal.path)
    rows = connection.execute("SELECT client, n, first_seq, count FROM messages ORDER BY first_seq").fetchall()
    connection.close()
    return rows


# --- greeting -------------------------------------------------------------------------------------------------------


def test_a_welcome_contains_the_limits_and_the_network(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.send("hello", client="peer")
    assert peer.answer() == {
        "v": 1,
        "type": "welcome",
        "socket": "learn",
        "boot": "boot",
        "next": 1,
        "credit": LIMITS["window_messages"],
        "refusing": None,
        "message": "",
        "hint": "",
        "max_samples": 10,
        "max_bytes": MESSAGE_MAX_BYTES,
        "inputs": INPUTS,
        "image_shape": [INPUTS],
        "labels": 4,
        "unlabelled": False,
    }


def test_a_hello_without_a_name_is_rejected(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.send("hello")
    answer = peer.answer()
    assert (answer["code"], answer["retry"]) == ("bad_header", False)
    assert "hello.client" in answer["message"]


def test_the_welcome_of_a_known_client_has_its_next_number(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.samples(3)
    peer.acked(1)
    for name, expected in (("peer", 4), ("other", 1)):
        peer.send("hello", client=name)
        assert peer.answer()["next"] == expected


def test_the_highest_message_number_is_accepted(ingest: Ingest) -> None:
    peer = ingest.peer()
    highest = 2**62 - 1
    peer.samples(highest, base=highest)
    assert peer.acked(1) == {highest: (1, 1)}
    peer.send("hello", client="peer")
    assert peer.answer()["next"] == 2**62


def test_a_ping_is_answered_with_the_credit(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.send("ping")
    assert peer.answer() == {
        "v": 1,
        "type": "pong",
        "socket": "learn",
        "boot": "boot",
        "credit": LIMITS["window_messages"],
        "refusing": None,
        "message": "",
        "hint": "",
    }


# --- an ack is a promise --------------------------------------------------------------------------------------------


def test_acked_samples_are_on_disk(ingest: Ingest) -> None:
    peer = ingest.peer()
    for n in range(1, 21):
        peer.samples(n, count=2, labels=bytes(4), payload=[bytes([n]) * 2 * INPUTS])
    acks = peer.acked(20)
    assert acks == {n: (2 * n - 1, 2) for n in range(1, 21)}
    assert on_disk(ingest) == [("peer", n, 2 * n - 1, 2) for n in range(1, 21)]
    assert ingest.metric("samples_acked_total") == ingest.metric("samples_received_total") == 40
    assert ingest.metric("journal_commit_messages_sum") == 20
    assert ingest.metric("journal_commit_seconds_count") == ingest.metric("journal_commit_messages_count") <= 20
    wait_until(lambda: ingest.metric("ack_seconds_count") == 20, 10, "each message is timed, after its ack")
    assert ingest.metric("ack_seconds_sum") >= ingest.metric("journal_commit_seconds_sum"), "an ack follows a commit"


def test_there_is_no_ack_before_the_commit(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ack is sent, another program can read its samples."""
    reply, seen = ingest.loop.reply, []

    def look(peer: bytes, message: Any, *payload: bytes) -> None:
        if message.type == "ack":
            seen.append((len(message.acks), len(on_disk(ingest))))
        reply(peer, message, *payload)

    monkeypatch.setattr(ingest.loop, "reply", look)
    peer = ingest.peer()
    for n in range(1, 11):
        peer.samples(n)
    peer.acked(10)
    total = 0
    for acked, stored in seen:
        total += acked
        assert stored >= total
    assert total == 10


def test_a_message_sent_again_is_acked_again_and_not_stored_again(ingest: Ingest) -> None:
    peer, again = ingest.peer(), ingest.peer()
    peer.samples(1)
    first = peer.acked(1)
    again.samples(1)
    again.samples(1)
    assert again.acked(2) == first
    assert on_disk(ingest) == [("peer", 1, 1, 1)]
    assert ingest.metric("samples_duplicate_total") == 2
    assert ingest.metric("samples_acked_total") == 1


def test_a_message_twice_in_a_group_is_stored_once_and_the_later_sender_acked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has reconnected in between, and its old address is gone."""
    ingest = Ingest(tmp_path)
    replies: list[tuple[bytes, Any]] = []
    monkeypatch.setattr(ingest.loop, "reply", lambda peer, message: replies.append((peer, message)))
    first, second = (
        Samples(client="a", n=n, base=1, count=1, dtype="uint8", shape=[INPUTS], labels=b"\0\0") for n in (1, 2)
    )
    group = [(b"old", first), (b"old", second), (b"new", first)]
    ingest.loop.handle([Received(peer, message, [bytes(INPUTS)]) for peer, message in group])
    assert {peer: list(ack.acks) for peer, ack in replies} == {b"new": [(1, 1, 1)], b"old": [(2, 2, 1)]}
    assert on_disk(ingest) == [("a", 1, 1, 1), ("a", 2, 2, 1)]
    assert ingest.metric("samples_duplicate_total") == 1
    ingest.close()


def test_clients_do_not_share_numbers(ingest: Ingest) -> None:
    one, two = ingest.peer(), ingest.peer()
    one.samples(1, client="one")
    two.samples(1, client="two")
    assert set(one.acked(1).values()) | set(two.acked(1).values()) == {(1, 1), (2, 1)}


def test_a_number_below_base_is_rejected(ingest: Ingest) -> None:
    peer = ingest.peer()
    for n in (1, 2, 3):
        peer.samples(n, base=n)
    peer.acked(3)
    peer.samples(2)
    answer = peer.answer()
    assert (answer["code"], answer["n"], answer["retry"]) == ("below_base", 2, False)
    assert answer["hint"]
    assert len(on_disk(ingest)) == 3


def test_a_base_above_the_number_is_rejected(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.samples(1, base=2)
    answer = peer.answer()
    assert (answer["code"], answer["n"], answer["retry"]) == ("bad_header", 1, False)
    assert on_disk(ingest) == []


def test_valid_messages_in_a_group_with_invalid_ones_are_stored(ingest: Ingest) -> None:
    peer = ingest.peer()
    for n in range(1, 31):
        peer.samples(n, **({} if n % 3 == 0 else {"labels": b"\x09\0"} if n % 3 == 1 else {"shape": [3]}))
    answers = [peer.answer() for _ in range(20)]
    errors = {answer["n"]: answer["code"] for answer in answers if answer["type"] == "error"}
    while len(errors) < 20:
        answer = peer.answer()
        if answer["type"] == "error":
            errors[answer["n"]] = answer["code"]
    assert errors == {n: "label_out_of_range" if n % 3 == 1 else "bad_shape" for n in range(1, 31) if n % 3}
    wait_until(lambda: len(on_disk(ingest)) == 10, 10, "the valid ones are stored")
    assert [row[1] for row in on_disk(ingest)] == list(range(3, 31, 3))


def test_a_batch_ends_after_a_few_invalid_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are queued: a valid one among them is stored before the others are read."""
    ingest = Ingest(tmp_path)
    good = (b"\0peer", [msgpack.packb({"v": 1, "type": "hello", "client": "a"})], None)
    waiting = itertools.chain([good], itertools.repeat((b"\0rude", [b"nonsense"], None)))
    monkeypatch.setattr(ingest.loop, "_receive_one", lambda: next(waiting))
    assert [received.peer for received in ingest.loop._receive()] == [b"\0peer"]
    assert 0 < ingest.rejected("bad_header") <= 32
    ingest.close()


def test_a_name_belongs_to_the_connection_that_said_hello_last(ingest: Ingest) -> None:
    """Messages of a producer that died must not use numbers that its successor has received as `next`."""
    old, new = ingest.peer(), ingest.peer()
    old.send("hello", client="peer")
    assert old.answer()["next"] == 1
    old.samples(1)
    old.acked(1)
    new.send("hello", client="peer")
    assert new.answer()["next"] == 2
    old.samples(2, labels=b"\1\0")
    answer = old.answer()
    assert (answer["code"], answer["retry"], answer["n"]) == ("name_taken", False, 2)
    new.samples(2, labels=b"\2\0")
    assert set(new.acked(1)) == {2}
    assert len(on_disk(ingest)) == 2
    old.send("hello", client="peer")
    assert old.answer()["next"] == 3
    old.samples(3)
    assert set(old.acked(1)) == {3}, "another hello reclaims the name"


def test_a_number_that_was_stored_with_other_samples_is_rejected(ingest: Ingest) -> None:
    """Two producers use one name. An ack would be for samples that are not stored."""
    peer = ingest.peer()
    peer.samples(1)
    peer.acked(1)
    peer.samples(1, labels=b"\1\0")
    answer = peer.answer()
    assert (answer["code"], answer["retry"], answer["n"]) == ("stored_differently", False, 1)
    peer.samples(1)
    assert set(peer.acked(1)) == {1}
    ingest.trim_to(1)
    wait_until(lambda: on_disk(ingest) == [], 10, "its row is deleted")
    peer.samples(1)
    assert set(peer.acked(1)) == {1}
    peer.samples(1, labels=b"\1\0")
    assert peer.answer()["code"] == "stored_differently", "its receipt has the checksum"


def test_floats_outside_by_a_rounding_error_are_stored_clipped(ingest: Ingest) -> None:
    """The clipped bytes are on disk, but the message is sent again with the original bytes."""
    peer = ingest.peer()
    sent = np.full(INPUTS, np.nextafter(np.float32(1), np.float32(2)), "<f4").tobytes()
    for _ in range(2):
        peer.samples(1, dtype="float32", payload=[sent])
        assert peer.acked(1) == {1: (1, 1)}
    connection = sqlite3.connect(ingest.journal.path)
    assert connection.execute("SELECT images FROM messages").fetchall() == [(np.ones(INPUTS, "<f4").tobytes(),)]
    connection.close()
    assert ingest.metric("samples_duplicate_total") == 1
    peer.samples(1, dtype="float32", payload=[np.zeros(INPUTS, "<f4").tobytes()])
    assert peer.answer()["code"] == "stored_differently"


# --- rejections -----------------------------------------------------------------------------------------------------


def rejection(answer: dict[str, Any]) -> tuple[str, str, bool]:
    assert answer["message"]
    assert answer["hint"]
    return answer["type"], answer["code"], answer["retry"]


def await_credit(peer: Peer) -> None:
    """Sends pings, as a client does."""

    def has_credit() -> bool:
        peer.send("ping")
        return bool(peer.answer()["credit"])

    wait_until(has_credit, 20, "samples are accepted again")


def test_a_full_backlog_rejects_samples_until_learning_has_caught_up(serve: Serve) -> None:
    ingest = serve(backlog_max_samples=4)
    peer = ingest.peer()
    for n in range(1, 5):
        peer.samples(n)
        peer.acked(1)
    peer.send("ping")
    pong = peer.answer()
    assert pong["credit"] == 0
    peer.send("hello", client="another")
    welcome = peer.answer()
    assert welcome["credit"] == 0
    reason = ingest.admission.rejection_reason()
    assert reason is not None
    for each in (pong, welcome):
        assert (each["refusing"], each["message"], each["hint"]) == (reason.code, reason.message, reason.hint)
    peer.samples(5)
    assert rejection(peer.answer()) == ("error", "backlog_full", True)
    peer.samples(2)
    assert peer.acked(1) == {2: (2, 1)}, "a stored message is acked even if the backlog is full"
    ingest.applied_seq = 1
    peer.send("ping")
    assert peer.answer()["credit"] == 1, "one sample fits, and so does one message"
    peer.samples(5)
    assert peer.acked(1) == {5: (5, 1)}
    assert ingest.rejected("backlog_full") == 1


def test_the_ack_that_fills_the_backlog_has_credit_0(serve: Serve) -> None:
    peer = serve(backlog_max_samples=1).peer()
    peer.samples(1)
    assert peer.answer()["credit"] == 0


def test_a_full_journal_rejects_samples_until_it_is_trimmed(serve: Serve) -> None:
    """The size is measured once a second."""
    ingest = serve(journal_max_bytes=1 << 20, backlog_max_samples=1_000_000)
    peer = ingest.peer()
    n = 0
    while True:
        n += 1
        peer.samples(n, base=n, count=10, labels=bytes(20), payload=[bytes(10 * INPUTS)])
        answer = peer.answer()
        if answer["type"] == "error":
            break
        assert n < 20_000
    assert rejection(answer) == ("error", "journal_full", True)
    peer.send("ping")
    assert peer.answer()["credit"] == 0
    ingest.applied_seq = ingest.journal.head.seq
    ingest.trim_to(ingest.applied_seq)
    await_credit(peer)
    wait_until(lambda: on_disk(ingest) == [], 10, "all rows are deleted")
    peer.samples(n, base=n)
    assert peer.acked(1)[n][0] == ingest.journal.head.seq
    assert ingest.metric("journal_used_bytes") < 1 << 20


def test_a_full_disk_rejects_a_group_and_the_next_one_is_stored(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = ingest.peer()
    peer.samples(1)
    peer.acked(1)
    database = ingest.journal._db
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    with monkeypatch.context() as patch:
        # The measurement once a second would find enough disk space and accept samples before the test can check.
        patch.setattr(housekeeping, "_MEASURE_EVERY_S", math.inf)
        database.execute(f"PRAGMA max_page_count = {pages}")
        n, answer = 1, {"type": "ack"}
        while answer["type"] == "ack":
            n += 1
            peer.samples(n, count=10, labels=bytes(20), payload=[bytes(10 * INPUTS)])
            answer = peer.answer()
            assert n < 1000
        assert rejection(answer) == ("error", "disk_full", True)
        assert ingest.rejected("disk_full") == 1
        assert len(on_disk(ingest)) == n - 1
        assert ingest.metric("refusing_samples", reason="disk_full") == 1
        database.execute("PRAGMA max_page_count = 1073741823")
    await_credit(peer)
    peer.samples(n)
    assert set(peer.acked(1)) == {n}
    assert ingest.metric("refusing_samples", reason="disk_full") == 0


def test_a_new_client_above_the_limit_is_rejected(serve: Serve) -> None:
    ingest = serve(clients_max=2)
    peer = ingest.peer()
    for name in ("a", "b"):
        peer.samples(1, client=name)
        peer.acked(1)
    peer.samples(1, client="c")
    assert rejection(peer.answer()) == ("error", "too_many_clients", True)
    peer.samples(2, client="a")
    assert set(peer.acked(1)) == {2}
    assert ingest.rejected("too_many_clients") == 1


def test_an_idle_client_is_forgotten_for_a_new_one(serve: Serve) -> None:
    ingest = serve(clients_max=2, client_forget_after_s=0.01)
    peer = ingest.peer()
    for name in ("a", "b"):
        peer.samples(1, client=name)
        peer.acked(1)
    peer.samples(1, client="c")
    assert rejection(peer.answer()) == ("error", "too_many_clients", True), "its samples may still be learned again"
    ingest.trim_to(2)
    wait_until(lambda: len(ingest.journal.clients) == 0, 20, "both are forgotten")
    peer.samples(1, client="c")
    assert set(peer.acked(1)) == {1}


def test_a_client_with_too_many_unresolved_messages_is_rejected(serve: Serve) -> None:
    ingest = serve(client_unresolved_max_messages=5)
    peer = ingest.peer()
    for n in range(1, 6):
        peer.samples(n, base=1)
        peer.acked(1)
    peer.samples(6, base=1)
    assert rejection(peer.answer()) == ("error", "too_many_unresolved", True)
    peer.samples(3, base=1)
    assert set(peer.acked(1)) == {3}, "a stored message is acked"
    peer.samples(1, base=1, client="other")
    assert set(peer.acked(1)) == {1}, "other clients are not affected"


def test_a_client_with_too_many_unresolved_messages_can_still_resolve_them(serve: Serve) -> None:
    """Its first message was lost or rejected, and later ones were stored. All wait for an answer to the first."""
    ingest = serve(client_unresolved_max_messages=3)
    peer = ingest.peer()
    for n in (2, 3, 4):
        peer.samples(n, base=1)
        peer.acked(1)
    peer.samples(5, base=1)
    assert rejection(peer.answer()) == ("error", "too_many_unresolved", True)
    peer.samples(1, base=1)
    assert set(peer.acked(1)) == {1}
    peer.samples(5, base=5)
    assert set(peer.acked(1)) == {5}
    peer.samples(6, base=5)
    assert set(peer.acked(1)) == {6}, "it can send again"


def test_only_a_client_above_its_rate_is_rejected(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(monotonic=lambda: now))
    ingest = serve(client_samples_per_s=10)
    peer = ingest.peer()
    ten = {"count": 10, "labels": bytes(20), "payload": [bytes(10 * INPUTS)]}
    peer.samples(1, **ten)
    assert set(peer.acked(1)) == {1}
    peer.samples(2, **ten)
    answer = peer.answer()
    assert rejection(answer) == ("error", "rate_limited", True)
    assert answer["retry_after_s"] == 1.0
    peer.samples(1, client="other", **ten)
    assert set(peer.acked(1)) == {1}
    # The bucket is full after exactly a second. (64ths are exact in binary.)
    now += 63 / 64
    peer.samples(2, **ten)
    answer = peer.answer()
    assert rejection(answer) == ("error", "rate_limited", True)
    assert answer["retry_after_s"] == 1 / 64
    now += 1 / 64
    peer.samples(2, **ten)
    assert set(peer.acked(1)) == {2}


def test_a_draining_daemon_rejects_new_samples(ingest: Ingest) -> None:
    peer = ingest.peer()
    peer.samples(1)
    peer.acked(1)
    ingest.admission.draining = True
    peer.samples(1)
    ack = peer.answer()
    assert (ack["type"], ack["credit"]) == ("ack", 0)
    peer.samples(2)
    assert rejection(peer.answer()) == ("error", "draining", True)
    peer.send("hello", client="peer")
    assert peer.answer()["credit"] == 0


# --- keys ---------------------------------------------------------------------------------------------------------


class Keys:
    """Sends groups of messages with keys to a loop that is not started, and records its answers."""

    def __init__(self, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ingest = ingest
        self.answers: list[tuple[bytes, Any]] = []
        monkeypatch.setattr(ingest.loop, "reply", lambda peer, message: self.answers.append((peer, message)))

    def send(self, *group: tuple[str, Hello | Samples | Bye]) -> list[Any]:
        """Sends messages, each key over its own connection, and returns the answers."""
        self.answers.clear()
        self.ingest.loop.handle(
            [
                Received(key.encode(), message, [bytes(INPUTS)] if isinstance(message, Samples) else [], key)
                for key, message in group
            ]
        )
        return [message for _, message in self.answers]

    def codes(self, *group: tuple[str, Hello | Samples | Bye]) -> list[str]:
        """The results of messages, sorted: the code of an error, or `ack`."""
        answers = self.send(*group)
        assert all(answer.hint for answer in answers if answer.type == "error")
        return sorted(
            code
            for answer in answers
            for code in ([answer.code] if answer.type == "error" else ["ack"] * len(answer.acks))
        )


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Keys]]:
    made: list[Ingest] = []

    def make(**limits: float) -> Keys:
        made.append(Ingest(tmp_path, **limits))
        return Keys(made[-1], monkeypatch)

    yield make
    for each in made:
        each.close()


def samples(n: int, client: str = "peer", *, base: int = 1, label: int = 0) -> Samples:
    labels = bytes([label, 0])
    return Samples(client=client, n=n, base=base, count=1, dtype="uint8", shape=[INPUTS], labels=labels)


def test_the_same_name_with_two_keys_is_two_clients(keys: Callable[..., Keys]) -> None:
    served = keys()
    # In one group, with other samples under the same number: neither is the other's duplicate.
    group = ("anna", samples(1, label=1)), ("bert", samples(1, label=2)), ("", samples(1, label=3))
    assert served.codes(*group) == ["ack"] * 3
    assert [(client, n) for client, n, *_ in on_disk(served.ingest)] == [
        ("anna\x1fpeer", 1),
        ("bert\x1fpeer", 1),
        ("peer", 1),
    ]
    assert served.ingest.metric("samples_duplicate_total") == 0
    assert served.codes(*group) == ["ack"] * 3, "each has its own numbers"
    served.codes(("anna", samples(2)))
    welcomes = served.send(*((key, Hello(client="peer")) for key in ("anna", "bert", "", "carl")))
    assert [welcome.next for welcome in welcomes] == [3, 2, 2, 1]
    assert served.codes(("anna", samples(3)), ("bert", samples(2))) == ["ack"] * 2, "no hello takes another's name"


def test_a_client_that_said_bye_is_forgotten(keys: Callable[..., Keys]) -> None:
    """A producer without a name generates one each time, so a key would soon reach its limit."""
    served = keys(client_names_max=2)
    for name in "abcdef":
        assert [each.type for each in served.send(("anna", Hello(client=name)))] == ["welcome"]
        assert served.codes(("anna", samples(1, name)), ("anna", Bye(client=name))) == ["ack"]
    assert served.ingest.journal.clients.names("anna\x1f") == 0


def test_bye_is_accepted_only_from_the_connection_that_said_hello(keys: Callable[..., Keys]) -> None:
    served = keys()
    served.send(("anna", Hello(client="a")))
    assert served.codes(("anna", samples(1, "a")), ("anna", samples(2, "a"))) == ["ack", "ack"]
    served.send(("bert", Bye(client="a")), ("", Bye(client="a")), ("anna", Bye(client="b")))
    assert served.ingest.journal.clients.unresolved("anna\x1f") == 2
    served.send(("anna", Bye(client="a")))
    assert served.ingest.journal.clients.unresolved("anna\x1f") == 0


def test_the_limit_on_names_holds_for_each_key(keys: Callable[..., Keys]) -> None:
    served = keys(client_names_max=3, clients_max=5)
    group = [("anna", samples(1, name)) for name in "aabcde"]
    assert served.codes(*group) == ["ack"] * 3 + ["too_many_clients"] * 2, "counted within a group, too"
    assert served.codes(("anna", samples(2, "a")), ("anna", samples(1, "d"))) == ["ack", "too_many_clients"]
    assert served.codes(("bert", samples(1, "d")), ("", samples(1, "d"))) == ["ack", "ack"]
    assert served.codes(("bert", samples(1, "e"))) == ["too_many_clients"], "the limit holds for all of them together"


def test_the_limit_on_clients_holds_within_a_group(keys: Callable[..., Keys]) -> None:
    served = keys(clients_max=3)
    group = [(key, samples(1, name)) for key in ("anna", "bert", "") for name in "ab"]
    assert served.codes(*group) == ["ack"] * 3 + ["too_many_clients"] * 3


def test_names_in_a_failed_commit_do_not_count(keys: Callable[..., Keys], monkeypatch: pytest.MonkeyPatch) -> None:
    served = keys(client_names_max=2)

    def refuse(entries: Any) -> Any:
        raise DiskFull("no room", hint="make some")

    with monkeypatch.context() as patch:
        patch.setattr(served.ingest.journal, "append", refuse)
        assert served.codes(*(("anna", samples(1, name)) for name in "ab")) == ["disk_full"] * 2
    look_at_every_turn(monkeypatch)
    served.ingest.look()
    assert served.codes(*(("anna", samples(1, name)) for name in "cd")) == ["ack"] * 2


def test_new_names_do_not_raise_the_rate_of_a_key(keys: Callable[..., Keys], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    served = keys(client_samples_per_s=3)
    group = [("anna", samples(1, name)) for name in "abcd"]
    assert served.codes(*group, ("bert", samples(1))) == ["ack"] * 4 + ["rate_limited"]


def test_the_limit_on_unresolved_messages_holds_for_all_names_of_a_key(keys: Callable[..., Keys]) -> None:
    served = keys(client_unresolved_max_messages=5, window_messages=2)
    assert served.codes(*(("anna", samples(n, "a")) for n in (2, 3, 4, 5, 6))) == ["ack"] * 5
    for n in (2, 3):
        assert served.codes(("anna", samples(n, "b"))) == ["ack"], "each name may use a window"
    assert served.codes(("anna", samples(4, "b"))) == ["too_many_unresolved"], "and no more"
    assert served.codes(*(("bert", samples(n, "b")) for n in (2, 3, 4))) == ["ack"] * 3, (
        "another key has its own limit"
    )
    assert served.codes(("anna", samples(1, "b"))) == ["ack"], "the lowest number"
    assert served.codes(("anna", samples(4, "b"))) == ["too_many_unresolved"]
    assert served.codes(("anna", samples(7, "a", base=7))) == ["ack"]
    assert served.codes(("anna", samples(4, "b"))) == ["ack"], "messages resolved by one name make room for another"


# --- housekeeping, limits, failures ---------------------------------------------------------------------------------


def test_rows_that_no_checkpoint_needs_are_deleted(ingest: Ingest) -> None:
    peer = ingest.peer()
    for n in range(1, 21):
        peer.samples(n)
    peer.acked(20)
    ingest.trim_to(15)
    wait_until(lambda: len(on_disk(ingest)) == 5, 10, "rows are deleted")
    peer.samples(3)
    assert peer.acked(1) == {3: (3, 1)}, "its receipt is still there"
    ingest.trim_to(20)
    wait_until(lambda: on_disk(ingest) == [], 10, "the rest is deleted")


def test_a_frame_far_above_the_limit_closes_its_connection_and_no_other(ingest: Ingest) -> None:
    good, bad = ingest.peer(), ingest.peer()
    for peer in (good, bad):
        peer.send("ping")
        peer.answer()
    monitor = bad.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    bad.samples(1, client="bad", payload=[bytes(4 * MESSAGE_MAX_BYTES)])
    assert monitor.poll(10_000), "it is still connected"
    assert recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED
    bad.socket.disable_monitor()
    good.samples(1)
    assert good.acked(1) == {1: (1, 1)}


def test_a_second_loop_cannot_bind_the_same_endpoint(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Ingest(tmp_path / "other")
    with pytest.raises(StartBlocked, match="cannot listen on") as caught:
        other.loop.bind(other._context, ingest.loop.endpoint)
    assert caught.value.hint
    other.close()


@pytest.mark.parametrize("limits", [{"reply_queue_messages": -1}, {"handshake_timeout_s": 1e9}])
def test_an_option_that_zeromq_rejects_leaves_no_open_socket(limits: dict[str, Any]) -> None:
    """An open socket would prevent the context from ending."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    loop = ControlLoop(
        {},
        Limits.model_construct(**limits),
        Metrics(),
        lambda error: None,
        checker=ImageChecker([INPUTS], 4, 10),
        boot="boot",
    )
    with pytest.raises(ConfigError, match="cannot listen on"):
        loop.bind(context, "tcp://127.0.0.1:*")
    ended = threading.Thread(target=context.term, daemon=True)
    ended.start()
    ended.join(10)
    assert not ended.is_alive()


def test_a_reply_to_a_peer_that_is_gone_is_counted(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path)
    ingest.loop.reply(b"nobody", Pong(socket="learn", boot="boot", credit=1))
    assert ingest.metric("replies_dropped_total") == 1
    ingest.close()


def test_an_unexpected_exception_ends_the_loop_and_is_reported(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path).start()

    def fail(*arguments: object) -> None:
        raise RuntimeError("nobody foresaw this")

    ingest.loop.journal.append = fail  # type: ignore[method-assign,assignment]
    ingest.peer().samples(1)
    wait_until(lambda: ingest.failures, 10, "the failure is reported")
    assert ingest.loop.thread.join(10)
    (failure,) = ingest.failures
    assert "ff-learn: RuntimeError('nobody foresaw this')" in str(failure)
    ingest.failures.clear()
    ingest.close()


def test_a_peer_that_is_gone_or_does_not_read_does_not_affect_others(serve: Serve) -> None:
    ingest = serve()
    gone = ingest.peer()
    for n in range(1, 200):
        gone.samples(n, labels=b"\x09\0")
    wait_until(lambda: ingest.rejected("label_out_of_range") > 0, 10, "it receives answers")
    gone.close()
    good = ingest.peer()
    for n in range(1, 11):
        good.samples(n)
    assert len(good.acked(10)) == 10
