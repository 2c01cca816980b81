"""The command `snapshot` on a real control socket. The test publishes the snapshots."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import zmq

from ffstream.config import Limits
from ffstream.metrics import Metrics
from ffstream.server import followers
from ffstream.server.control import ControlLoop
from ffstream.server.followers import Source
from ffstream.serving import replication
from ffstream.serving.replication import Encoded
from ffstream.serving.snapshot import Snapshot, Snapshots
from ffstream.wire.images import ImageChecker
from tests.harness.load.misbehaving import GREETING, READY
from tests.in_process import Peer
from tests.support import wait_until
from tests.unit.serving.answers import DEADLINE_S, RECIPE, snapshot

AN_HOUR_S = 3600.0
LARGE = 8 << 20  # more than the buffers of a connection hold


class Daemon:
    """A control socket. `wide`: its snapshots have that many bytes more."""

    def __init__(self, *, wide: int = 0, **limits: Any) -> None:
        self.metrics = Metrics()
        self.snapshots = Snapshots(Metrics())
        self.snapshots.publish(snapshot(1))
        self.failures: list[Exception] = []
        self.encoded: list[int] = []  # versions
        self.applied_seq = 250
        self.loop = ControlLoop(
            {},
            Limits(**({"followers_every_s": 0.0} | limits)),
            self.metrics,
            self.failures.append,
            checker=ImageChecker([16], 10, 10),
            boot="boot",
            source=Source(
                lambda: self.snapshots.current, lambda: self.applied_seq, lambda: RECIPE.model_dump(mode="json")
            ),
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.loop.bind(self._context, "tcp://127.0.0.1:*")
        self.loop.start()
        self._peers: list[Peer] = []
        self._wide = wide

    def encode(self, of: Snapshot) -> Encoded:
        """As the daemon does, noting the version."""
        self.encoded.append(of.version)
        encoded = replication.encode(of)
        if not self._wide:
            return encoded
        frames = [*encoded.frames, memoryview(bytes(self._wide))]
        return Encoded(of, frames, sum(map(len, frames)), replication.checksum(frames))

    def peer(self) -> Peer:
        self._peers.append(peer := Peer(self.loop.endpoint))
        return peer

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"ffstream_{name}") or 0.0

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        assert self.loop.stop(10)
        self._context.term()
        assert self.failures == []


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons, whose encodings are counted."""
    made: list[Daemon] = []

    def make(**options: Any) -> Daemon:
        made.append(daemon := Daemon(**options))
        monkeypatch.setattr(followers, "encode", daemon.encode)
        return daemon

    yield make
    for each in made:
        each.close()


def ask(peer: Peer, id: int = 1, **arguments: Any) -> None:
    peer.send("request", id=id, command="snapshot", arguments=arguments)


def ask_after(peer: Peer, version: int, timeout_s: float = AN_HOUR_S, id: int = 1) -> None:
    ask(peer, id, boot="boot", after=version, timeout_s=timeout_s)


def test_the_first_request_gets_the_newest_snapshot_and_if_asked_the_recipe(make: Callable[..., Daemon]) -> None:
    daemon = make()
    peer = daemon.peer()
    for recipe in (True, False):
        ask(peer, 7, recipe=recipe)
        answer, payload = peer.answer_and_payload()
        assert (answer["type"], answer["id"]) == ("reply", 7)
        result = answer["result"]
        assert (result["boot"], result["version"], result["seq"], result["applied_seq"]) == ("boot", 1, 100, 250)
        assert result["bytes"] == sum(map(len, payload)) > 0
        assert result["checksum"] == replication.checksum(payload)
        assert (result["recipe"] is not None) is recipe
        received = replication.Decoder(RECIPE).decode(payload, result["checksum"], 1, 100)
        assert received.classifier.recipe == RECIPE
    wait_until(lambda: daemon.value("snapshots_sent_total") == 2, DEADLINE_S, "both are counted")


