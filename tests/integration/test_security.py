"""Nobody gets in who should not: keys, tokens and endpoints, with real sockets and real files."""

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


class House:
    """A daemon with keys. `anna` may do everything, `bert` may only send samples, `eve` nothing."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        for name in ("daemon", "other-daemon", "anna", "bert", "eve"):
            keys.create(folder / "made", name)
        for name in SOCKETS:
            (folder / name).mkdir()
            self.admit("anna", name)
        self.admit("bert", "learn")
        token = folder / "token"
        token.touch(0o600)
        token.write_text(TOKEN + "\n")
        self.running = Running(folder / "state", *self.settings(), *settings)

    def settings(self) -> list[str]:
        """The whole of [security]."""
        folders = [f"security.{name}_clients={self.folder / name}" for name in SOCKETS]
        return [
            f"security.server_key={self.secret('daemon')}",
            f"security.http_token={self.folder / 'token'}",
            *folders,
        ]

    def secret(self, name: str) -> Path:
        return self.folder / "made" / f"{name}.key_secret"

    def public(self, name: str) -> Path:
        return self.folder / "made" / f"{name}.key"

    def admit(self, name: str, socket: str) -> None:
        shutil.copy(self.public(name), self.folder / socket)

    def shut_out(self, name: str, socket: str) -> None:
        (self.folder / socket / f"{name}.key").unlink()

    def keys(self, name: str, daemon: str = "daemon") -> CurveKeys:
        return CurveKeys.load(self.secret(name), self.public(daemon))

    def endpoint(self, socket: str) -> str:
        loop = getattr(self.running.daemon, socket)
        assert isinstance(loop.endpoint, str)
        return loop.endpoint

    def visit(self, socket: str, keys: CurveKeys | None, endpoint: str | None = None) -> None:
        """Does something harmless over a new connection. Raises what the client raises."""
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

    def await_refusal(self, socket: str, *reasons: str, count: int = 1) -> None:
        wait_until(lambda: self.refused(socket, *reasons) >= count, SOON_S, f"{count} refused at {socket} {reasons}")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.running:
        yield house


def log_of(caplog: pytest.LogCaptureFixture, socket: str, reason: str) -> list[str]:
    wanted = f"connection rejected socket={socket} reason={reason} "
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(wanted)]


def test_who_has_the_key_gets_in(house: House) -> None:
    anna = house.keys("anna")
    producer = house.running.producer(keys=anna)
    producer.send(images(32), labels(32))
    producer.flush(SOON_S)
    assert producer.counts.acked == 32
    control = house.running.control(keys=anna)
    control.wait_idle(SOON_S)
    answer = house.running.predictor(keys=anna).predict(images(3))
    assert (len(answer.labels), answer.seq) == (3, 32)
    assert all(house.refused(name, reason) == 0 for name in SOCKETS for reason in ("unknown_key", "handshake"))


def test_the_largest_message_fits_with_its_encryption(house: House) -> None:
    limits = house.running.daemon.config.limits
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    house.keys("anna").use(peer)
    peer.connect(house.endpoint("learn"))
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
def test_who_has_not_is_told_soon_counted_and_logged(
    house: House, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(RequestRefused, match="does not admit this key") as caught:
        house.visit(name, house.keys("eve"))
    assert caught.value.remote_code == "unauthorized"
    assert caught.value.hint
    house.await_refusal(name, "unknown_key")
    (line, *_) = log_of(caplog, name, "unknown_key")
    assert f"key={keys.load_public(house.public('eve')).decode()}" in line
    assert "address=127.0.0.1" in line


# Each has a house of its own: a client tries more than once, and its later tries would count for the next one.


@pytest.mark.parametrize("name", SOCKETS)
def test_who_has_no_key_is_told_soon_counted_and_logged(
    house: House, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(RequestRefused, match="wants a key"):
        house.visit(name, None)
    house.await_refusal(name, "handshake", "broken_off")
    assert log_of(caplog, name, "handshake") or log_of(caplog, name, "broken_off")


@pytest.mark.parametrize("name", SOCKETS)
def test_who_has_the_key_of_another_daemon_is_told_soon_counted_and_logged(
    house: House, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(RequestRefused, match="breaks every handshake off") as caught:
        house.visit(name, house.keys("anna", "other-daemon"))
    assert "--server-key" in caught.value.hint
    house.await_refusal(name, "handshake", count=3)
    assert log_of(caplog, name, "handshake")


@pytest.mark.parametrize("name", SOCKETS)
def test_what_is_no_client_is_counted_and_keeps_nobody_out(house: House, name: str) -> None:
    for count, garbage in enumerate((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(200)), 1):
        say(house.endpoint(name), garbage)
        house.await_refusal(name, "handshake", count=count)
    house.visit(name, house.keys("anna"))
    assert house.refused(name, "handshake") == 2


def say(endpoint: str, data: bytes) -> bytes:
    """Over plain TCP; returns what came until the daemon closed the connection, or for a second."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    heard = b""
    with socket.create_connection((host, int(port)), 1) as raw:
        raw.sendall(data)
        try:
            while more := raw.recv(1 << 16):
                heard += more
        except (TimeoutError, ConnectionResetError):
            pass
    return heard


