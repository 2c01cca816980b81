"""Keys, tokens and endpoints keep unauthorized clients out. Sockets and files are real."""

import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import zmq

from ffstream.client import Control, CurveKeys, Predictor, Producer
from ffstream.daemon.daemon import Daemon
from ffstream.errors import ConfigError, DeadlineExceeded, RequestRefused, StageFailed
from ffstream.security import keys
from ffstream.server import rejections
from tests.in_process import INPUTS, Running, config, cut_off, images, labels
from tests.recording_proxy import RecordingProxy
from tests.support import owned_by_another_user, wait_until

SOCKETS = ("learn", "predict", "control")
SOON_S = 30.0
TOKEN = "a-token-of-some-length"


class SecuredDaemon:
    """A daemon with keys. The key `anna` is allowed on every socket, `bert` only on learn, `rita` only to follow,
    and `eve` on none."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        for name in ("daemon", "other-daemon", "anna", "bert", "rita", "eve"):
            keys.create(folder / "keys", name)
        for name in (*SOCKETS, "follow"):
            (folder / name).mkdir()
        for name in SOCKETS:
            self.allow("anna", name)
        self.allow("bert", "learn")
        self.allow("rita", "follow")
        token = folder / "token"
        token.touch(0o600)
        token.write_text(TOKEN + "\n")
        self.running = Running(folder / "state", *self.settings(), *settings)

    def settings(self) -> list[str]:
        """All options of [security]."""
        folders = [f"security.{name}_clients={self.folder / name}" for name in (*SOCKETS, "follow")]
        return [
            f"security.server_key={self.secret('daemon')}",
            f"security.http_token={self.folder / 'token'}",
            *folders,
        ]

    def secret(self, name: str) -> Path:
        return self.folder / "keys" / f"{name}.key_secret"

    def public(self, name: str) -> Path:
        return self.folder / "keys" / f"{name}.key"

    def allow(self, name: str, socket: str) -> None:
        shutil.copy(self.public(name), self.folder / socket)

    def revoke(self, name: str, socket: str) -> None:
        (self.folder / socket / f"{name}.key").unlink()

    def keys(self, name: str, daemon: str = "daemon") -> CurveKeys:
        return CurveKeys.load(self.secret(name), self.public(daemon))

    def endpoint(self, socket: str) -> str:
        loop = getattr(self.running.daemon, socket)
        assert isinstance(loop.endpoint, str)
        return loop.endpoint

    def use(self, socket: str, keys: CurveKeys | None, endpoint: str | None = None) -> None:
        """Makes one harmless request over a new connection. Raises the error of the client."""
        endpoint = endpoint or self.endpoint(socket)
        if socket == "learn":
            Producer(endpoint, keys=keys, connect_timeout_s=SOON_S).close()
        elif socket == "predict":
            with Predictor(endpoint, keys=keys) as predictor:
                predictor.predict(images(1), SOON_S)
        else:
            with Control(endpoint, keys=keys) as control:
                control.status(SOON_S)

    def refused(self, socket: str, *reasons: str) -> float:
        name = "connections_refused_total"
        return sum(self.running.metric(name, socket=socket, reason=reason) for reason in reasons)

    def await_refusals(self, socket: str, *reasons: str, count: int = 1) -> None:
        wait_until(lambda: self.refused(socket, *reasons) >= count, SOON_S, f"{count} refused at {socket} {reasons}")


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[SecuredDaemon]:
    secured = SecuredDaemon(tmp_path)
    with secured.running:
        yield secured


def log_of(caplog: pytest.LogCaptureFixture, socket: str, reason: str) -> list[str]:
    wanted = f"connection rejected socket={socket} reason={reason} "
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(wanted)]


def test_a_client_with_an_allowed_key_is_served(secured: SecuredDaemon) -> None:
    anna = secured.keys("anna")
    producer = secured.running.producer(keys=anna)
    producer.send(images(32), labels(32))
    producer.flush(SOON_S)
    assert producer.counts.acked == 32
    control = secured.running.control(keys=anna)
    control.wait_idle(SOON_S)
    answer = secured.running.predictor(keys=anna).predict(images(3))
    assert (len(answer.labels), answer.seq) == (3, 32)
    assert all(secured.refused(name, reason) == 0 for name in SOCKETS for reason in ("unknown_key", "handshake"))


def test_the_byte_limit_is_that_of_the_message_without_encryption(secured: SecuredDaemon) -> None:
    limits = secured.running.daemon.config.limits
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    secured.keys("anna").use(peer)
    peer.connect(secured.endpoint("learn"))
    peer.send_multipart([b"no header", bytes(limits.message_max_bytes)])
    assert peer.poll(10_000)
    peer.recv()
    peer.send_multipart([b"no header", bytes(2 * limits.message_max_bytes)])
    assert peer.poll(10_000)
    peer.recv()
    with cut_off(peer):
        peer.send_multipart([b"no header", bytes(2 * limits.message_max_bytes + 1)])
    peer.close()


@pytest.mark.parametrize("name", SOCKETS)
def test_an_unknown_key_is_rejected_counted_and_logged(
    secured: SecuredDaemon, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(RequestRefused, match="does not accept this key") as caught:
        secured.use(name, secured.keys("eve"))
    assert caught.value.remote_code == "unauthorized"
    assert caught.value.hint
    secured.await_refusals(name, "unknown_key")
    (line, *_) = log_of(caplog, name, "unknown_key")
    assert f"key={keys.load_public(secured.public('eve')).decode()}" in line
    assert "address=127.0.0.1" in line


# Each test has its own daemon, because a client tries several times, and late tries would count for the next test.


@pytest.mark.parametrize("name", SOCKETS)
def test_a_missing_key_is_rejected_counted_and_logged(
    secured: SecuredDaemon, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(RequestRefused, match="needs a key"):
        secured.use(name, None)
    secured.await_refusals(name, "handshake", "broken_off")
    assert log_of(caplog, name, "handshake") or log_of(caplog, name, "broken_off")


@pytest.mark.parametrize("name", SOCKETS)
def test_the_server_key_of_another_daemon_is_rejected_counted_and_logged(
    secured: SecuredDaemon, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(RequestRefused, match="fails every handshake") as caught:
        secured.use(name, secured.keys("anna", "other-daemon"))
    assert "--server-key" in caught.value.hint
    secured.await_refusals(name, "handshake", count=3)
    assert log_of(caplog, name, "handshake")


@pytest.mark.parametrize("name", SOCKETS)
def test_bytes_that_are_no_handshake_are_counted_and_do_not_affect_other_clients(
    secured: SecuredDaemon, name: str
) -> None:
    for count, garbage in enumerate((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(200)), 1):
        send_over_tcp(secured.endpoint(name), garbage)
        secured.await_refusals(name, "handshake", count=count)
    secured.use(name, secured.keys("anna"))
    assert secured.refused(name, "handshake") == 2


def send_over_tcp(endpoint: str, data: bytes) -> bytes:
    """Sends bytes over plain TCP. Returns what arrived until the daemon closed the connection, or within a second."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), 1) as raw:
        raw.sendall(data)
        try:
            while more := raw.recv(1 << 16):
                received += more
        except (TimeoutError, ConnectionResetError):
            pass
    return received


