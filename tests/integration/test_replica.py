"""A prediction replica follows a real daemon and answers as the daemon does, bit for bit, with or without it."""

import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from ffstream.client import CurveKeys, Predictor
from ffstream.config import load
from ffstream.daemon.replica import Replica
from ffstream.errors import ConfigError, RequestRefused
from ffstream.security import keys
from tests.harness.commands import CLI, COMMAND_S, run_cli
from tests.harness.crashing.presets import small_recipe, small_stream
from tests.harness.daemon_directory import FREE_PORTS, free_port
from tests.in_process import ANSWER_S, ANY_NETWORK, WAIT_S, Peer, Running, Start, feed, images
from tests.support import wait_until

Follow = Callable[..., "Following"]


class Following:
    """A replica in the process of the test."""

    def __init__(self, url: str, *settings: str, **options: Any) -> None:
        self.replica = Replica(load(settings=[*FREE_PORTS, *settings], environment={}), url, **options)
        assert self.replica.start()
        self._waiting = threading.Thread(target=self.replica.wait, name="replica")
        self._waiting.start()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.replica.http.address}{path}", timeout=ANSWER_S)

    def metric(self, name: str) -> float | None:
        return self.replica.metrics.registry.get_sample_value(f"ffstream_{name}")

    @property
    def seq(self) -> int:
        return self.replica.follower.snapshots.current.seq

    def await_nothing_missing(self) -> None:
        wait_until(lambda: self.metric("replica_behind_samples") == 0, WAIT_S, "nothing is missing")

    def close(self) -> None:
        self.replica.request_stop()
        self._waiting.join(WAIT_S)
        self.replica.stop()


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Starts replicas of a daemon, given its control endpoint."""
    started: list[Following] = []

    def make(url: str, *settings: str, **options: Any) -> Following:
        started.append(following := Following(url, *settings, **options))
        return following

    yield make
    for each in started:
        each.close()


def same_answers(daemon: Running, *followers: Following) -> bool:
    """Whether all answer with the same snapshot; asserts that such answers are equal."""
    queries: list[NDArray[Any]] = [images(33, 7), images(3, 8).astype(np.float32) / 255]
    for query in queries:
        expected = daemon.predictor().predict(query)
        for each in followers:
            with Predictor(each.replica.endpoint) as predictor:
                found = predictor.predict(query)
            if (found.version, found.seq) != (expected.version, expected.seq):
                return False
            assert np.array_equal(found.labels, expected.labels)
            assert found.goodness.tobytes() == expected.goodness.tobytes()
    return True


def test_replicas_answer_as_the_daemon_and_follow_it(start: Start, follow: Follow) -> None:
    daemon = start()
    feed(daemon, 40)
    followers = [follow(daemon.daemon.control.endpoint) for _ in range(2)]
    for seed in range(3):
        feed(daemon, 40, seed=10 + seed)
        wait_until(lambda: same_answers(daemon, *followers), WAIT_S, "they have the newest snapshot")
    assert {each.seq for each in followers} == {160}
    for each in followers:
        with Predictor(each.replica.endpoint) as predictor, Predictor(daemon.daemon.predict.endpoint) as original:
            assert predictor.hello() == original.hello(), "limits, images, labels, and boot"
        assert each.get("/readyz").text == "ready\n"
        assert each.metric("replica_connected") == 1
        assert each.metric("snapshot_seq") == 160
        each.await_nothing_missing()
        assert each.get("/readyz/learn").status_code == 503
    assert daemon.metric("snapshots_sent_total") >= 2


@pytest.mark.parametrize("preset", ["conv", "unsupervised"])
def test_other_networks_are_replicated_bit_for_bit(tmp_path: Path, follow: Follow, preset: str) -> None:
    """In bfloat16, which is not the default of these tests."""
    settings = [*small_stream(preset, seed=1).settings, "pipeline.precision=bf16"]
    inputs = small_recipe(preset).inputs
    query = np.random.default_rng(1).integers(0, 256, (20, inputs), np.uint8)
    with Running(tmp_path / "state", *settings, base=ANY_NETWORK) as daemon:
        daemon.producer().send(query, np.arange(20) % 10)
        following = follow(daemon.daemon.control.endpoint)
        daemon.control().wait_idle(WAIT_S)
        wait_until(lambda: following.seq == 20, WAIT_S, "it has learned all")
        with Predictor(following.replica.endpoint) as predictor:
            found, expected = predictor.predict(query), daemon.predictor().predict(query)
        assert found.goodness.tobytes() == expected.goodness.tobytes()


def test_a_rollback_is_followed(start: Start, follow: Follow) -> None:
    daemon = start()
    feed(daemon, 40)
    daemon.control().request("checkpoint")
    following = follow(daemon.daemon.control.endpoint)
    feed(daemon, 40, seed=3)
    wait_until(lambda: following.seq == 80, WAIT_S, "it follows")
    daemon.control().request("rollback", {"to": 40, "later": "skip"})
    wait_until(lambda: same_answers(daemon, following), WAIT_S, "it has gone back, too")


def test_it_predicts_without_the_daemon_says_so_and_follows_the_next_start(
    tmp_path: Path, start: Start, follow: Follow
) -> None:
    port = f"listen.control=tcp://127.0.0.1:{free_port()}"
    daemon = start(port)
    feed(daemon, 40)
    url = daemon.daemon.control.endpoint
    loose, strict = follow(url), follow(url, max_staleness_s=2.0)
    wait_until(lambda: same_answers(daemon, loose, strict), WAIT_S, "they follow")
    expected = daemon.predictor().predict(images(5))
    daemon.stop()
    wait_until(lambda: "does not answer" in loose.get("/readyz").text, WAIT_S, "the replica says so")
    wait_until(lambda: strict.get("/readyz").status_code == 503, WAIT_S, "it is stale")
    assert strict.get("/readyz").text.startswith("stale: ")
    assert loose.get("/readyz").status_code == 200, "without a limit it is ready all the same"
    for each in (loose, strict):
        assert each.metric("replica_connected") == 0
        assert (each.metric("replica_staleness_seconds") or 0) > 1
        assert each.get("/healthz").status_code == 200
        with Predictor(each.replica.endpoint) as predictor:
            found = predictor.predict(images(5))
        assert found.seq == expected.seq, "a stop publishes the same weights once more"
        assert found.goodness.tobytes() == expected.goodness.tobytes()
        peer = Peer(each.replica.endpoint)
        peer.send("ping")
        pong = peer.answer()
        peer.close()
        assert "the daemon does not answer" in pong["message"]
        assert pong["refusing"] is None
    boot = loose.replica.follower.boot
    shutil.rmtree(tmp_path / "state")  # another stream: its versions begin again
    again = start(port)
    wait_until(lambda: same_answers(again, loose, strict), WAIT_S, "they follow the next start")
    assert loose.seq == 0
    assert loose.replica.follower.boot != boot
    wait_until(lambda: strict.get("/readyz").text == "ready\n", WAIT_S, "it is ready again")


def test_a_daemon_with_other_labels_is_refused_and_predictions_go_on(
    start: Start, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    port = f"listen.control=tcp://127.0.0.1:{free_port()}"
    daemon = start(port)
    feed(daemon, 40)
    following = follow(daemon.daemon.control.endpoint)
    wait_until(lambda: following.seq == 40, WAIT_S, "it follows")
    daemon.stop()
    with caplog.at_level(logging.ERROR):
        start(port, "network.labels=5", name="other")
        wait_until(lambda: "another network" in following.get("/readyz").text, WAIT_S, "it says why")
    assert "and 5 labels, and this replica serves [4, 4] and 4" in caplog.text
    with Predictor(following.replica.endpoint) as predictor:
        assert predictor.predict(images(1)).seq == 40


class Secured:
    """A daemon with keys, and what a replica needs: `replica` may follow the daemon, `anna` may ask the replica."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("daemon", "replica", "anna", "eve"):
            keys.create(folder, name)
        folders = ("learn", "predict", "control", "follow")
        for name in folders:
            (folder / name).mkdir()
        shutil.copy(folder / "replica.key", folder / "follow")
        shutil.copy(folder / "anna.key", folder / "predict")
        self.daemon_settings = [
            f"security.server_key={folder / 'daemon.key_secret'}",
            *(f"security.{name}_clients={folder / name}" for name in folders),
        ]
        self.replica_settings = [
            f"security.server_key={folder / 'replica.key_secret'}",
            f"security.predict_clients={folder / 'predict'}",
        ]

    def keys(self, own: str, server: str) -> CurveKeys:
        return CurveKeys.load(self.folder / f"{own}.key_secret", self.folder / f"{server}.key")