def test_a_key_opens_its_own_socket_only(house: House) -> None:
    house.visit("learn", house.keys("bert"))
    for name in ("predict", "control"):
        with pytest.raises(RequestRefused, match="does not admit this key"):
            house.visit(name, house.keys("bert"))
        house.await_refusal(name, "unknown_key")
    assert house.refused("learn", "unknown_key") == 0


def test_a_client_with_keys_at_a_daemon_without(tmp_path: Path) -> None:
    for name in ("anna", "daemon"):
        keys.create(tmp_path / "made", name)
    own = CurveKeys.load(tmp_path / "made/anna.key_secret", tmp_path / "made/daemon.key")
    with Running(tmp_path / "state") as running:
        control = running.control(keys=own)
        with pytest.raises(RequestRefused, match=r"knows no keys|breaks every handshake off"):
            control.status(SOON_S)


def test_a_flood_of_strangers_writes_few_lines(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    began = time.monotonic()
    for _ in range(100):
        say(house.endpoint("learn"), b"GET / HTTP/1.1\r\n\r\n")
    house.await_refusal("learn", "handshake", count=100)
    house.visit("learn", house.keys("anna"))
    wait_until(
        lambda: counted(log_of(caplog, "learn", "handshake")) == 100, SOON_S, "every one is in the log's counts"
    )
    # One a second: by the time that it took, which depends on the machine.
    assert len(log_of(caplog, "learn", "handshake")) <= 2 + (time.monotonic() - began) / rejections._LINE_S


def counted(lines: list[str]) -> int:
    return sum(int(line.split("count=")[1].split()[0]) for line in lines)


def test_a_silent_connection_is_closed_and_counted(tmp_path: Path) -> None:
    house = House(tmp_path, "limits.handshake_timeout_s=0.2")
    with house.running:
        host, _, port = house.endpoint("control").removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), SOON_S) as raw:
            while raw.recv(1 << 10):
                pass
        house.await_refusal("control", "broken_off")


def test_what_was_recorded_gets_nowhere(house: House) -> None:
    """Whoever sends a whole recorded conversation again, handshake and samples, has no sample stored."""
    proxy = RecordingProxy(house.endpoint("learn"))
    with Producer(proxy.endpoint, keys=house.keys("anna")) as producer:
        producer.send(images(8), labels(8))
    proxy.close()
    assert len(house.running.stored()) == 1
    assert images(8).tobytes()[:INPUTS] not in proxy.recorded
    received = house.running.metric("samples_received_total")

    say(house.endpoint("learn"), bytes(proxy.recorded))
    house.await_refusal("learn", "handshake")
    assert house.running.metric("samples_received_total") == received
    assert len(house.running.stored()) == 1