def test_a_key_is_valid_only_for_the_sockets_where_it_is_allowed(secured: SecuredDaemon) -> None:
    secured.use("learn", secured.keys("bert"))
    for name in ("predict", "control"):
        with pytest.raises(RequestRefused, match="does not accept this key"):
            secured.use(name, secured.keys("bert"))
        secured.await_refusals(name, "unknown_key")
    assert secured.refused("learn", "unknown_key") == 0


def test_a_client_with_keys_is_told_that_the_daemon_has_none(tmp_path: Path) -> None:
    for name in ("anna", "daemon"):
        keys.create(tmp_path / "keys", name)
    own = CurveKeys.load(tmp_path / "keys/anna.key_secret", tmp_path / "keys/daemon.key")
    with Running(tmp_path / "state") as running:
        control = running.control(keys=own)
        with pytest.raises(RequestRefused, match=r"uses no keys|fails every handshake"):
            control.status(SOON_S)


def test_many_rejected_connections_write_few_log_lines(
    secured: SecuredDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    began = time.monotonic()
    for _ in range(100):
        send_over_tcp(secured.endpoint("learn"), b"GET / HTTP/1.1\r\n\r\n")
    secured.await_refusals("learn", "handshake", count=100)
    secured.use("learn", secured.keys("anna"))
    wait_until(
        lambda: counted(log_of(caplog, "learn", "handshake")) == 100, SOON_S, "the log lines count all of them"
    )
    # At most one line a second, however long the machine took.
    assert len(log_of(caplog, "learn", "handshake")) <= 2 + (time.monotonic() - began) / rejections._LINE_S


def counted(lines: list[str]) -> int:
    return sum(int(line.split("count=")[1].split()[0]) for line in lines)


def test_a_silent_connection_is_closed_and_counted(tmp_path: Path) -> None:
    secured = SecuredDaemon(tmp_path, "limits.handshake_timeout_s=0.2")
    with secured.running:
        host, _, port = secured.endpoint("control").removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), SOON_S) as raw:
            while raw.recv(1 << 10):
                pass
        secured.await_refusals("control", "broken_off")


