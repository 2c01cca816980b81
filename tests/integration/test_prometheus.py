"""A real Prometheus scrapes a real daemon: what it stores, which alerts fire, what the dashboard's queries find."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from ffstream.config import load
from ffstream.daemon.replica import Replica
from tests.harness.daemon import START_S
from tests.harness.daemon_directory import FREE_PORTS, free_port
from tests.in_process import WAIT_S, Running, feed, images, labels
from tests.support import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "ffstream.yml"
DASHBOARD = DEPLOY / "grafana" / "provisioning" / "dashboards" / "ffstream.json"
UNKNOWN_AT_FIRST = (
    "ffstream_((prequential|live)_error_ratio|checkpoint_(last_seq|timestamp_seconds|bytes)|layer_(loss|margin))"
)
# They have values while stages run in a cluster.
OF_CLUSTERS = re.compile(r"ffstream_(stage_place_info|stage_replacements_total|hop_\w+)")
# With a threshold, so that every panel has something to show.
ROUNDS = 20
SETTINGS = (
    "network.preset=hinton",
    "network.widths=[32,32]",
    "learning.publish_every=1",
    "limits.backlog_max_samples=64",
)

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed; tools/setup --system installs them",
)


class Prometheus:
    """Scrapes a daemon and its replicas every second, and evaluates the alerts of deploy/ without their `for`."""

    def __init__(self, folder: Path, target: str, replicas: Sequence[str] = ()) -> None:
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule.pop("for", None)
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = ["rules.yml"]
        (job,) = configuration["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        if replicas:
            of_replicas = {"job_name": "ffstream-replica", "static_configs": [{"targets": list(replicas)}]}
            configuration["scrape_configs"].append(of_replicas)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)
        self._log.close()

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API; empty while it does not answer yet."""
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False, timeout=WAIT_S)
        except httpx.ConnectError:
            return {}
        if answer.status_code == 503:  # it starts
            return {}
        body = answer.json()
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that a query finds now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression).get("result", [])
        return found

    def value(self, expression: str) -> float | None:
        """The value of the only series that a query finds; None if it finds none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def last(self, metric: str) -> float | None:
        """The value that it has scraped last, also if a scrape has failed since; None if there is none."""
        return self.value(f"last_over_time({metric}[1h])")

    def stored(self, metric: str) -> set[float]:
        """Every value that it has ever scraped."""
        return {float(value) for each in self.query(f"{metric}[1h]") for _, value in each["values"]}

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        alerts = self.ask("alerts").get("alerts", [])
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Running, Prometheus]]:
    """A daemon before its first sample, and the Prometheus that watches it."""
    target = f"127.0.0.1:{free_port()}"
    with (
        Running(tmp_path / "state", f"listen.http={target}", *SETTINGS) as running,
        Prometheus(tmp_path, target) as prometheus,
    ):
        yield running, prometheus


class ReplicaThread:
    """A replica that starts on a thread of its own, and serves once there is a daemon to follow."""

    def __init__(self, url: str, http: str) -> None:
        self._replica = Replica(load(settings=[*FREE_PORTS, f"listen.http={http}"], environment={}), url)
        self._thread = threading.Thread(target=self._run, name="replica")
        self._thread.start()

    def _run(self) -> None:
        if self._replica.start():
            self._replica.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._replica.request_stop()
        self._thread.join(WAIT_S)
        self._replica.stop()


@pytest.fixture
def watched_with_replicas(tmp_path: Path) -> Iterator[tuple[Running, Prometheus]]:
    """As `watched`, with a replica that follows, and one whose daemon does not exist."""
    target, good, lost = (f"127.0.0.1:{free_port()}" for _ in range(3))
    with (
        Running(tmp_path / "state", f"listen.http={target}", *SETTINGS) as running,
        ReplicaThread(running.daemon.control.endpoint, good),
        ReplicaThread(f"tcp://127.0.0.1:{free_port()}", lost),
        Prometheus(tmp_path, target, (good, lost)) as prometheus,
    ):
        yield running, prometheus


def soon(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, 3 * WAIT_S, what)


def test_what_is_unknown_has_no_value_and_never_a_false_zero(watched: tuple[Running, Prometheus]) -> None:
    running, prometheus = watched
    soon(lambda: prometheus.last("ffstream_disk_free_bytes") is not None, "it is scraped, and has measured its disk")
    assert prometheus.query(f'{{__name__=~"{UNKNOWN_AT_FIRST}"}}[1h]') == []
    assert prometheus.last("ffstream_samples_learned_total") == 0, "counters begin at 0"
    feed(running, 80)
    running.control().request("checkpoint")
    soon(lambda: prometheus.last("ffstream_checkpoint_last_seq") == 80, "the checkpoint is scraped")
    error = prometheus.last("ffstream_prequential_error_ratio")
    written = prometheus.last("ffstream_checkpoint_timestamp_seconds")
    assert error is not None
    running.control().request("pause")
    running.restart()
    soon(lambda: prometheus.last("ffstream_samples_learned_total") == 0, "the new daemon is scraped")
    assert prometheus.last("ffstream_prequential_error_ratio") == error
    assert prometheus.stored("ffstream_checkpoint_last_seq") == {80.0}
    assert prometheus.stored("ffstream_learning_paused") == {0.0, 1.0}
    assert 0 not in prometheus.stored("ffstream_prequential_error_ratio")
    times = prometheus.stored("ffstream_checkpoint_timestamp_seconds")
    assert written in times
    assert max(times) - min(times) < WAIT_S, "the time of the same checkpoint, as its writer and its manifest say it"
    # The pause began before the restart, so the counter began with the new daemon and rises.
    soon(lambda: (prometheus.value("increase(ffstream_learning_paused_seconds_total[1h])") or 0) > 0, "it counts")


def test_alerts_fire_and_end(watched: tuple[Running, Prometheus]) -> None:
    running, prometheus = watched
    soon(lambda: prometheus.value("ffstream_learning_paused") == 0, "the first scrape")
    feed(running, 8)
    soon(lambda: prometheus.firing() == set(), "nothing is wrong")
    control = running.control()
    control.request("pause")
    producer = running.producer()
    for _ in range(9):
        producer.send(images(8), labels(8))
    soon(
        lambda: {"FfstreamPaused", "FfstreamRefusesSamples"} <= prometheus.firing(), "paused, and its backlog is full"
    )
    control.request("resume")
    producer.flush(WAIT_S)
    soon(lambda: not {"FfstreamPaused", "FfstreamRefusesSamples"} & prometheus.firing(), "both end")
    running.stop()
    soon(lambda: "FfstreamDown" in prometheus.firing(), "it does not answer")
    running.restart()
    soon(lambda: "FfstreamDown" not in prometheus.firing(), "it answers")


def test_alerts_about_replicas_fire_and_end(tmp_path: Path) -> None:
    target, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    control = f"tcp://127.0.0.1:{free_port()}"
    with (
        Running(tmp_path / "state", f"listen.http={target}", f"listen.control={control}", *SETTINGS) as running,
        ReplicaThread(control, http) as replica,
        Prometheus(tmp_path, target, (http,)) as prometheus,
    ):
        feed(running, 8)
        soon(lambda: prometheus.value("ffstream_replica_connected == 1") is not None, "the replica follows")
        soon(lambda: prometheus.firing() == set(), "nothing is wrong, and no metric of a replica looks like a fault")
        running.stop()
        soon(lambda: "FfstreamReplicaNotFollowing" in prometheus.firing(), "the daemon is gone")
        assert not prometheus.firing() & {"FfstreamReplicaFails", "FfstreamReplicaDown"}
        running.restart()
        soon(lambda: prometheus.firing() == set(), "it follows the restarted daemon")
        replica.stop()
        soon(lambda: "FfstreamReplicaDown" in prometheus.firing(), "the replica does not answer")


def dashboard_queries() -> set[tuple[str, str]]:
    """The title of a panel and a query of it, for all instances."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {(panel["title"], of_all(target["expr"])) for panel in panels for target in panel.get("targets", [])}