def test_a_request_waits_for_a_newer_snapshot_without_a_thread(make: Callable[..., Daemon]) -> None:
    daemon = make()
    peers = [daemon.peer() for _ in range(20)]
    threads = threading.active_count()
    for peer in peers:
        ask_after(peer, 1)
    wait_until(lambda: daemon.value("followers") == len(peers), DEADLINE_S, "all of them wait")
    assert threading.active_count() == threads
    daemon.snapshots.publish(snapshot(2))
    assert {peer.answer()["result"]["version"] for peer in peers} == {2}
    assert daemon.encoded == [2], "it is encoded once for all of them"
    wait_until(lambda: daemon.value("followers") == 0, DEADLINE_S, "all have read their answers")


def test_without_a_newer_snapshot_the_answer_says_so_after_the_time_that_was_asked_for(
    make: Callable[..., Daemon],
) -> None:
    daemon = make()
    peer = daemon.peer()
    ask_after(peer, 1, timeout_s=0.05)
    answer, payload = peer.answer_and_payload()
    result = answer["result"]
    assert payload == []
    assert (result["version"], result["seq"], result["bytes"], result["checksum"]) == (1, 100, 0, "")
    assert 0.05 <= result["as_of_s"] < DEADLINE_S
    assert daemon.encoded == []


@pytest.mark.parametrize("boot", [None, "another"])
def test_a_version_of_another_start_of_the_daemon_counts_as_none(
    make: Callable[..., Daemon], boot: str | None
) -> None:
    peer = make().peer()
    ask(peer, boot=boot, after=1000)
    assert peer.answer()["result"]["version"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"after": "1"},
        {"after": -1},
        {"after": True},
        {"boot": 1},
        {"timeout_s": -1},
        {"timeout_s": "x"},
        {"recipe": 1},
    ],
)
def test_wrong_arguments_are_rejected(make: Callable[..., Daemon], arguments: dict[str, Any]) -> None:
    peer = make().peer()
    ask(peer, **arguments)
    answer = peer.answer()
    assert (answer["code"], answer["id"]) == ("bad_header", 1)
    assert f"snapshot.{next(iter(arguments))}" in answer["message"]


def test_snapshots_are_sent_in_rounds(make: Callable[..., Daemon]) -> None:
    """However many connections ask, at most one snapshot in `followers_every_s` is encoded."""
    daemon = make(followers_every_s=AN_HOUR_S)
    one, other = daemon.peer(), daemon.peer()
    ask(one)
    assert one.answer()["result"]["version"] == 1
    daemon.snapshots.publish(snapshot(2))
    ask(other, timeout_s=0.05)
    result = other.answer()["result"]
    assert (result["version"], result["bytes"]) == (2, 0), (
        "the next round is later, and the answer tells what there is"
    )
    assert daemon.encoded == [1]


def test_a_connection_has_one_request_at_a_time(make: Callable[..., Daemon]) -> None:
    peer = make().peer()
    ask_after(peer, 1)
    for id in range(2, 500):
        ask_after(peer, 1, id=id)
    for id in range(2, 500):
        answer = peer.answer()
        assert (answer["code"], answer["id"], answer["retry"]) == ("busy", id, True)


def test_more_followers_than_the_limit_are_rejected(make: Callable[..., Daemon]) -> None:
    daemon = make(followers_max=2)
    for _ in range(2):
        ask_after(daemon.peer(), 1)
    wait_until(lambda: daemon.value("followers") == 2, DEADLINE_S, "two of them wait")
    peer = daemon.peer()
    ask_after(peer, 1)
    assert peer.answer()["code"] == "busy"