def test_frames_sent_twice_within_a_connection_are_refused(house: House) -> None:
    proxy = RecordingProxy(house.endpoint("learn"))
    through = Producer(proxy.endpoint, keys=house.keys("anna"), ack_timeout_s=0.5)
    proxy.change = lambda said: said + said
    through.send(images(8), labels(8))
    wait_until(lambda: proxy.closed_by_daemon, SOON_S, "the daemon closes the connection")
    proxy.change = bytes
    through.flush(SOON_S)  # it connects again, and sends again
    through.close()
    proxy.close()
    assert [samples for *_, samples in house.running.stored()] == [8]


@pytest.mark.parametrize("direction", ["change", "change_answers"])
def test_a_byte_changed_on_the_way_is_noticed(house: House, direction: str) -> None:
    proxy = RecordingProxy(house.endpoint("learn"))
    through = Producer(proxy.endpoint, keys=house.keys("anna"), ack_timeout_s=0.5)
    setattr(proxy, direction, lambda said: said[:-1] + bytes([said[-1] ^ 1]))
    through.send(images(8), labels(8))
    if direction == "change":
        wait_until(lambda: proxy.closed_by_daemon, SOON_S, "the daemon closes the connection")
        assert house.running.stored() == []
    else:
        wait_until(house.running.stored, SOON_S, "it is stored, and nobody told")
        with pytest.raises(DeadlineExceeded):
            through.flush(0.2)
    setattr(proxy, direction, bytes)
    through.flush(SOON_S)
    assert through.counts.acked == 8
    through.close()
    proxy.close()
    assert [samples for *_, samples in house.running.stored()] == [8]


def test_the_same_name_under_two_keys_is_two_clients(house: House) -> None:
    producers = []
    for seed, name in enumerate(("anna", "bert")):
        producer = house.running.producer(client="camera", keys=house.keys(name))
        assert producer.send(images(8, seed), labels(8, seed)) == 1, "numbers of its own"
        producer.flush(SOON_S)
        producers.append(producer)
    for seed, producer in enumerate(producers, 2):  # the other has said hello since
        producer.send(images(8, seed), labels(8, seed))
        producer.flush(SOON_S)
        assert (producer.counts.acked, producer.counts.rejected) == (16, 0)
    anna, bert = (keys.load_public(house.public(name)).decode() for name in ("anna", "bert"))
    assert [(client, n) for client, n, *_ in house.running.stored()] == [
        (f"{key}\x1fcamera", n) for n in (1, 2) for key in (anna, bert)
    ]
    control = house.running.control(keys=house.keys("anna"))
    control.wait_idle(SOON_S)
    assert control.status()["learned"] == 32
    assert house.running.producer(client="camera", keys=house.keys("bert")).send(images(1), labels(1)) == 3


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
def test_new_names_are_no_way_around_the_limits_of_a_key(
    tmp_path: Path, limits: list[str], sent: list[tuple[str, int]], code: str
) -> None:
    house = House(tmp_path, *(f"limits.{limit}" for limit in limits))
    with house.running:
        peer = house.running.peer(keys=house.keys("anna"))
        *good, (name, n) = sent
        for client, number in good:
            peer.samples(number, client=client)
            assert set(peer.acked(1)) == {number}
        peer.samples(n, client=name)
        answer = peer.answer()
        assert (answer["code"], answer["n"], answer["retry"]) == (code, n, True)
        other = house.running.peer(keys=house.keys("bert"))
        other.samples(n, client=name)
        assert set(other.acked(1)) == {n}


def test_producers_without_a_name_come_and_go_as_often_as_they_like(tmp_path: Path) -> None:
    house = House(tmp_path, "limits.client_names_max=2")
    with house.running:
        for seed in range(6):
            with house.running.producer(keys=house.keys("anna")) as producer:
                producer.send(images(4, seed=seed), labels(4, seed=seed))
            wait_until(
                lambda: house.running.daemon.journal.clients.unresolved_of(producer.client) == 0, SOON_S, "it is gone"
            )
        assert house.running.control(keys=house.keys("anna")).wait_idle(SOON_S)["learned"] == 24