def of_all(expression: str) -> str:
    return str(expression).replace("$instance", ".+")


def test_every_query_of_the_dashboard_finds_something(watched_with_replicas: tuple[Running, Prometheus]) -> None:
    running, prometheus = watched_with_replicas
    dashboard = json.loads(DASHBOARD.read_text())
    (variable,) = dashboard["templating"]["list"]
    values = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert values is not None
    assert variable["name"] == "instance"
    waiting = {each for each in dashboard_queries() if not OF_CLUSTERS.search(each[1])}
    assert len(waiting) > 40
    http = f"http://{running.daemon.http.address}"
    control, predictor, peer = running.control(), running.predictor(), running.peer()
    feed(running, 320)  # some figures of layers are taken at every fourth barrier
    control.request("pause")
    producer = running.producer()
    for _ in range(9):
        producer.send(images(8), labels(8))
    reasons = "ffstream_refusing_samples == 1"
    soon(lambda: prometheus.query(reasons), "it rejects samples")
    waiting = {each for each in waiting if not prometheus.query(each[1])}
    control.request("resume")
    producer.flush(WAIT_S)

    for _ in range(ROUNDS):
        # A little of everything, so that each counter rises between two scrapes.
        control.request("checkpoint")
        producer.send(images(8), labels(8))
        producer.flush(WAIT_S)
        control.wait_idle(WAIT_S)
        predictor.predict(images(1))
        peer.send_frames(b"nonsense")
        assert httpx.get(f"{http}/metrics", headers={"Host": "elsewhere"}, trust_env=False).status_code == 421
        scrapes = prometheus.value("count_over_time(up[1h])") or 0
        soon(lambda: (prometheus.value("count_over_time(up[1h])") or 0) > scrapes, "another scrape")  # noqa: B023
        waiting = {each for each in waiting if not prometheus.query(each[1])}
        if not waiting:
            break
    assert not waiting, "these find nothing"
    assert prometheus.query(f"count by ({values[2]}) ({values[1]})")
    for annotation in dashboard["annotations"]["list"]:
        prometheus.query(of_all(annotation["expr"]))