def test_with_keys_a_replica_needs_the_right_to_follow_and_has_clients_of_its_own(
    tmp_path: Path, start: Start, follow: Follow
) -> None:
    secured = Secured(tmp_path)
    daemon = start(*secured.daemon_settings)
    url = daemon.daemon.control.endpoint
    for own in ("eve", "anna"):
        with pytest.raises(RequestRefused, match="does not accept this key"):
            follow(url, keys=secured.keys(own, "daemon"))
    following = follow(url, *secured.replica_settings, keys=secured.keys("replica", "daemon"))
    with Predictor(following.replica.endpoint, keys=secured.keys("anna", "replica")) as predictor:
        assert predictor.predict(images(1)).seq == 0
    with (
        Predictor(following.replica.endpoint, keys=secured.keys("eve", "replica")) as predictor,
        pytest.raises(RequestRefused, match="does not accept this key"),
    ):
        predictor.predict(images(1))


def test_a_replica_whose_key_is_removed_predicts_on_and_says_so_until_it_is_added_again(
    tmp_path: Path, start: Start, follow: Follow
) -> None:
    secured = Secured(tmp_path)
    daemon = start(*secured.daemon_settings)
    following = follow(daemon.daemon.control.endpoint, keys=secured.keys("replica", "daemon"))
    (tmp_path / "follow" / "replica.key").unlink()
    wait_until(lambda: "rejects the key" in following.get("/readyz").text, WAIT_S, "it says why it does not follow")
    assert "unauthorized" in following.replica.status()["trouble"]
    failed = following.replica.metrics.registry.get_sample_value(
        "ffstream_replica_failures_total", {"reason": "unauthorized"}
    )
    assert failed is not None
    with Predictor(following.replica.endpoint) as predictor:
        assert predictor.predict(images(1)).seq == 0
    shutil.copy(tmp_path / "replica.key", tmp_path / "follow")
    wait_until(lambda: following.get("/readyz").text == "ready\n", WAIT_S, "it follows again")


