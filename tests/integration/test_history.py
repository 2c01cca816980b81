"""What a daemon has done stays visible: after a stop, a kill and a rollback, and when its file is damaged."""

import json
import logging
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from ffstream.client import Producer
from ffstream.history.file import HISTORY, Unfit, read
from ffstream.server.http import HttpServer
from tests.harness.daemon import DaemonProcess, Daemons
from tests.in_process import SMALL, WAIT_S, Running, Start, feed, images, labels
from tests.support import wait_until

AT_ONCE = 0.0


@pytest.fixture
def stored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffstream.learning.recorder._STORE_EVERY_S", AT_ONCE)


def url_of(daemon: Running | DaemonProcess) -> str:
    return daemon.http if isinstance(daemon, DaemonProcess) else f"http://{daemon.daemon.http.address}"


def get(daemon: Running | DaemonProcess, path: str, **headers: str) -> Any:
    answer = httpx.get(url_of(daemon) + path, headers=headers, trust_env=False, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def history(daemon: Running | DaemonProcess, span: str = "all") -> dict[str, Any]:
    found = get(daemon, f"/api/history?span={span}")
    assert isinstance(found, dict)
    return found


def marks(daemon: Running | DaemonProcess) -> list[tuple[str, int]]:
    return [(mark["kind"], mark["seq"]) for mark in history(daemon)["marks"]]


def counted(daemon: Running | DaemonProcess, column: str = "rate") -> float:
    columns = history(daemon)["columns"]
    return float(sum(rate * seconds for rate, seconds in zip(columns[column], columns["seconds"], strict=True)))


def await_learned(daemon: Running | DaemonProcess, samples: int) -> None:
    wait_until(lambda: round(counted(daemon)) >= samples, WAIT_S, f"{samples} samples are in the history")


def test_a_history_shows_what_was_learned_and_nothing_false_before(daemon: Running) -> None:
    wait_until(lambda: history(daemon)["columns"]["time"], WAIT_S, "the first second is recorded")
    before = history(daemon)
    assert set(before["columns"]["error"]) == {None}
    assert set(before["columns"]["window_error"]) == {None}
    for layer in before["layers"]:
        assert all(set(values) == {None} for values in layer.values()), "not a false 0"
    feed(daemon, 80)
    await_learned(daemon, 80)
    after = history(daemon)
    columns = after["columns"]
    assert columns["accepted"][-1] == columns["learned"][-1] == 80
    assert columns["waiting"][-1] == 0
    errors = [error for error in columns["error"] if error is not None]
    assert errors
    assert all(0 <= error <= 1 for error in errors)
    assert len(after["layers"]) == 2
    for layer in after["layers"]:
        assert any(value is not None for value in layer["weight_norm"])
    assert {len(column) for column in columns.values()} == {len(columns["time"])}


@pytest.mark.parametrize("span", ["10m", "3h", "1d", "30d", "all"])
def test_every_span_has_the_same_stream(daemon: Running, span: str) -> None:
    feed(daemon, 40)
    await_learned(daemon, 40)
    found = history(daemon, span)
    assert found["span"] == span
    total = sum(rate * s for rate, s in zip(found["columns"]["rate"], found["columns"]["seconds"], strict=True))
    assert round(total) == 40


def test_an_unknown_span_is_an_error_that_names_the_spans(daemon: Running) -> None:
    answer = httpx.get(f"{url_of(daemon)}/api/history?span=2y", trust_env=False, timeout=WAIT_S)
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_span"
    assert "10m, 3h, 1d, 30d, all" in answer.json()["hint"]


def test_the_history_continues_after_a_stop(start: Start) -> None:
    running = start()
    feed(running, 40)
    await_learned(running, 40)
    result = running.control().request("checkpoint")
    wait_until(lambda: ("checkpoint", 40) in marks(running), WAIT_S, "the checkpoint is marked")
    before = history(running)
    running.restart()
    wait_until(lambda: marks(running)[-1:] == [("start", result["seq"])], WAIT_S, "the history is loaded")
    after = history(running)
    assert after["columns"]["time"][: len(before["columns"]["time"])] == before["columns"]["time"]
    assert round(counted(running)) == 40
    assert after["marks"][: len(before["marks"])] == before["marks"]
    assert "after a stop" in after["marks"][-1]["text"]


def last_start(daemon: Running | DaemonProcess) -> str:
    """What the mark of the last start says. Others may follow it."""
    return [str(mark["text"]) for mark in history(daemon)["marks"] if mark["kind"] == "start"][-1]


def test_the_history_survives_a_kill(tmp_path: Path) -> None:
    """What was stored, which is all but the last seconds."""
    with Daemons(tmp_path) as daemons:
        daemon = daemons.start(*SMALL)
        with Producer(daemon.learn, connect_timeout_s=WAIT_S) as producer:
            producer.send(images(40).reshape(40, 4, 4), labels(40))
            producer.flush(WAIT_S)

            def is_stored() -> bool:
                try:
                    learned = read(daemon.state / HISTORY).document("all")["columns"]["learned"]
                except (sqlite3.OperationalError, Unfit):  # there is no file yet, or no table in it
                    return False
                return bool(learned) and learned[-1] == 40

            wait_until(is_stored, WAIT_S, "it is stored, and another process can read it")
            daemon.kill()
        again = daemons.start(*SMALL)
        wait_until(lambda: marks(again), WAIT_S, "the history is loaded")
        assert round(counted(again)) == 40
        assert [kind for kind, _ in marks(again)].count("start") == 2
        assert "after a kill or a crash" in last_start(again)
        again.terminate()
        third = daemons.start(*SMALL)
        wait_until(lambda: marks(third), WAIT_S, "the history is loaded")
        assert "after a stop" in last_start(third), "it was stopped this time"


def test_what_a_person_does_is_marked(daemon: Running) -> None:
    feed(daemon, 40)
    control = daemon.control()
    control.request("checkpoint")
    wait_until(lambda: ("checkpoint", 40) in marks(daemon), WAIT_S, "the checkpoint is marked")
    feed(daemon, 40, seed=1)
    control.request("pause")
    wait_until(lambda: ("pause", 80) in marks(daemon), WAIT_S, "the pause is marked")
    control.request("rollback", {"to": 40})
    wait_until(lambda: ("rollback", 40) in marks(daemon), WAIT_S, "the rollback is marked")
    assert "samples 41 to 80 are relearned" in history(daemon)["marks"][-1]["text"]

    def newest() -> tuple[float, float]:
        columns = history(daemon)["columns"]
        return columns["learned"][-1], columns["waiting"][-1]

    wait_until(lambda: newest() == (40, 40), WAIT_S, "a second after the rollback is recorded")
    control.request("resume")
    wait_until(lambda: "resume" in dict(marks(daemon)), WAIT_S, "resuming is marked")
    assert 40 <= dict(marks(daemon))["resume"] <= 80, "learning may go on before it is marked"
    wait_until(lambda: round(counted(daemon)) == 120, WAIT_S, "the samples are learned again, and counted again")
    assert [kind for kind, _ in marks(daemon)].count("checkpoint") == 1


def test_a_damaged_history_is_replaced_and_the_daemon_starts(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = start()
    feed(running, 40)
    running.stop()
    path = running.state / HISTORY
    path.write_bytes(b"\xa5" * 20_000)
    caplog.set_level(logging.WARNING)
    again = start()
    wait_until(lambda: marks(again), WAIT_S, "the history is loaded")
    assert marks(again) == [("start", 40)]
    assert "history begins again" in caplog.text
    assert path.with_name(f"{HISTORY}.old").read_bytes() == b"\xa5" * 20_000
    feed(again, 8, seed=1)
    await_learned(again, 8)


@pytest.mark.usefixtures("stored_at_once")
def test_a_history_that_is_deleted_or_locked_disturbs_nothing(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffstream.history.file._BUSY_MS", 10)
    monkeypatch.setattr("ffstream.learning.recorder._RETRY_S", AT_ONCE)
    running = start()
    feed(running, 40)
    await_learned(running, 40)
    path = running.state / HISTORY
    wait_until(path.exists, WAIT_S, "it is stored")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    caplog.set_level(logging.INFO)
    wait_until(lambda: "history is not stored, and continues in memory" in caplog.text, WAIT_S, "a lock is noticed")
    feed(running, 8, seed=1)
    await_learned(running, 48)
    other.close()
    wait_until(lambda: "history is stored again" in caplog.text, WAIT_S, "it is stored again")
    assert caplog.text.count("history is not stored") == 1, "one line for one trouble"
    for each in running.state.glob(f"{HISTORY}*"):
        each.unlink()
    feed(running, 8, seed=2)
    await_learned(running, 56)


def test_a_history_that_cannot_be_read_at_the_start_is_continued_later(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffstream.history.file._BUSY_MS", 10)
    monkeypatch.setattr("ffstream.learning.recorder._RETRY_S", AT_ONCE)
    running = start()
    feed(running, 40)
    running.stop()
    other = sqlite3.connect(running.state / HISTORY, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    again = start()
    wait_until(lambda: "history is not stored" in caplog.text, WAIT_S, "the lock is noticed")
    feed(again, 8, seed=1)
    await_learned(again, 8)
    assert round(counted(again)) == 8
    other.close()
    await_learned(again, 48)
    assert [kind for kind, _ in marks(again)].count("start") == 2
    assert round(counted(again)) == 48


def test_a_second_that_cannot_be_recorded_ends_nothing(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    with monkeypatch.context() as broken:
        broken.setattr(running.daemon.recorder, "_totals", lambda: 1 / 0)
        wait_until(lambda: "division by zero" in caplog.text, WAIT_S, "a second has failed")
        feed(running, 40)
    await_learned(running, 40)
    assert running.daemon.failure is None


def test_the_status_has_what_the_page_shows(daemon: Running) -> None:
    before = get(daemon, "/status")
    assert before["window"] == {"error": None, "samples": 0, "size": 10_000}
    assert before["checkpoint"] is None
    assert before["lag_s"] == 0
    assert [layer["index"] for layer in before["layers"]] == [0, 1]
    unknown = {name for layer in before["layers"] for name, value in layer.items() if value is None}
    assert {"goodness_positive", "goodness_negative", "margin", "loss", "separation", "step_s"} <= unknown
    feed(daemon, 80)
    control = daemon.control()
    control.request("checkpoint")
    wait_until(lambda: get(daemon, "/status")["rates"]["learned_per_s"] is not None, WAIT_S, "rates are known")
    wait_until(lambda: get(daemon, "/status")["resources"] is not None, WAIT_S, "resources are measured")
    status = get(daemon, "/status")
    assert status.keys() == control.status().keys()
    assert status["preset"] is None
    assert status["teach"] is False
    assert status["refusing_hint"] is None
    assert status["window"]["samples"] == status["prequential_window_samples"] == 80
    assert status["window"]["error"] == pytest.approx(status["prequential_error"])
    assert status["checkpoint"]["seq"] == status["checkpoint_seq"] == 80
    assert 0 <= status["checkpoint"]["age_s"] < WAIT_S
    assert 0 < status["resources"]["memory_bytes"] < status["resources"]["memory_max_bytes"]
    assert status["resources"]["disk_free_bytes"] > 0
    for layer in status["layers"]:
        assert (layer["connection"], layer["shape"], layer["compares"]) == ("dense", [32], "groups")
        assert layer["last_seq"] == 80
        known = (
            *("goodness_positive", "goodness_negative", "margin", "loss", "separation", "weight_norm", "step_s"),
            *("queue_depth", "restarts"),
        )
        assert all(layer[name] is not None for name in known)
        assert layer["weight_norm"] > 0
        assert layer["step_s"] > 0
    running = daemon.daemon
    running.admission.draining = True
    assert get(daemon, "/status")["refusing_hint"] == "send again after its restart"


def test_a_lag_is_unknown_while_nothing_is_learned(daemon: Running) -> None:
    daemon.control().request("pause")
    producer = daemon.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    wait_until(lambda: get(daemon, "/status")["rates"]["learned_per_s"] == 0, WAIT_S, "the rate is known")
    assert get(daemon, "/status")["lag_s"] is None


def test_the_live_feed_ends_when_the_daemon_stops(start: Start) -> None:
    running = start()
    ended: list[str] = []

    def read() -> None:
        with httpx.stream("GET", f"{url_of(running)}/api/live", trust_env=False, timeout=WAIT_S) as response:
            for line in response.iter_lines():
                ended.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: any(line.startswith("data: ") for line in ended), WAIT_S, "an event")
    running.stop()
    reader.join(WAIT_S)
    assert not reader.is_alive()
    states = [json.loads(line.removeprefix("data: "))["state"] for line in ended if line.startswith("data: ")]
    assert states[0] == "ready"


@pytest.fixture
def guarded(tmp_path: Path, start: Start) -> Running:
    """A daemon with a token and another name."""
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("t" * 32)
    return start(f"security.http_token={token}", 'http.hosts=["learner"]')


def test_all_data_is_behind_the_token_and_the_own_names(guarded: Running) -> None:
    right = {"Authorization": "Bearer " + "t" * 32}
    url = url_of(guarded)
    with httpx.Client(base_url=url, trust_env=False, timeout=WAIT_S) as client:
        for path in ("/status", "/metrics", "/api/live", "/api/history"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer " + "u" * 32}).status_code == 401
            assert client.get(path, headers={**right, "Host": "evil.example.org"}).status_code == 421
            assert client.get(path, headers={**right, "Origin": "http://evil.example.org"}).status_code == 403
            own = {**right, "Host": "learner:8757", "Origin": "http://learner:8757"}
            with client.stream("GET", path, headers=own) as answer:
                assert answer.status_code == 200
        assert client.get("/api/history").json()["code"] == "unauthorized"
        assert client.get("/").status_code == 200
    for reason, count in (("token", 9), ("host", 4), ("origin", 4)):
        assert guarded.metric("connections_refused_total", socket="http", reason=reason) == count


def test_figures_in_the_feed_and_the_status_are_the_same_document(daemon: Running) -> None:
    feed(daemon, 40)
    with httpx.stream("GET", f"{url_of(daemon)}/api/live", trust_env=False, timeout=WAIT_S) as response:
        data = next(line for line in response.iter_lines() if line.startswith("data: "))
    event, status = json.loads(data.removeprefix("data: ")), get(daemon, "/status")
    assert event.keys() == status.keys()
    still = ("accepted", "learned", "prequential_error", "window", "labels", "endpoints", "version")
    assert {name: event[name] for name in still} == {name: status[name] for name in still}
    assert np.isfinite(event["time"])


def test_http_servers_have_room_for_readers_beside_requests(daemon: Running) -> None:
    server: HttpServer = daemon.daemon.http
    with httpx.Client(base_url=url_of(daemon), trust_env=False, timeout=WAIT_S) as client:
        streams = [client.stream("GET", "/api/live") for _ in range(64)]
        opened = [stream.__enter__() for stream in streams]
        assert {answer.status_code for answer in opened} == {200}
        assert client.get("/api/live").status_code == 503
        assert client.get("/metrics").status_code == 200
        for stream in streams:
            stream.__exit__(None, None, None)
    assert server.thread.is_alive()


def test_a_clock_that_is_wrong_for_a_while_costs_the_history_nothing(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    feed(running, 40)
    await_learned(running, 40)
    running.stop()
    behind_s = [86_400.0 * 365]
    clock = SimpleNamespace(time=lambda: time.time() - behind_s[0], monotonic=time.monotonic)
    monkeypatch.setattr("ffstream.learning.recorder.time", clock)
    again = start()
    wait_until(lambda: "clock set back" in caplog.text, WAIT_S, "the clock is noticed")
    feed(again, 8, seed=1)
    assert round(counted(again)) == 40
    behind_s[0] = 0.0
    await_learned(again, 48)
    assert round(counted(again)) == 48
    times = [mark["time"] for mark in history(again)["marks"] if mark["kind"] == "start"]
    assert len(times) == 2
    assert times[1] - times[0] < 86_400, "no mark has the wrong time"


def test_a_history_that_begins_later_than_the_stream_says_so(start: Start) -> None:
    running = start()
    wait_until(lambda: marks(running), WAIT_S, "the history is begun")
    assert "first start; 0 samples are learned" in history(running)["marks"][0]["text"]
    feed(running, 40)
    running.stop()
    for each in running.state.glob(f"{HISTORY}*"):
        each.unlink()
    again = start()
    wait_until(lambda: marks(again), WAIT_S, "the history is begun")
    assert "start without a history; 40 samples are learned" in history(again)["marks"][0]["text"]
