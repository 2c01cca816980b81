"""Metrics, the page, health and readiness, and threads that die or are stuck."""

import re
import socket
import threading
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from ffstream import __version__
from ffstream.daemon.daemon import Daemon
from ffstream.errors import (
    DeadlineExceeded,
    FFStreamError,
    StageFailed,
    StartBlocked,
)
from ffstream.metrics import Gauge
from ffstream.pipeline.threads import ThreadStages
from ffstream.server.http import HttpServer
from tests.in_process import INPUTS, WAIT_S, Running, Start, config, feed, images
from tests.support import Watch, hold_at, wait_until


def get(running: Running, path: str) -> httpx.Response:
    return httpx.get(f"http://{running.daemon.http.address}{path}", trust_env=False, timeout=WAIT_S)


def test_every_metric_has_its_type_a_value_and_base_units(daemon: Running) -> None:
    feed(daemon, 32)
    daemon.peer().send_frames(b"nonsense")
    daemon.control().request("checkpoint")
    feed(daemon, 8, seed=32)
    wait_until(lambda: daemon.metric("messages_rejected_total", reason="bad_header"), WAIT_S, "it is counted")
    families = {family.name: family for family in text_string_to_metric_families(get(daemon, "/metrics").text)}
    defined = [each for each in vars(daemon.daemon.metrics).values() if isinstance(each, MetricWrapperBase | Gauge)]
    assert len(defined) > 30
    metrics = daemon.daemon.metrics
    replica_gauges = [getattr(metrics, name) for name in vars(metrics) if name.startswith("replica_")]
    elsewhere = {  # set by a replica, `ffstream serve`, a drift detector, another recipe, or after more samples
        metrics.output_dropped,
        *replica_gauges,
        metrics.stage_replacements,  # those of a cluster
        metrics.stage_place,
        metrics.hop_bytes,
        metrics.hop_seconds,
        metrics.drift_seq,
        metrics.running_goodness,
        metrics.threshold,
        metrics.layer_decoder_error,
        metrics.layer_dead_units,
        metrics.layer_contradictions,
    }
    for metric in defined:
        (described,) = metric.describe()
        family = families[described.name]
        assert family.type == described.type
        assert family.documentation == described.documentation
        assert family.documentation.endswith(".")
        if metric not in elsewhere:
            assert family.samples, f"{family.name} has no value"
        assert family.name.startswith("ffstream_")
        named = {each.name.removeprefix(family.name) for each in family.samples}
        assert named <= {"counter": {"_total"}, "histogram": {"_bucket", "_sum", "_count"}}.get(family.type, {""})
        assert not family.name.endswith("_total"), "only counters"
        assert not re.search(r"_(ms|us|milliseconds|kb|mb|percent|minutes|count)$", family.name)
    text = get(daemon, "/metrics").text
    assert 'ffstream_build_info{python="' in text
    assert f'version="{__version__}"' in text
    assert "ffstream_applied_seq 40.0" in text
    assert "ffstream_samples_learned_total 40.0" in text
    assert 'ffstream_phase{phase="interleaved"} 1.0' in text


def test_the_page_reads_only_keys_of_the_status(daemon: Running) -> None:
    feed(daemon, 8)
    status = get(daemon, "/status").json()
    assert status["learned"] == 8
    page = files("ffstream.server") / "page"
    text = "".join(file.read_text(encoding="utf-8") for file in page.iterdir() if file.name.endswith(".js"))
    assert set(re.findall(r"\b(?:s|status)\.(\w+)", text)) <= set(status)
    assert set(re.findall(r"\blayer => \w+\(layer\.(\w+)", text)) <= set(status["layers"][0])


def test_health_and_both_kinds_of_readiness_follow_pause_and_drain(daemon: Running, watched: Watch) -> None:
    def probe(path: str) -> tuple[int, str]:
        answer = get(daemon, path)
        return answer.status_code, answer.text.strip()

    assert probe("/readyz") == probe("/readyz/learn") == (200, "ready")
    daemon.control().request("pause")
    assert probe("/readyz") == probe("/readyz/learn") == (200, "ready, learning is paused")
    daemon.control().request("resume")
    # While a stage is held, an acked sample is not learned, so the drain does not end.
    _, release = hold_at("learned", watched, WAIT_S)
    peer = daemon.peer()
    peer.samples(1)
    peer.acked(1)
    daemon.peer("control").send("request", id=1, command="drain", arguments={"timeout_s": WAIT_S})
    wait_until(lambda: probe("/readyz/learn")[0] == 503, WAIT_S, "it rejects samples")
    assert probe("/readyz/learn")[1].startswith("draining: ")
    assert probe("/readyz") == (200, "ready, the daemon is draining: no more samples are accepted")
    assert len(daemon.predictor().predict(images(3)).labels) == 3
    assert probe("/healthz") == (200, "ok")
    release.set()