def test_a_recorded_connection_cannot_be_replayed(secured: SecuredDaemon) -> None:
    """All recorded bytes of a client, handshake and samples, are sent again. No sample is stored."""
    proxy = RecordingProxy(secured.endpoint("learn"))
    with Producer(proxy.endpoint, keys=secured.keys("anna")) as producer:
        producer.send(images(8), labels(8))
    proxy.close()
    assert len(secured.running.stored()) == 1
    assert images(8).tobytes()[:INPUTS] not in proxy.recorded
    received = secured.running.metric("samples_received_total")

    send_over_tcp(secured.endpoint("learn"), bytes(proxy.recorded))
    secured.await_refusals("learn", "handshake")
    assert secured.running.metric("samples_received_total") == received
    assert len(secured.running.stored()) == 1


def test_frames_that_are_repeated_within_a_connection_are_rejected(secured: SecuredDaemon) -> None:
    proxy = RecordingProxy(secured.endpoint("learn"))
    through = Producer(proxy.endpoint, keys=secured.keys("anna"), ack_timeout_s=0.5)
    proxy.change = lambda data: data + data
    through.send(images(8), labels(8))
    wait_until(lambda: proxy.closed_by_daemon, SOON_S, "the daemon closes the connection")
    proxy.change = bytes
    through.flush(SOON_S)  # the producer connects and sends again
    through.close()
    proxy.close()
    assert [samples for *_, samples in secured.running.stored()] == [8]