def test_every_query_about_a_cluster_finds_something_with_that_engine(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    target = f"127.0.0.1:{free_port()}"
    with (
        Running(tmp_path / "state", f"listen.http={target}", *SETTINGS, "pipeline.engine=ray") as running,
        Prometheus(tmp_path, target) as prometheus,
    ):
        waiting = {each for each in dashboard_queries() if OF_CLUSTERS.search(each[1])}
        assert len(waiting) == 5
        producer, control = running.producer(), running.control()

        def found() -> bool:
            # Something for each hop between two scrapes.
            producer.send(images(8), labels(8))
            producer.flush(WAIT_S)
            waiting.difference_update({each for each in waiting if prometheus.query(each[1])})
            return not waiting

        wait_until(lambda: control.status()["interrupted"] is None, START_S, "stages are placed")
        soon(found, f"these find something: {waiting}")
        places = prometheus.query("ffstream_stage_place_info")
        stages = running.control().status()["stages"]
        assert [(each["metric"]["node"], each["metric"]["device"]) for each in places] == [
            (stage["node"], stage["device"]) for stage in stages
        ]
        hops = prometheus.query("ffstream_hop_seconds_total")
        assert {(each["metric"]["stage"], each["metric"]["part"]) for each in hops} == {
            (stage, part) for stage in ("0", "1") for part in ("send", "wait", "receive")
        }


def test_promtool_finds_no_fault_in_a_scrape(watched: tuple[Running, Prometheus]) -> None:
    running, _ = watched
    feed(running, 40)
    running.peer().send_frames(b"nonsense")
    running.control().request("checkpoint")
    scrape = httpx.get(f"http://{running.daemon.http.address}/metrics", trust_env=False, timeout=WAIT_S).text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