def test_a_daemon_with_a_thread_that_dies_during_its_start_is_never_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = StageFailed("ff-stage-0 died", hint="see the log")
    start = HttpServer.start

    daemon = Daemon(config(tmp_path / "state"))

    def start_late(server: HttpServer) -> None:
        start(server)
        daemon._fail(dead)

    monkeypatch.setattr(HttpServer, "start", start_late)
    with pytest.raises(StageFailed, match="ff-stage-0 died"):
        daemon.start()
    assert daemon.state == "failed"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ff-")]


def test_a_daemon_with_a_dead_thread_is_unhealthy_and_stops_with_its_error(daemon: Running) -> None:
    feed(daemon, 8)
    peer = daemon.peer()
    peer.samples(1)
    peer.acked(1)

    def fail(*arguments: object) -> None:
        raise RuntimeError("an unexpected error")

    stages = daemon.daemon.learner.run.pipeline.stages
    assert isinstance(stages, ThreadStages)
    stages.stages[0].layers[0].update = fail  # type: ignore[method-assign]
    peer.samples(2)
    wait_until(lambda: get(daemon, "/healthz").status_code == 503, WAIT_S, "it is unhealthy")
    for path in ("/readyz", "/readyz/learn"):
        assert get(daemon, path).status_code == 503
        assert get(daemon, path).text.startswith("failed: ")
    daemon.daemon.wait()
    with pytest.raises(FFStreamError, match="an unexpected error"):
        daemon.stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ff-stage")]


def test_a_stuck_http_thread_stops_the_daemon_and_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start("pipeline.stall_timeout_s=6")  # long enough that no other thread seems stuck on a slow machine
    release = threading.Event()

    def rejection_reason() -> None:
        if threading.current_thread().name == running.daemon.http.name:  # ff-learn calls it, too
            release.wait(WAIT_S)

    monkeypatch.setattr(running.daemon.admission, "rejection_reason", rejection_reason)
    host, _, port = running.daemon.http.address.rpartition(":")
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: here\r\n\r\n")
        running.daemon.wait()
        assert running.daemon.state == "failed"
        release.set()
    with pytest.raises(StageFailed, match="ff-http made no progress"):
        running.stop()


def test_a_stuck_socket_thread_stops_the_daemon_and_is_named(start: Start) -> None:
    """Otherwise a daemon that answers no query would seem healthy."""
    running = start("pipeline.stall_timeout_s=6")  # long enough that no other thread seems stuck on a slow machine
    release = threading.Event()

    def never_return(batch: object) -> None:
        release.wait(WAIT_S)

    running.daemon.predict.handle = never_return  # type: ignore[method-assign]
    running.peer("predict").send("predict", bytes(INPUTS), id=1, count=1, dtype="uint8", shape=[INPUTS])
    running.daemon.wait()
    assert running.daemon.state == "failed"
    release.set()
    with pytest.raises(StageFailed, match="ff-predict made no progress"):
        running.stop()


def test_a_daemon_that_does_not_stop_in_time_keeps_the_lock_on_its_state_folder(start: Start) -> None:
    """Its threads may still write, so no other daemon may use the folder before the process has ended."""
    running = start()
    steps = running.daemon._shutdown._steps
    steps[:] = [step._replace(end=lambda timeout_s: False) if step.name == "checkpoint" else step for step in steps]
    end = running.daemon.learner.checkpoints.writer.stop
    with pytest.raises(DeadlineExceeded, match="checkpoint"):
        running.stop()
    assert end(WAIT_S)
    with pytest.raises(StartBlocked, match="in use by another daemon"):
        Daemon(config(running.state)).start()
    running.daemon._lock.release()
