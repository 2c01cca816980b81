import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from ffstream.errors import ConfigError, StartBlocked
from ffstream.server import requests
from ffstream.server.http import HttpServer
from ffstream.server.http_app import make_app
from ffstream.server.readiness import Hindrances, Readiness, of_predictions, of_samples
from tests.unit.server.site import STATUS, WAIT_S, Site


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def small_site() -> Iterator[Site]:
    """A server that answers two requests at a time and waits one second for a request."""
    site = Site(2, 1.0)
    yield site
    site.close()


def read_all(connection: socket.socket) -> bytes:
    """Reads until the connection is closed."""
    data = b""
    try:
        while more := connection.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass
    return data


def test_a_status_that_is_unavailable_gives_the_reason(site: Site) -> None:
    site.state = "unreadable"
    code, text = site.get("/status")
    assert code == 503
    assert json.loads(text) == {"code": "unavailable", "message": "the disk is gone", "hint": "put it back"}


def test_healthz_is_200_until_a_thread_has_died(site: Site) -> None:
    assert site.get("/healthz") == (200, "ok\n")
    site.state = "stopping"
    assert site.get("/healthz") == (200, "ok\n")
    site.alive = False
    assert site.get("/healthz") == (503, "failed\n")


def test_each_readiness_has_its_own_path(site: Site) -> None:
    assert site.get("/readyz") == site.get("/readyz/learn") == (200, "ready\n")
    site.learns = Readiness(False, "disk_full: no samples")
    assert site.get("/readyz/learn") == (503, "disk_full: no samples\n")
    assert site.get("/readyz") == (200, "ready\n")
    site.predicts = Readiness(False, "failed: it died")
    assert site.get("/readyz") == (503, "failed: it died\n")


@pytest.mark.parametrize("state", ["starting", "draining", "stopping", "failed", "anything else"])
def test_samples_are_accepted_only_when_ready(state: str) -> None:
    assert of_samples("ready", paused=False, refusing=None, interrupted=None) == (True, "ready")
    readiness = of_samples(state, paused=True, refusing="draining", interrupted=None)
    assert not readiness.ready
    assert readiness.text.startswith(f"{state}: ")


def test_interrupted_learning_is_ready_and_the_text_says_so() -> None:
    for paused, text in ((False, "ready"), (True, "ready, learning is paused")):
        expected = (True, f"{text}, learning is interrupted: ff-stage-0 is lost")
        hindrances: Hindrances = {"paused": paused, "refusing": None, "interrupted": "ff-stage-0 is lost"}
        assert of_samples("ready", **hindrances) == expected
        assert of_predictions("ready", answers=True, **hindrances) == expected
    refusing: Hindrances = {"paused": False, "refusing": "backlog_full", "interrupted": "ff-stage-0 is lost"}
    assert of_samples("ready", **refusing).text.startswith("backlog_full: ")


def test_paused_learning_is_ready_and_the_text_says_so() -> None:
    assert of_samples("ready", paused=True, refusing=None, interrupted=None) == (True, "ready, learning is paused")
    assert of_predictions("ready", answers=True, paused=True, refusing=None, interrupted=None) == (
        True,
        "ready, learning is paused",
    )


def test_readiness_for_predictions_does_not_depend_on_samples() -> None:
    refusing = of_predictions("ready", answers=True, paused=True, refusing="disk_full", interrupted=None)
    assert refusing == (True, "ready, learning is paused, no samples are accepted: disk_full")
    assert not of_samples("ready", paused=False, refusing="disk_full", interrupted=None).ready
    for state in ("draining", "stopping"):
        ready, text = of_predictions(state, answers=True, paused=False, refusing="draining", interrupted=None)
        assert ready
        assert text == f"ready, the daemon is {state}: no more samples are accepted"


@pytest.mark.parametrize(("state", "answers"), [("failed", True), ("stopping", False), ("starting", False)])
def test_without_a_predict_socket_the_daemon_is_not_ready(state: str, answers: bool) -> None:
    readiness = of_predictions(state, answers=answers, paused=False, refusing=None, interrupted=None)
    assert not readiness.ready
    assert readiness.text.startswith(f"{state}: ")


def test_the_status_and_the_page_are_served(site: Site) -> None:
    assert site.client.get("/status").json() == STATUS
    page = site.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>ffstream</title>" in page.text


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/none", 404), ("POST", "/metrics", 405)])
def test_other_paths_and_methods_are_errors(site: Site, method: str, path: str, code: int) -> None:
    assert site.client.request(method, path).status_code == code


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/api/none", 404, "unknown_path"), ("DELETE", "/api/history", 405, "method_not_allowed")],
)
def test_below_api_every_error_has_a_code_and_a_hint(
    site: Site, method: str, path: str, status: int, code: str
) -> None:
    answer = site.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["code"] == code
    assert answer.json()["message"]
    assert answer.json()["hint"]
    assert ("allow" in answer.headers) == (status == 405)


