import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ffstream.errors import ConfigError
from ffstream.metrics import Metrics
from ffstream.server.http import HttpServer, make_app

STATUS = {"state": "ready", "accepted": 5, "prequential_error": None}


class Site:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.alive = True
        self.state = "ready"
        app = make_app(
            self.metrics.registry, alive=lambda: self.alive, readiness=lambda: self.state, status=lambda: STATUS
        )
        self.server = HttpServer(app, "127.0.0.1:0")
        self.server.start()
        self.client = httpx.Client(base_url=f"http://{self.server.address}", trust_env=False, timeout=10)

    def get(self, path: str) -> tuple[int, str]:
        response = self.client.get(path)
        return response.status_code, response.text


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.client.close()
    assert site.server.stop(10)


def test_healthy_until_a_thread_has_died(site: Site) -> None:
    assert site.get("/healthz") == (200, "ok\n")
    site.state = "stopping"
    assert site.get("/healthz") == (200, "ok\n")
    site.alive = False
    assert site.get("/healthz") == (503, "failed\n")


@pytest.mark.parametrize("state", ["starting", "draining", "stopping", "failed", "anything else"])
def test_ready_only_when_ready(site: Site, state: str) -> None:
    assert site.get("/readyz") == (200, "ready\n")
    site.state = state
    assert site.get("/readyz") == (503, f"{state}\n")


def test_status_and_page(site: Site) -> None:
    assert site.client.get("/status").json() == STATUS
    page = site.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>ffstream</title>" in page.text


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/none", 404), ("POST", "/metrics", 405)])
def test_nothing_else(site: Site, method: str, path: str, code: int) -> None:
    assert site.client.request(method, path).status_code == code


def test_metrics_are_in_prometheus_own_form(site: Site) -> None:
    site.metrics.messages_rejected.labels("bad_shape").inc(3)
    response = site.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families: dict[str, Any] = {family.name: family for family in text_string_to_metric_families(response.text)}
    (sample,) = [each for each in families["ffstream_messages_rejected"].samples if each.name.endswith("_total")]
    assert (sample.labels, sample.value) == ({"reason": "bad_shape"}, 3.0)


def test_an_address_in_use_or_none_is_a_config_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:http", "127.0.0.1", "", "127.0.0.1:99999"):
            with pytest.raises(ConfigError, match="cannot listen on") as caught:
                HttpServer(make_app(Metrics().registry, alive=bool, readiness=str, status=dict), address)
            assert caught.value.hint


def test_a_server_that_never_started_is_closed(site: Site) -> None:
    app = make_app(Metrics().registry, alive=bool, readiness=str, status=dict)
    server = HttpServer(app, "127.0.0.1:0")
    host, _, port = server.address.rpartition(":")
    assert server.stop(1)
    socket.create_server((host, int(port))).close()
