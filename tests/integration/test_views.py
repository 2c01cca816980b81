"""What the page asks a daemon about: the answers are those of its network, and teaching is learning."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ffstream.errors import DiskFull
from ffstream.ff.presets import PRESETS
from ffstream.server import api, requests
from tests.harness.crashing.presets import small_stream
from tests.in_process import ANSWER_S, ANY_NETWORK, INPUTS, WAIT_S, Running, Start, feed, images
from tests.support import Watch, hold_at, wait_until

OWN = {"X-FFStream": "1"}
Open = Callable[[Running], httpx.Client]


@pytest.fixture
def browser() -> Iterator[Open]:
    """A client that sends what the page of a daemon sends."""
    opened: list[httpx.Client] = []

    def browser(running: Running) -> httpx.Client:
        url = f"http://{running.daemon.http.address}"
        opened.append(httpx.Client(base_url=url, headers=OWN, trust_env=False, timeout=ANSWER_S))
        return opened[-1]

    yield browser
    for each in opened:
        each.close()


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The message and the hint of an error."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == code
    assert body["message"]
    assert body["hint"]
    return f"{body['message']} {body['hint']}"


def lesson(label: int = 3, seed: int = 5) -> dict[str, Any]:
    return {"image": images(1, seed)[0].tolist(), "label": label}


# --- looking -----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_predict_socket_to_the_last_bit(daemon: Running, browser: Open) -> None:
    feed(daemon, 64)
    page, predictor = browser(daemon), daemon.predictor()
    for image in images(20, 9):
        want = predictor.predict(image)
        got = ok(page.post("/api/scores", json={"image": image.tolist()}))
        assert np.float32(got["scores"]).tobytes() == want.goodness[0].tobytes()
        assert (got["label"], got["version"], got["seq"]) == (int(want.labels[0]), want.version, want.seq)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_shows_everything(preset: str, tmp_path: Path, browser: Open) -> None:
    settings = (*small_stream(preset, 0).settings, "network.batch_size=8", "network.labels=4", "network.replay=8")
    with Running(tmp_path / "state", *settings, base=ANY_NETWORK) as running:
        _shows_everything(running, browser(running))


def _shows_everything(running: Running, page: httpx.Client) -> None:
    network = running.daemon.config.network
    layers, inputs = len(network.layers), network.inputs
    given = np.random.default_rng(1).integers(0, 256, (64, inputs), np.uint8)
    producer = running.producer()
    producer.send(given, np.arange(64) % 4)
    producer.flush(WAIT_S)
    running.control().wait_idle(WAIT_S)
    mistakes: dict[str, Any] = {}

    def evaluated() -> bool:
        mistakes.update(ok(page.get("/api/mistakes")))
        return bool(mistakes["window_samples"] == 64)

    wait_until(evaluated, WAIT_S, "everything is evaluated")
    assert sum(map(sum, mistakes["confusion"])) == 64
    assert all(1 <= each["seq"] <= 64 for each in mistakes["latest"])
    assert [each["label"] for each in mistakes["latest"]] == [(each["seq"] - 1) % 4 for each in mistakes["latest"]]
    goodness = ok(page.get("/api/goodness"))
    assert [sum(each["right"]) for each in goodness["layers"]] == [64] * layers
    assert [each["threshold"] for each in goodness["layers"]] == [
        each["threshold"] for each in ok(page.get("/status"))["layers"]
    ]
    assert ok(page.get("/api/sample", params={"label": 2})) == {"image": given[62].tolist(), "label": 2}
    shown = ok(page.post("/api/activities", json={"image": given[0].tolist(), "label": 1, "wrong": 2}))
    assert [each["compares"] for each in shown["layers"]] == [
        each["compares"] for each in ok(page.get("/status"))["layers"]
    ]
    assert len(ok(page.get("/api/filters", params={"layer": 0, "limit": 3}))["images"]) == 3
    scores = ok(page.post("/api/scores", json={"image": given[0].tolist()}))
    assert len(scores["layers"]) == layers


def test_a_new_daemon_says_what_it_does_not_know(daemon: Running, browser: Open) -> None:
    page = browser(daemon)
    assert "no sample" in refused(page.get("/api/goodness"), 404, "no_samples")
    assert "no sample" in refused(page.get("/api/sample?label=1"), 404, "no_samples")
    assert ok(page.get("/api/mistakes"))["latest"] == []
    assert ok(page.post("/api/scores", json={"image": [0] * INPUTS}))["seq"] == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "says"),
    [
        ("scores", b"{", 400, "bad_request", "Invalid JSON"),
        ("scores", b"[]", 400, "bad_request", "image"),
        ("scores", b"{}", 400, "bad_request", "image: Field required"),
        ("scores", b'{"image": [256]}', 400, "bad_request", "image.0"),
        ("scores", b'{"image": [1.5]}', 400, "bad_request", "image.0"),
        ("scores", b'{"image": ["1"]}', 400, "bad_request", "image.0"),
        ("scores", b'{"image": [1], "more": 1}', 400, "bad_request", "more"),
        ("scores", b'{"image": [1, 2]}', 400, "bad_size", "16"),
        ("activities", b'{"image": [1, 2]}', 400, "bad_size", "16"),
        ("activities", json.dumps({"image": [0] * 16, "label": 4}).encode(), 400, "label_out_of_range", "0 to 3"),
        ("activities", json.dumps({"image": [0] * 16, "wrong": 99}).encode(), 400, "label_out_of_range", "0 to 3"),
        ("scores", b" " * (requests.BODY_MAX_BYTES + 1), 413, "too_large", str(requests.BODY_MAX_BYTES)),
    ],
)
def test_wrong_bodies_have_an_error_with_a_hint(
    daemon: Running, browser: Open, path: str, body: bytes, status: int, code: str, says: str
) -> None:
    headers = {"Content-Type": "application/json"}
    assert says in refused(browser(daemon).post(f"/api/{path}", content=body, headers=headers), status, code)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("filters?layer=1", 404, "not_shown"),
        ("filters?layer=-1", 404, "not_shown"),
        ("filters?layer=x", 400, "bad_request"),
        ("filters?limit=0", 400, "bad_request"),
        ("filters?limit=1000", 400, "bad_request"),
        ("sample?label=9", 400, "label_out_of_range"),
        ("sample?label=-1", 400, "bad_request"),
        ("sample?name=1", 400, "bad_request"),
    ],
)
def test_wrong_queries_have_an_error_with_a_hint(
    daemon: Running, browser: Open, query: str, status: int, code: str
) -> None:
    refused(browser(daemon).get(f"/api/{query}"), status, code)


def test_a_body_that_never_comes_is_given_up(daemon: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", 0.05)
    host, _, port = daemon.daemon.http.address.rpartition(":")
    with socket.create_connection((host, int(port)), ANSWER_S) as connection:
        head = "POST /api/scores HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-FFStream: 1\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b"400 Bad Request" in connection.recv(4096)


def test_computing_needs_the_headers_of_the_page(daemon: Running, browser: Open) -> None:
    page, body = browser(daemon), {"image": [0] * INPUTS}
    for path in ("scores", "activities", "teach"):
        refused(page.post(f"/api/{path}", json=body, headers={"X-FFStream": "0"}), 403, "forbidden")
        plain = {"Content-Type": "text/plain"}
        refused(page.post(f"/api/{path}", content=json.dumps(body), headers=plain), 403, "forbidden")
        assert page.get(f"/api/{path}").status_code == 405


def test_data_is_behind_the_token(start: Start, browser: Open, tmp_path: Path) -> None:
    token = "7" * 64
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    page = browser(start(f"security.http_token={tmp_path / 'token'}"))
    for path in ("mistakes", "goodness", "filters", "sample"):
        assert page.get(f"/api/{path}").status_code == 401
    body = {"image": [0] * INPUTS}
    assert page.post("/api/scores", json=body).status_code == 401
    ok(page.post("/api/scores", json=body, headers={"Authorization": f"Bearer {token}"}))


# --- teaching ----------------------------------------------------------------------------------------------------

TEACH = "http.teach=true"


def test_a_taught_sample_is_one_accepted_sample_and_is_learned(start: Start, browser: Open) -> None:
    running = start(TEACH)
    page = browser(running)
    feed(running, 10)
    assert ok(page.get("/status"))["teach"] is True
    assert ok(page.post("/api/teach", json=lesson())) == {"accepted": 11}
    assert ok(page.post("/api/teach", json=lesson(2, 6))) == {"accepted": 12}
    assert running.stored()[-2:] == [("@page", 1, 11, 1), ("@page", 2, 12, 1)]
    running.control().wait_idle(WAIT_S)
    status = ok(page.get("/status"))
    assert (status["accepted"], status["learned"]) == (12, 12)
    assert running.metric("samples_acked_total") == 12

    def seen() -> bool:
        return bool(ok(page.get("/api/sample", params={"label": 2}))["image"] == lesson(2, 6)["image"])

    wait_until(seen, WAIT_S, "it was predicted before it was learned")
    assert running.daemon.journal.clients.unresolved("@page") == 1, "earlier ones are answered for good"


def test_numbers_of_taught_samples_go_on_after_a_restart(start: Start, browser: Open) -> None:
    running = start(TEACH)
    ok(browser(running).post("/api/teach", json=lesson()))
    running.restart()
    assert ok(browser(running).post("/api/teach", json=lesson())) == {"accepted": 2}
    assert running.stored() == [("@page", 1, 1, 1), ("@page", 2, 2, 1)]


def test_many_pages_teach_at_once(start: Start, browser: Open) -> None:
    running = start(TEACH)
    page = browser(running)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: ok(page.post("/api/teach", json=lesson(1, seed))), range(40)))
    assert sorted(each["accepted"] for each in answers) == list(range(1, 41))
    assert running.daemon.journal.head.seq == 40


def test_without_the_option_nothing_is_taught(daemon: Running, browser: Open) -> None:
    assert "http.teach" in refused(browser(daemon).post("/api/teach", json=lesson()), 403, "teaching_off")
    assert daemon.stored() == []


def test_teaching_has_a_token_of_its_own(start: Start, browser: Open, tmp_path: Path) -> None:
    token = "5" * 64
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    running = start(TEACH, f"http.teach_token={tmp_path / 'token'}")
    page = browser(running)
    for headers in ({}, {"X-FFStream-Teach": "wrong"}, {"Authorization": f"Bearer {token}"}):
        assert "http.teach_token" in refused(
            page.post("/api/teach", json=lesson(), headers=headers), 403, "teach_token"
        )
    assert running.stored() == []
    assert running.metric("connections_refused_total", socket="http", reason="token") == 3
    ok(page.post("/api/teach", json=lesson(), headers={"X-FFStream-Teach": token}))


def test_a_foreign_page_cannot_teach(start: Start, browser: Open) -> None:
    running = start(TEACH)
    page = browser(running)
    refused(page.post("/api/teach", json=lesson(), headers={"Origin": "http://evil.example"}), 403, "forbidden")
    refused(page.post("/api/teach", json=lesson(), headers={"Host": "evil.example"}), 421, "wrong_host")
    refused(page.post("/api/teach", json=lesson(), headers={"Sec-Fetch-Site": "cross-site"}), 403, "forbidden")
    assert running.stored() == []


def test_wrong_lessons_are_rejected(start: Start, browser: Open) -> None:
    running = start(TEACH)
    page = browser(running)
    refused(page.post("/api/teach", json=lesson(4)), 400, "label_out_of_range")
    refused(page.post("/api/teach", json={"image": [1], "label": 1}), 400, "bad_size")
    refused(page.post("/api/teach", json={"image": [0] * INPUTS}), 400, "bad_request")
    refused(page.post("/api/teach", json={"image": [0] * INPUTS, "label": 65_535}), 400, "bad_request")
    assert running.stored() == []
    assert running.metric("messages_rejected_total", reason="label_out_of_range") == 1


def test_nothing_is_taught_while_learning_is_paused(start: Start, browser: Open) -> None:
    running = start(TEACH)
    page = browser(running)
    running.control().request("pause")
    assert "ffstream resume" in refused(page.post("/api/teach", json=lesson()), 503, "paused")
    assert running.stored() == []
    running.control().request("resume")
    ok(page.post("/api/teach", json=lesson()))


def test_a_taught_sample_is_rejected_as_any_other_is(start: Start, browser: Open) -> None:
    running = start(TEACH)
    page = browser(running)
    running.daemon.admission.draining = True
    refused(page.post("/api/teach", json=lesson()), 503, "draining")
    running.daemon.admission.draining = False
    ok(page.post("/api/teach", json=lesson()))
    assert len(running.stored()) == 1


def test_a_commit_that_fails_stores_nothing(start: Start, browser: Open, watched: Watch) -> None:
    running = start(TEACH)
    page = browser(running)

    def fill(name: str) -> None:
        if name == "commit.before":
            raise DiskFull("no space is left", hint="make some")

    watched(fill)
    refused(page.post("/api/teach", json=lesson()), 503, "disk_full")
    watched(None)
    assert running.stored() == []
    wait_until(lambda: page.post("/api/teach", json=lesson()).status_code == 200, WAIT_S, "a probe has succeeded")
    assert len(running.stored()) == 1


def test_who_gives_up_in_time_has_stored_nothing(
    start: Start, browser: Open, watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_TEACH_TIMEOUT_S", 0.05)
    running = start(TEACH)
    page, producer = browser(running), running.producer()
    busy, release = hold_at("commit.before", watched, WAIT_S)
    producer.send(images(1), [0])
    assert busy.wait(WAIT_S), "the thread of the journal is busy"
    refused(page.post("/api/teach", json=lesson()), 503, "deadline_exceeded")
    release.set()
    producer.flush(WAIT_S)
    monkeypatch.setattr(api, "_TEACH_TIMEOUT_S", WAIT_S)
    ok(page.post("/api/teach", json=lesson(1, 7)))
    assert [client for client, *_ in running.stored()].count("@page") == 1, "the first one was never stored"


def test_stopping_answers_those_who_teach(start: Start, browser: Open) -> None:
    running = start(TEACH)
    page = browser(running)
    done = threading.Event()

    def teach() -> list[int]:
        statuses = []
        while not done.is_set():
            try:
                statuses.append(page.post("/api/teach", json=lesson()).status_code)
            except httpx.TransportError:  # the listener is closed
                break
        return statuses

    with ThreadPoolExecutor(1) as pool:
        taught = pool.submit(teach)
        wait_until(lambda: running.daemon.journal.head.seq > 3, WAIT_S, "some are stored")
        running.stop()
        done.set()
        statuses = taught.result(WAIT_S)
    assert set(statuses) <= {200, 503}
    assert len(running.stored()) in (statuses.count(200), statuses.count(200) + 1), "one answer may be lost"