def test_metrics_are_in_the_text_format_of_prometheus(site: Site) -> None:
    site.metrics.messages_rejected.labels("bad_shape").inc(3)
    response = site.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families: dict[str, Any] = {family.name: family for family in text_string_to_metric_families(response.text)}
    (sample,) = [each for each in families["ffstream_messages_rejected"].samples if each.name.endswith("_total")]
    assert (sample.labels, sample.value) == ({"reason": "bad_shape"}, 3.0)


@pytest.mark.parametrize("data", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_silent_connections_do_not_prevent_requests(data: bytes) -> None:
    site = Site(2, 10 * WAIT_S)
    with ExitStack() as held:
        silent = [held.enter_context(site.connect()) for _ in range(100)]
        for connection in silent[-10:]:
            connection.sendall(data)
        for path in ("/healthz", "/readyz", "/readyz/learn", "/status", "/metrics"):
            with httpx.Client(base_url=f"http://{site.server.address}", trust_env=False, timeout=WAIT_S) as client:
                assert client.get(path).status_code == 200
        assert read_all(silent[0]) == b""
    site.close()


def test_bodies_that_do_not_come_do_not_prevent_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", 10 * WAIT_S)
    site = Site(2, 10 * WAIT_S)
    with ExitStack() as held:
        slow = [held.enter_context(site.connect()) for _ in range(100)]
        for connection in slow:
            with suppress(OSError):  # it is closed for a new one
                connection.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nslow")
        for path in ("/healthz", "/readyz", "/readyz/learn", "/status", "/metrics"):
            with httpx.Client(base_url=f"http://{site.server.address}", trust_env=False, timeout=WAIT_S) as client:
                assert client.get(path).status_code == 200
        slow[-1].sendall(bytes(496))
        answer = HTTPResponse(slow[-1])
        answer.begin()
        assert (answer.status, answer.read()) == (200, b"500")
    site.close()


def test_the_body_of_an_answer_does_not_wait_for_the_acknowledgement_of_its_head(site: Site) -> None:
    assert site.client.get("/healthz").status_code == 200
    (connection,) = site.server._server.server_state.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_incomplete_request_is_not_waited_for(small_site: Site) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    half = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    for data, answers in ((b"", 0), (half, 0), (whole + half, 1)):
        with small_site.connect() as connection:
            connection.sendall(data)
            assert read_all(connection).count(b"HTTP/1.1 200") == answers


def test_an_answer_may_take_longer_than_a_request(small_site: Site) -> None:
    small_site.go_on.clear()
    with small_site.connect() as asking, small_site.connect() as silent:
        asking.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert small_site.asked.acquire(timeout=WAIT_S)
        assert read_all(silent) == b""
        with small_site.connect() as silent_since:  # connected after the request
            assert read_all(silent_since) == b""
        small_site.go_on.set()
        assert read_all(asking).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_not_waited_for(small_site: Site) -> None:
    with small_site.connect() as greedy:
        try:
            while True:
                greedy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert small_site.get("/metrics")[0] == 200


def test_requests_above_the_concurrency_limit_get_a_503_and_health_is_still_answered(small_site: Site) -> None:
    small_site.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        under_way = [pool.submit(httpx.get, f"http://{small_site.server.address}/status") for _ in range(2)]
        assert all(small_site.asked.acquire(timeout=WAIT_S) for _ in under_way)
        assert small_site.get("/healthz") == (200, "ok\n")
        assert small_site.get("/readyz") == small_site.get("/readyz/learn") == (200, "ready\n")
        assert small_site.too_many() == 0
        assert small_site.get("/metrics") == (503, "503: too many requests at a time\n")
        assert small_site.too_many() == 1
        small_site.go_on.set()
        assert [each.result().status_code for each in under_way] == [200, 200]
    assert small_site.get("/metrics")[0] == 200


class Clock:
    """The clock of event loops, plus the time that the test adds."""

    def __init__(self) -> None:
        self.added_s = 0.0

    def time(self) -> float:
        return time.monotonic() + self.added_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: clock.time())
    return clock


def pass_time(site: Site, clock: Clock, seconds: float) -> None:
    """Adds time, and returns when the loop has handled everything that is due."""
    settle(site)  # a connection whose answer has been read is idle from now on
    clock.added_s += seconds
    settle(site)