class Deaf:
    """Asks, and reads no answer: after the handshake it reads nothing from its connection."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.settimeout(DEADLINE_S)
        self.socket.sendall(GREETING + READY)
        greeted = b""
        while not greeted.endswith(b"Identity\0\0\0\0"):
            greeted += self.socket.recv(1) or pytest.fail("the connection was closed")

    def ask(self, id: int) -> None:
        request = {"v": 1, "type": "request", "id": id, "command": "snapshot", "arguments": {}}
        header = msgpack.packb(request)
        self.socket.sendall(bytes([0, len(header)]) + header)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def deaf() -> Iterator[Callable[[Daemon], Deaf]]:
    """Makes followers that do not read."""
    made: list[Deaf] = []

    def make(daemon: Daemon) -> Deaf:
        made.append(each := Deaf(daemon.loop.endpoint))
        return each

    yield make
    for each in made:
        each.close()


def test_a_follower_that_does_not_read_gets_one_snapshot_and_does_not_delay_others(
    make: Callable[..., Daemon], deaf: Callable[[Daemon], Deaf]
) -> None:
    daemon = make(wide=LARGE, followers_max_bytes=3 * LARGE)
    hostile, good = deaf(daemon), daemon.peer()
    hostile.ask(1)
    wait_until(lambda: daemon.value("snapshots_sent_total") == 1, DEADLINE_S, "it is on its way")
    for id in range(2, 300):
        hostile.ask(id)
    for version in range(2, 20):
        daemon.snapshots.publish(snapshot(version))
        ask_after(good, version - 1)
        assert good.answer()["result"]["version"] == version
        hostile.ask(1000 + version)
    wait_until(lambda: daemon.value("snapshots_sent_total") >= 19, DEADLINE_S, "all are counted")
    assert daemon.value("snapshots_sent_total") == 19, "the other one got nothing more"
    assert daemon.encoded == list(range(1, 20))


def test_unread_snapshots_have_a_limit_in_bytes(make: Callable[..., Daemon], deaf: Callable[[Daemon], Deaf]) -> None:
    """Followers that do not read hold one snapshot each. At the limit the others wait until that is over."""
    daemon = make(wide=LARGE, followers_max_bytes=2 * LARGE + 100_000)
    hostile = []
    for version in (1, 2):
        daemon.snapshots.publish(snapshot(version))
        hostile.append(deaf(daemon))
        hostile[-1].ask(1)
        wait_until(lambda: daemon.value("snapshots_sent_total") == len(hostile), DEADLINE_S, "it is on its way")
    daemon.snapshots.publish(snapshot(3))
    good = daemon.peer()
    ask_after(good, 2, timeout_s=0.05)
    result = good.answer()["result"]
    assert (result["version"], result["bytes"]) == (3, 0)
    assert daemon.encoded == [1, 2]
    ask_after(good, 2)
    hostile[0].close()
    assert good.answer()["result"]["bytes"] > LARGE, "the place is free"


def test_a_follower_that_vanishes_frees_its_place(make: Callable[..., Daemon]) -> None:
    daemon = make(wide=LARGE, followers_max=1)
    peer = daemon.peer()
    ask(peer)
    wait_until(lambda: daemon.value("snapshots_sent_total") == 1, DEADLINE_S, "it is on its way")
    peer.close()
    other = daemon.peer()

    def is_answered() -> bool:
        ask(other)
        return bool(other.answer()["type"] == "reply")

    wait_until(is_answered, DEADLINE_S, "the place is free")


def test_waits_end_with_an_error_when_the_daemon_stops(make: Callable[..., Daemon]) -> None:
    daemon = make()
    peer = daemon.peer()
    ask_after(peer, 1)
    wait_until(lambda: daemon.value("followers") == 1, DEADLINE_S, "it waits")
    assert daemon.loop.stop(10)
    answer = peer.answer()
    assert (answer["code"], answer["retry"]) == ("unavailable", True)


def test_a_snapshot_that_cannot_be_encoded_is_an_error_and_not_the_end(
    make: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make()
    peer = daemon.peer()
    with monkeypatch.context() as patch:
        patch.setattr(followers, "encode", lambda of: 1 // 0)
        ask(peer)
        assert peer.answer()["code"] == "internal"
    ask(peer)
    assert peer.answer()["result"]["version"] == 1