@pytest.mark.parametrize("direction", ["change", "change_answers"])
def test_a_byte_changed_in_transit_is_detected(secured: SecuredDaemon, direction: str) -> None:
    proxy = RecordingProxy(secured.endpoint("learn"))
    through = Producer(proxy.endpoint, keys=secured.keys("anna"), ack_timeout_s=0.5)
    setattr(proxy, direction, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    through.send(images(8), labels(8))
    if direction == "change":
        wait_until(lambda: proxy.closed_by_daemon, SOON_S, "the daemon closes the connection")
        assert secured.running.stored() == []
    else:
        wait_until(secured.running.stored, SOON_S, "the samples are stored, and the ack is lost")
        with pytest.raises(DeadlineExceeded):
            through.flush(0.2)
    setattr(proxy, direction, bytes)
    through.flush(SOON_S)
    assert through.counts.acked == 8
    through.close()
    proxy.close()
    assert [samples for *_, samples in secured.running.stored()] == [8]


def test_the_same_client_name_with_two_keys_is_two_clients(secured: SecuredDaemon) -> None:
    producers = []
    for seed, name in enumerate(("anna", "bert")):
        producer = secured.running.producer(client="camera", keys=secured.keys(name))
        assert producer.send(images(8, seed), labels(8, seed)) == 1, "each has its own message numbers"
        producer.flush(SOON_S)
        producers.append(producer)
    for seed, producer in enumerate(producers, 2):  # the other one has sent hello since
        producer.send(images(8, seed), labels(8, seed))
        producer.flush(SOON_S)
        assert (producer.counts.acked, producer.counts.rejected) == (16, 0)
    anna, bert = (keys.load_public(secured.public(name)).decode() for name in ("anna", "bert"))
    assert [(client, n) for client, n, *_ in secured.running.stored()] == [
        (f"{key}\x1fcamera", n) for n in (1, 2) for key in (anna, bert)
    ]
    control = secured.running.control(keys=secured.keys("anna"))
    control.wait_idle(SOON_S)
    assert control.status()["learned"] == 32
    assert secured.running.producer(client="camera", keys=secured.keys("bert")).send(images(1), labels(1)) == 3


@pytest.mark.parametrize(
    ("limits", "sent", "code"),
    [
        (["client_names_max=2"], [("a", 1), ("b", 1), ("a", 2), ("c", 1)], "too_many_clients"),
        (["client_samples_per_s=0.001"], [("a", 1), ("b", 1)], "rate_limited"),
        (
            ["client_unresolved_max_messages=2", "window_messages=1"],
            [("a", 2), ("a", 3), ("b", 2), ("b", 3)],
            "too_many_unresolved",
        ),
    ],
)
def test_the_limits_of_a_key_apply_to_all_its_client_names(
    tmp_path: Path, limits: list[str], sent: list[tuple[str, int]], code: str
) -> None:
    secured = SecuredDaemon(tmp_path, *(f"limits.{limit}" for limit in limits))
    with secured.running:
        peer = secured.running.peer(keys=secured.keys("anna"))
        *good, (name, n) = sent
        for client, number in good:
            peer.samples(number, client=client)
            assert set(peer.acked(1)) == {number}
        peer.samples(n, client=name)
        answer = peer.answer()
        assert (answer["code"], answer["n"], answer["retry"]) == (code, n, True)
        other = secured.running.peer(keys=secured.keys("bert"))
        other.samples(n, client=name)
        assert set(other.acked(1)) == {n}


def test_the_limit_of_names_does_not_stop_unnamed_producers_that_connect_and_leave(tmp_path: Path) -> None:
    secured = SecuredDaemon(tmp_path, "limits.client_names_max=2")
    with secured.running:
        for seed in range(6):
            with secured.running.producer(keys=secured.keys("anna")) as producer:
                producer.send(images(4, seed=seed), labels(4, seed=seed))
            wait_until(
                lambda: secured.running.daemon.journal.clients.unresolved_of(producer.client) == 0,
                SOON_S,
                "the name is released",
            )
        assert secured.running.control(keys=secured.keys("anna")).wait_idle(SOON_S)["learned"] == 24


def test_adding_and_removing_a_key_takes_effect_at_once(secured: SecuredDaemon) -> None:
    eve = secured.keys("eve")
    for _ in range(5):
        with pytest.raises(RequestRefused):
            secured.use("control", eve)
        secured.allow("eve", "control")
        secured.use("control", eve)
        secured.revoke("eve", "control")


def test_a_connected_client_is_rejected_once_its_key_is_removed(
    secured: SecuredDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    anna, bert = secured.keys("anna"), secured.keys("bert")
    producer = secured.running.producer(keys=bert, ack_timeout_s=0.5, on_rejected=lambda refused: None)
    producer.send(images(4), labels(4))
    producer.flush(SOON_S)
    control = secured.running.control(keys=anna)
    control.status()

    secured.revoke("bert", "learn")
    secured.revoke("anna", "control")
    ring = secured.running.daemon._access.guards["learn"].keyring
    wait_until(lambda: len(ring.accepted) == 1, SOON_S, "the daemon has read the folder")
    for _ in range(3):
        producer.send(images(4), labels(4))
        with pytest.raises(RequestRefused, match="no longer accepted") as caught:
            producer.flush(SOON_S)
        assert caught.value.remote_code == "unauthorized"
    wait_until(lambda: is_refused(control), SOON_S, "the control client is rejected, too")
    assert sum(samples for *_, samples in secured.running.stored()) == 4
    assert secured.refused("learn", "key_removed") == 1
    assert secured.running.metric("messages_rejected_total", reason="unauthorized") >= 4
    assert len(log_of(caplog, "learn", "key_removed")) == 1

    secured.allow("bert", "learn")
    wait_until(lambda: len(ring.accepted) == 2, SOON_S, "the key is allowed again")
    # Samples that were rejected are still unacked, so the producer sends them again.
    wait_until(lambda: is_flushed(producer), 2 * SOON_S, "the producer is accepted")
    assert producer.counts.acked == 16


COMMANDS = ("status", "config", "pause", "resume", "checkpoint", "rollback", "wait_idle", "drain", "stop", "unknown")


def snapshot_version(control: Control) -> int:
    info, frames = control.snapshot(after=None, wait_s=1.0, recipe=True, timeout_s=SOON_S)
    assert sum(map(len, frames)) == info.bytes > 0
    assert info.recipe is not None
    return info.version


def refusal(control: Control, command: str) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        control.request(command, {"to": 0}, SOON_S)
    return caught.value


def test_a_key_for_replicas_is_for_snapshots_only(secured: SecuredDaemon, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rita = secured.keys("rita")
    secured.use("learn", secured.keys("anna"))
    with Control(secured.endpoint("control"), keys=rita) as control:
        assert control.hello(SOON_S).socket == "control"
        version = snapshot_version(control)
        for command in COMMANDS:
            error = refusal(control, command)
            assert error.remote_code == "unauthorized"
            assert f"snapshot, hello and ping, not for {command}" in error.message
            assert "security.control_clients" in error.hint
        assert snapshot_version(control) >= version, "the connection is still good"
    # An unknown command and wrong arguments say no more than the others do.
    rejected = [each for each in caplog.messages if each.startswith("message rejected socket=control")]
    assert any("reason=unauthorized" in line and f"key={rita.own.public.decode()}" in line for line in rejected)
    assert secured.running.metric("messages_rejected_total", reason="unauthorized") == len(COMMANDS)
    with Control(secured.endpoint("control"), keys=secured.keys("anna")) as control:
        status = control.status(SOON_S)
        assert (status["state"], status["paused"], status["checkpoint"]) == ("ready", False, None), "nothing was done"
        assert snapshot_version(control) >= version, "a control client may follow, too"


def test_a_ping_with_a_key_for_replicas_is_answered(secured: SecuredDaemon) -> None:
    peer = secured.running.peer("control", keys=secured.keys("rita"))
    peer.send("ping")
    assert peer.answer()["type"] == "pong"
    peer.send("request", id=7, command="stop", arguments={})
    answer = peer.answer()
    assert (answer["code"], answer["id"], answer["retry"]) == ("unauthorized", 7, False)


def test_a_key_for_replicas_opens_no_other_socket(secured: SecuredDaemon) -> None:
    for name in ("learn", "predict"):
        with pytest.raises(RequestRefused, match="does not accept this key"):
            secured.use(name, secured.keys("rita"))
        secured.await_refusals(name, "unknown_key")
    with (
        Control(secured.endpoint("control"), keys=secured.keys("eve")) as control,
        pytest.raises(RequestRefused, match="does not accept this key"),
    ):
        control.snapshot(after=None, wait_s=1.0)


def test_the_right_of_a_connected_client_follows_the_folders(secured: SecuredDaemon) -> None:
    """The key of a replica is promoted, demoted, removed and added while it is connected."""
    access, control = secured.running.daemon._access, secured.running.control(keys=secured.keys("rita"))
    snapshot_version(control)
    assert refusal(control, "status").remote_code == "unauthorized"
    secured.allow("rita", "control")
    access.reload()  # as on SIGHUP
    assert control.status(SOON_S)["state"] == "ready"
    secured.revoke("rita", "follow")
    access.reload()
    snapshot_version(control)
    secured.revoke("rita", "control")
    access.reload()
    with pytest.raises(RequestRefused, match="no longer accepted") as caught:
        control.snapshot(after=None, wait_s=1.0)
    assert "security.control_clients or security.follow_clients" in caught.value.hint
    assert secured.refused("control", "key_removed") == 1
    secured.allow("rita", "follow")
    access.reload()
    snapshot_version(control)
    assert refusal(control, "stop").remote_code == "unauthorized"


def test_a_request_that_waits_gets_no_weights_once_its_key_is_removed(secured: SecuredDaemon) -> None:
    control = secured.running.control(keys=secured.keys("rita"))
    info, _ = control.snapshot(after=None, wait_s=1.0, timeout_s=SOON_S)
    peer = secured.running.peer("control", keys=secured.keys("rita"))
    after = {"boot": info.boot, "after": info.version, "timeout_s": 30}
    peer.send("request", id=1, command="snapshot", arguments=after)
    peer.send("ping")
    assert peer.answer()["type"] == "pong", "it has taken the request, which waits"
    secured.revoke("rita", "follow")
    secured.running.daemon._access.reload()
    secured.running.producer(keys=secured.keys("anna")).send(images(32), labels(32))
    answer, payload = peer.answer_and_payload()
    assert (answer["type"], answer["code"], answer["id"], payload) == ("error", "unauthorized", 1, [])
    wait_until(lambda: secured.running.metric("followers") == 0, SOON_S, "its place is free")


def test_without_a_folder_for_replicas_control_clients_may_follow(tmp_path: Path) -> None:
    secured = SecuredDaemon(tmp_path, "security.follow_clients=")
    with secured.running:
        for name, is_allowed in (("anna", True), ("rita", False)):
            with Control(secured.endpoint("control"), keys=secured.keys(name)) as control:
                if is_allowed:
                    snapshot_version(control)
                else:
                    with pytest.raises(RequestRefused, match="does not accept this key"):
                        control.snapshot(after=None, wait_s=1.0)


def is_flushed(producer: Producer) -> bool:
    """False if it was rejected. Each message that was sent again can have such an answer."""
    try:
        producer.flush(SOON_S)
    except RequestRefused as error:
        if error.remote_code != "unauthorized":
            raise
        return False
    return True


def is_refused(control: Control) -> bool:
    try:
        control.status(SOON_S)
    except RequestRefused as error:
        return error.remote_code == "unauthorized"
    return False


def test_broken_key_files_are_logged_and_do_not_affect_other_keys(
    secured: SecuredDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder = secured.folder / "control"
    ring = secured.running.daemon._access.guards["control"].keyring
    # Hold the lock, or the daemon might read a file that is not completely written and log it twice.
    with ring._lock:
        (folder / "empty.key").touch()
        (folder / "half.key").write_text('curve\n    public-key = "abc')
        (folder / "binary.key").write_bytes(bytes(range(256)))
        (folder / "digits.key").write_text(f'public-key = "{"#" * 40}"\n')
        (folder / "folder.key").mkdir()
        (folder / "dangling.key").symlink_to("nowhere")
        (folder / "huge.key").write_bytes(bytes(1 << 20))
    secured.use("control", secured.keys("anna"))
    wait_until(lambda: "half.key" in caplog.text, SOON_S, "the broken file is logged")
    assert "failed" not in secured.running.daemon.state
    with ring._lock:
        # In place, so the modification time of the folder does not change.
        (folder / "half.key").write_bytes(secured.public("eve").read_bytes())
    wait_until(lambda: len(ring.accepted) == 2, SOON_S, "the file is read again")
    secured.use("control", secured.keys("eve"))
    assert caplog.text.count("half.key") == 1


def test_without_its_folder_of_keys_a_socket_rejects_every_client(
    secured: SecuredDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    (secured.folder / "control").rename(secured.folder / "away")
    with pytest.raises(RequestRefused, match="does not accept"):
        secured.use("control", secured.keys("anna"))
    assert caplog.text.count("no keys accepted") == 1
    (secured.folder / "away").rename(secured.folder / "control")
    secured.use("control", secured.keys("anna"))


def test_a_dead_zap_thread_stops_the_daemon(secured: SecuredDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    zap = secured.running.daemon._access.zap
    assert zap is not None

    def broken() -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(zap, "_refresh", broken)
    wait_until(lambda: secured.running.daemon.failure is not None, SOON_S, "the daemon has failed")
    # Without it every client is rejected, also with an allowed key.
    with pytest.raises((RequestRefused, DeadlineExceeded)):
        Control(secured.endpoint("control"), keys=secured.keys("anna")).status(1.0)
    with pytest.raises(StageFailed, match=r"ff-zap: .*on purpose"):
        secured.running.stop()
    assert not any(thread.name == "ff-zap" for thread in threading.enumerate())


def test_http_status_and_metrics_need_the_token(secured: SecuredDaemon) -> None:
    with httpx.Client(base_url=f"http://{secured.running.daemon.http.address}", trust_env=False) as client:
        for path in ("/", "/healthz", "/readyz", "/readyz/learn"):
            assert client.get(path).status_code == 200
        for path in ("/status", "/metrics", "/none", "/status/", "/healthz/"):
            for authorization in (None, "Bearer wrong", TOKEN, f"bearer {TOKEN}x", f"Basic {TOKEN}"):
                answer = client.get(path, headers={} if authorization is None else {"Authorization": authorization})
                assert answer.status_code == 401, (path, authorization)
                assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/status", "/metrics"):
            for scheme in ("Bearer", "bearer", "BEARER"):
                assert client.get(path, headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
    assert secured.refused("http", "token") == 25


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ("listen.learn=tcp://*:*", "listen.learn"),
        ("listen.predict=tcp://0.0.0.0:*", "listen.predict"),
        ("listen.control=tcp://[::]:*", "listen.control"),
        ("listen.control=tcp://eth0:*", "listen.control"),
        ("listen.learn=tcp://8.8.8.8:5757", "listen.learn"),
        ("listen.learn=tcp://127.0.0.1.example.org:5757", "listen.learn"),
        ("listen.http=0.0.0.0:0", "listen.http"),
        ("listen.http=[::]:0", "listen.http"),
        ("listen.http=:0", "listen.http"),
        ("listen.standby_http=0.0.0.0:0", "listen.standby_http"),
    ],
)
def test_an_endpoint_reachable_from_elsewhere_without_keys_is_rejected(
    tmp_path: Path, setting: str, option: str
) -> None:
    with pytest.raises(ConfigError, match=option) as caught:
        Daemon(config(tmp_path / "state", setting)).start()
    assert "security.insecure=true" in caught.value.hint
    assert ("http_token" if "http" in option else "ffstream keygen") in caught.value.hint


@pytest.mark.parametrize("where", ["tcp://*:*", "tcp://0.0.0.0:*"])
def test_an_endpoint_reachable_from_elsewhere_is_allowed_with_insecure(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Running(tmp_path / "state", "security.insecure=true", f"listen.control={where}", "listen.http=0.0.0.0:0"):
        assert "listening without authentication socket=control" in caplog.text


@pytest.mark.parametrize("where", ["tcp://127.0.0.7:*", "tcp://localhost:*", "ipc://{}/c"])
def test_a_local_endpoint_needs_no_keys(tmp_path: Path, where: str) -> None:
    with Running(tmp_path / "state", f"listen.control={where.format(tmp_path)}"):
        pass


def test_incomplete_security_options_are_rejected(secured: SecuredDaemon, tmp_path: Path) -> None:
    def start(*settings: str) -> None:
        Daemon(config(tmp_path / "second", *secured.settings(), *settings)).start()

    for name in SOCKETS:
        with pytest.raises(ConfigError, match=f"security.{name}_clients is missing"):
            start(f"security.{name}_clients=")
        with pytest.raises(ConfigError, match=f"security.{name}_clients = .* is not a folder"):
            start(f"security.{name}_clients={tmp_path}/none")
    with pytest.raises(ConfigError, match=r"security.follow_clients = .* is not a folder"):
        start(f"security.follow_clients={tmp_path}/none")
    with pytest.raises(ConfigError, match="has no effect without"):
        start("security.server_key=")
    with pytest.raises(ConfigError, match=r"security.follow_clients has no effect without security.server_key"):
        Daemon(config(tmp_path / "third", f"security.follow_clients={secured.folder / 'follow'}")).start()
    public = tmp_path / "public-only"
    shutil.copy(secured.public("daemon"), public)
    public.chmod(0o600)
    with pytest.raises(ConfigError, match="contains a public key, expected a secret key"):
        start(f"security.server_key={public}")
    (secured.folder / "control").chmod(0o777)
    with pytest.raises(ConfigError, match="other users may write"):
        start()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_secret_files_that_other_users_can_access_are_rejected(
    secured: SecuredDaemon, tmp_path: Path, mode: int
) -> None:
    for path, start in (
        (secured.secret("daemon"), lambda: Daemon(config(tmp_path / "second", *secured.settings())).start()),
        (secured.folder / "token", lambda: Daemon(config(tmp_path / "second", *secured.settings())).start()),
        (secured.secret("anna"), lambda: secured.keys("anna")),
    ):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="can be accessed by users other") as caught:
            start()
        assert caught.value.hint == f"chmod 600 {path}"
        path.chmod(0o600)


def test_a_state_folder_must_belong_to_this_user_and_not_be_writable_by_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Running(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert "others may read" not in caplog.text
    (tmp_path / "new").chmod(0o755)
    with Running(tmp_path / "new"):
        assert "others may read the state folder" in caplog.text
    (tmp_path / "new").chmod(0o777)
    with pytest.raises(ConfigError, match="other users may write") as caught:
        Daemon(config(tmp_path / "new")).start()
    assert "chmod 700" in caught.value.hint
    (tmp_path / "new").chmod(0o700)
    with owned_by_another_user(tmp_path / "new"), pytest.raises(ConfigError, match="belongs to another user"):
        Daemon(config(tmp_path / "new")).start()


def test_a_lock_file_that_is_a_symbolic_link_is_rejected_and_its_target_unchanged(tmp_path: Path) -> None:
    target, state = tmp_path / "target", tmp_path / "state"
    target.write_text("precious")
    state.mkdir(0o700)
    (state / "lock").symlink_to(target)
    with pytest.raises(ConfigError, match=str(state)):
        Daemon(config(state)).start()
    assert target.read_text() == "precious"


def test_a_control_message_larger_than_a_header_ends_its_connection(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        peer = running.peer("control")
        peer.send_frames(bytes(65_537))
        assert peer.answer()["code"] == "too_large"
        with peer.cut_off():
            peer.send_frames(bytes(131_073))