def test_it_does_not_listen_beyond_loopback_without_keys(start: Start, follow: Follow) -> None:
    with pytest.raises(ConfigError, match=r"listen\.predict = .* is reachable from other machines"):
        follow(start().daemon.control.endpoint, "listen.predict=tcp://0.0.0.0:*")


def test_a_wrong_endpoint_is_an_error_at_the_start(start: Start, follow: Follow) -> None:
    with pytest.raises(ConfigError, match="is the predict socket of the daemon"):
        follow(start().daemon.predict.endpoint)


def test_many_followers_that_ask_without_reading_leave_learning_and_replicas_alone(
    start: Start, follow: Follow
) -> None:
    daemon = start("limits.followers_max=8")
    feed(daemon, 40)
    following = follow(daemon.daemon.control.endpoint)
    hostile = [daemon.peer("control") for _ in range(6)]
    for id in range(200):
        for peer in hostile:
            peer.send("request", id=id, command="snapshot", arguments={})
    feed(daemon, 80, seed=9)
    wait_until(lambda: following.seq == 120, WAIT_S, "the replica follows")
    assert daemon.control().status()["learned"] == 120
    assert daemon.daemon.failure is None


def test_the_command_waits_for_its_daemon_serves_and_stops(start: Start) -> None:
    control, listen = f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    http = f"127.0.0.1:{free_port()}"
    arguments = ["--follow", control, "--listen", listen, "--http", http]
    process = subprocess.Popen(
        [*CLI, "serve-predictions", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: readiness(http).startswith("starting: it waits"), COMMAND_S, "it waits for the daemon")
        daemon = start(f"listen.control={control}")
        feed(daemon, 40)
        wait_until(lambda: readiness(http) == "ready\n", COMMAND_S, "it serves")
        wait_until(
            lambda: httpx.get(f"http://{http}/status").json()["snapshot"]["seq"] == 40, COMMAND_S, "it follows"
        )
        with Predictor(listen) as predictor:
            found, expected = predictor.predict(images(9)), daemon.predictor().predict(images(9))
        assert found.goodness.tobytes() == expected.goodness.tobytes()
        process.terminate()
        output, log = process.communicate(timeout=COMMAND_S)
        assert process.returncode == 0, log
        assert f"ffstream replica listens: predict {listen}  http {http}" in output.decode()
    finally:
        process.kill()
        process.communicate()


def readiness(http: str) -> str:
    try:
        return httpx.get(f"http://{http}/readyz").text
    except httpx.HTTPError:
        return ""


def test_a_replica_that_waits_for_its_daemon_can_be_stopped() -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    replica = Replica(load(settings=FREE_PORTS, environment={}), url)
    served: list[bool] = []
    starting = threading.Thread(target=lambda: served.append(replica.start()), name="replica")
    starting.start()
    wait_until(replica.follower.thread.is_alive, WAIT_S, "it waits")
    assert replica.readiness() == (False, "starting: it waits for a first snapshot")
    replica.request_stop()
    starting.join(WAIT_S)
    assert served == [False]
    replica.stop()


@pytest.mark.parametrize("setting", ["network.labels=5", "security.control_clients=keys", "listen.learn=tcp://*:1"])
def test_options_of_the_daemon_are_refused_by_the_command(setting: str) -> None:
    done = run_cli("serve-predictions", "--follow", "tcp://127.0.0.1:1", "--set", setting, timeout_s=COMMAND_S)
    assert done.returncode == 2
    assert f"--set {setting.partition('=')[0]} has no effect on a replica" in done.stderr


def test_the_environment_sets_its_options_and_those_of_a_daemon_beside_it_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("serve-predictions", "--follow", "tcp://127.0.0.1:1", "--listen", "tcp://0.0.0.0:*")
    monkeypatch.setenv("FFSTREAM_NETWORK__LABELS", "nonsense")
    monkeypatch.setenv("FFSTREAM_LIMITS__FOLLOWERS_MAX", "many")
    done = run_cli(*command, timeout_s=COMMAND_S)
    assert done.returncode == 2
    assert "FFSTREAM_LIMITS__FOLLOWERS_MAX" in done.stderr
    monkeypatch.delenv("FFSTREAM_LIMITS__FOLLOWERS_MAX")
    done = run_cli(*command, timeout_s=COMMAND_S)
    assert "listen.predict = tcp://0.0.0.0:* is reachable from other machines" in done.stderr
    monkeypatch.setenv("FFSTREAM_SECURITY__INSECURE", "true")
    done = run_cli(*command, "--http", "nonsense", timeout_s=COMMAND_S)
    assert done.returncode == 2
    assert "listen.http" in done.stderr


def test_its_status_is_json(start: Start, follow: Follow) -> None:
    daemon = start()
    feed(daemon, 40)
    following = follow(daemon.daemon.control.endpoint)
    wait_until(lambda: following.seq == 40, WAIT_S, "it follows")
    found = json.loads(following.get("/status").text)
    assert (found["state"], found["snapshot"]["seq"], found["daemon_seq"]) == ("ready", 40, 40)
    assert found["boot"] == following.replica.follower.boot
    assert found["endpoints"]["predict"] == following.replica.endpoint
    assert found["staleness_s"] >= 0