def test_a_key_that_is_added_opens_at_once_and_one_that_is_removed_closes(house: House) -> None:
    eve = house.keys("eve")
    for _ in range(5):
        with pytest.raises(RequestRefused):
            house.visit("control", eve)
        house.admit("eve", "control")
        house.visit("control", eve)
        house.shut_out("eve", "control")


def test_a_key_removed_while_connected(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    anna, bert = house.keys("anna"), house.keys("bert")
    producer = house.running.producer(keys=bert, ack_timeout_s=0.5, on_refused=lambda refused: None)
    producer.send(images(4), labels(4))
    producer.flush(SOON_S)
    control = house.running.control(keys=anna)
    control.status()

    house.shut_out("bert", "learn")
    house.shut_out("anna", "control")
    ring = house.running.daemon._access.guards["learn"].keyring
    wait_until(lambda: len(ring.accepted) == 1, SOON_S, "the daemon has seen it")
    for _ in range(3):
        producer.send(images(4), labels(4))
        with pytest.raises(RequestRefused, match="no longer accepted") as caught:
            producer.flush(SOON_S)
        assert caught.value.remote_code == "unauthorized"
    wait_until(lambda: is_refused(control), SOON_S, "control is refused, too")
    assert sum(samples for *_, samples in house.running.stored()) == 4
    assert house.refused("learn", "key_removed") == 1
    assert house.running.metric("messages_rejected_total", reason="unauthorized") >= 4
    assert len(log_of(caplog, "learn", "key_removed")) == 1

    house.admit("bert", "learn")
    wait_until(lambda: len(ring.accepted) == 2, SOON_S, "it is back")
    # What was refused was never settled.
    wait_until(lambda: is_flushed(producer), 2 * SOON_S, "it is let in")
    assert producer.counts.acked == 16


def is_flushed(producer: Producer) -> bool:
    """False if it hears that it was refused: each message that it sent again has such an answer of its own."""
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


def test_broken_files_among_the_keys_harm_nobody(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    folder = house.folder / "control"
    ring = house.running.daemon._access.guards["control"].keyring
    # Nobody looks meanwhile: a file that is just being written is a broken one more, and logged as one.
    with ring._lock:
        (folder / "empty.key").touch()
        (folder / "half.key").write_text('curve\n    public-key = "abc')
        (folder / "binary.key").write_bytes(bytes(range(256)))
        (folder / "digits.key").write_text(f'public-key = "{"#" * 40}"\n')
        (folder / "folder.key").mkdir()
        (folder / "dangling.key").symlink_to("nowhere")
        (folder / "huge.key").write_bytes(bytes(1 << 20))
    house.visit("control", house.keys("anna"))
    wait_until(lambda: "half.key" in caplog.text, SOON_S, "it is logged")
    assert "failed" not in house.running.daemon.state
    with ring._lock:
        (folder / "half.key").write_bytes(house.public("eve").read_bytes())  # in place: the folder's time stays
    wait_until(lambda: len(ring.accepted) == 2, SOON_S, "read again")
    house.visit("control", house.keys("eve"))
    assert caplog.text.count("half.key") == 1


def test_without_its_folder_nobody_gets_in(house: House, caplog: pytest.LogCaptureFixture) -> None:
    (house.folder / "control").rename(house.folder / "away")
    with pytest.raises(RequestRefused, match="does not admit"):
        house.visit("control", house.keys("anna"))
    assert caplog.text.count("no keys accepted") == 1
    (house.folder / "away").rename(house.folder / "control")
    house.visit("control", house.keys("anna"))


def test_a_zap_thread_that_dies_ends_the_daemon(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    zap = house.running.daemon._access.zap
    assert zap is not None

    def broken() -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(zap, "_refresh", broken)
    wait_until(lambda: house.running.daemon.failure is not None, SOON_S, "the daemon has noticed")
    # Nobody gets in without it, not even with the right key.
    with pytest.raises((RequestRefused, DeadlineExceeded)):
        Control(house.endpoint("control"), keys=house.keys("anna")).status(1.0)
    with pytest.raises(StageFailed, match=r"ff-zap: .*on purpose"):
        house.running.stop()
    assert not any(thread.name == "ff-zap" for thread in threading.enumerate())


def test_http_wants_its_token(house: House) -> None:
    with httpx.Client(base_url=f"http://{house.running.daemon.http.address}", trust_env=False) as client:
        for path in ("/", "/healthz", "/readyz", "/readyz/learn"):
            assert client.get(path).status_code == 200
        for path in ("/status", "/metrics", "/none", "/status/", "/healthz/"):
            for borne in (None, "Bearer wrong", TOKEN, f"bearer {TOKEN}x", f"Basic {TOKEN}"):
                answer = client.get(path, headers={} if borne is None else {"Authorization": borne})
                assert answer.status_code == 401, (path, borne)
                assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/status", "/metrics"):
            for scheme in ("Bearer", "bearer", "BEARER"):
                assert client.get(path, headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
    assert house.refused("http", "token") == 25


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
    ],
)
def test_an_open_door_is_refused(tmp_path: Path, setting: str, option: str) -> None:
    with pytest.raises(ConfigError, match=option) as caught:
        Daemon(config(tmp_path / "state", setting)).start()
    assert "security.insecure=true" in caught.value.hint
    assert ("http_token" if "http" in option else "ffstream keygen") in caught.value.hint


@pytest.mark.parametrize("where", ["tcp://*:*", "tcp://0.0.0.0:*"])
def test_an_open_door_that_is_meant(tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    with Running(tmp_path / "state", "security.insecure=true", f"listen.control={where}", "listen.http=0.0.0.0:0"):
        assert "listening without authentication socket=control" in caplog.text


@pytest.mark.parametrize("where", ["tcp://127.0.0.7:*", "tcp://localhost:*", "ipc://{}/c"])
def test_what_others_cannot_reach_needs_no_keys(tmp_path: Path, where: str) -> None:
    with Running(tmp_path / "state", f"listen.control={where.format(tmp_path)}"):
        pass


def test_keys_that_are_not_complete(house: House, tmp_path: Path) -> None:
    def start(*settings: str) -> None:
        Daemon(config(tmp_path / "second", *house.settings(), *settings)).start()

    for name in SOCKETS:
        with pytest.raises(ConfigError, match=f"security.{name}_clients is missing"):
            start(f"security.{name}_clients=")
        with pytest.raises(ConfigError, match=f"security.{name}_clients = .* is not a folder"):
            start(f"security.{name}_clients={tmp_path}/none")
    with pytest.raises(ConfigError, match="has no effect without"):
        start("security.server_key=")
    public = tmp_path / "public-only"
    shutil.copy(house.public("daemon"), public)
    public.chmod(0o600)
    with pytest.raises(ConfigError, match="contains a public key, expected a secret key"):
        start(f"security.server_key={public}")
    (house.folder / "control").chmod(0o777)
    with pytest.raises(ConfigError, match="other users may write"):
        start()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_secrets_that_others_can_read(house: House, tmp_path: Path, mode: int) -> None:
    for path, start in (
        (house.secret("daemon"), lambda: Daemon(config(tmp_path / "second", *house.settings())).start()),
        (house.folder / "token", lambda: Daemon(config(tmp_path / "second", *house.settings())).start()),
        (house.secret("anna"), lambda: house.keys("anna")),
    ):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="can be accessed by users other") as caught:
            start()
        assert caught.value.hint == f"chmod 600 {path}"
        path.chmod(0o600)


def test_the_state_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_lock_that_leads_elsewhere_harms_nothing_there(tmp_path: Path) -> None:
    victim, state = tmp_path / "victim", tmp_path / "state"
    victim.write_text("precious")
    state.mkdir(0o700)
    (state / "lock").symlink_to(victim)
    with pytest.raises(ConfigError, match=str(state)):
        Daemon(config(state)).start()
    assert victim.read_text() == "precious"


def test_a_control_message_over_a_header_ends_its_connection(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        peer = running.peer("control")
        peer.send_frames(bytes(65_537))
        assert peer.answer()["code"] == "too_large"
        with peer.cut_off():
            peer.send_frames(bytes(131_073))