def settle(site: Site) -> None:
    """Returns when the loop has handled what came before: it has answered a later request."""
    with site.connect() as later:
        later.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(later).startswith(b"HTTP/1.1 200")


def ask(connection: socket.socket, path: str = "/metrics") -> None:
    """Sends a request and reads the answer. The connection stays open."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16) or pytest.fail("closed")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    (length,) = [
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    ]
    while len(body) < length:
        body += connection.recv(1 << 16) or pytest.fail("closed")


def test_an_idle_connection_is_kept_longer_than_usual_scrape_intervals(clock: Clock) -> None:
    """Up to 300 s, after which Prometheus closes the connection itself."""
    site = Site()
    with site.connect() as scraper:
        for interval_s in (5.0, 15.0, 60.0, 300.0):
            ask(scraper)
            pass_time(site, clock, interval_s)
        ask(scraper)
        pass_time(site, clock, 331.0)
        assert read_all(scraper) == b"", "it is closed eventually"
    site.close()


def test_a_connection_with_an_incomplete_request_is_not_kept_alive(clock: Clock) -> None:
    """A connection may be silent for so long only after a complete request, with no other one begun."""
    site = Site()
    with site.connect() as silent, site.connect() as begun, site.connect() as unfinished:
        ask(begun)
        begun.sendall(b"GET /metrics HTTP/1.1\r\n")
        unfinished.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert unfinished.recv(1 << 16).startswith(b"HTTP/1.1 405")
        unfinished.sendall(b"x")
        pass_time(site, clock, 0.0)  # until everything was read
        pass_time(site, clock, 11.0)
        for late in (silent, begun, unfinished):
            assert b"HTTP/1.1 200" not in read_all(late)
    site.close()


def test_the_connection_that_is_idle_for_longest_is_closed_for_a_new_one(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A scraper between two scrapes is idle as well. The number of connections is limited in any case."""
    site = Site(2, readers=0)  # and 16 in reserve
    with ExitStack() as held:
        kept = []
        for _ in range(18):
            kept.append(held.enter_context(site.connect()))
            ask(kept[-1])
            clock.added_s += 1.0
        newer = held.enter_context(site.connect())
        ask(newer)
        assert read_all(kept[0]) == b""
        assert site.too_many() == 1
        for connection in (*kept[1:], newer):
            ask(connection)
    site.close()
    assert "connection rejected socket=http reason=too_many count=1 answer=none address=127.0.0.1" in caplog.text


def test_many_invalid_requests_write_few_lines_that_count_them_all(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The clock stands still, so that one line is due now and another one when the server stops.
    monkeypatch.setattr("ffstream.server.rejections.time", SimpleNamespace(monotonic=lambda: 1e9))
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    for data in [b"\x16\x03\x01 nonsense\r\n\r\n", upgrade] * 50:
        with site.connect() as connection:
            connection.sendall(data)
            assert read_all(connection)
    assert site.server.stop(10)
    lines = [record.getMessage() for record in caplog.records]
    counts = [int(line.split("count=")[1].split()[0]) for line in lines if line.startswith("http server ")]
    assert len(counts) == 2
    assert sum(counts) >= 100
    assert any("Invalid HTTP request received." in line for line in lines) or "upgrade" in str(lines)
    assert not any(record.name == "uvicorn.error" for record in caplog.records)


def idle_app() -> Starlette:
    return make_app([])


def test_an_address_that_cannot_be_used_is_an_error_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = f"127.0.0.1:{taken.getsockname()[1]}"
        for address, kind, hint in (
            (in_use, StartBlocked, "another program listens there"),
            ("192.0.2.1:8757", StartBlocked, "does not have that address now"),
            ("a name:8757", StartBlocked, "no interface or host has that name now"),
            ("127.0.0.1:http", ConfigError, "set listen.http to host:port"),
            ("127.0.0.1", ConfigError, "set listen.http to host:port"),
            ("", ConfigError, "set listen.http to host:port"),
            ("127.0.0.1:99999", ConfigError, "a port from 0 to 65535"),
        ):
            with pytest.raises(kind, match="cannot listen on") as caught:
                HttpServer(idle_app(), address)
            assert hint in caught.value.hint


def test_stopping_a_server_that_was_never_started_closes_its_socket(site: Site) -> None:
    server = HttpServer(idle_app(), "127.0.0.1:0")
    host, _, port = server.address.rpartition(":")
    assert server.stop(1)
    socket.create_server((host, int(port))).close()
