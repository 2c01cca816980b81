"""Pages of other sites get nothing, whichever way they ask, and browsers may do little with what is answered."""

from collections.abc import Iterator

import httpx
import pytest

from ffstream.server.origin import SECURITY_HEADERS, Hosts
from tests.unit.server.site import Site

PATHS = ("/", "/status", "/metrics", "/api/live", "/api/history", "/none")
HEALTH = ("/healthz", "/readyz", "/readyz/learn")


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(readers=0)  # the live feed answers at once, with 503
    yield site
    site.close()


def refusals(site: Site, reason: str) -> float | None:
    labels = {"socket": "http", "reason": reason}
    return site.metrics.registry.get_sample_value("ffstream_connections_refused_total", labels)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8757", "10.1.2.3:80", "[::1]", "[::1]:8757", "[fe80::1]:1"),
        *("localhost", "LOCALHOST:8757", "localhost.", "learner.example.org", "learner.example.org:1", "Learner"),
        *("learner.example.org.", "other.example.org"),
    ],
)
def test_own_names_and_addresses_are_allowed(host: str) -> None:
    assert Hosts("learner.example.org:8757", ["learner", "Other.example.org"]).allow(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example.org", "localhost.evil.example.org", "127.0.0.1.evil.example.org", "evil.example.org:8757"),
        *("", ":8757", "127.1", "2130706433", "learner.", "[::1", "::1]", "localhost/evil", "0x7f.1", "[v1.x]"),
        *("xn--nxasmq6b", "*", "other.example.org@evil.example.org", "evil@localhost"),
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not Hosts("0.0.0.0:8757", ["other.example.org"]).allow(host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8757", "127.0.0.1:8757"),
        ("http://[::1]:8757", "[::1]:8757"),
        ("https://learner.example.org", "learner.example.org"),
        ("https://learner.example.org", "learner.example.org:443"),
        ("http://LOCALHOST", "localhost:80"),
        ("https://other.example.org", "127.0.0.1:8757"),  # a proxy that does not pass Host on
    ],
)
def test_the_own_page_is_allowed(origin: str, host: str) -> None:
    assert Hosts(names=["other.example.org"]).allow_origin(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.example.org", "127.0.0.1:8757"),
        ("http://127.0.0.1:3000", "127.0.0.1:8757"),  # another server on this machine
        ("http://localhost:8757", "127.0.0.1:8757"),
        ("http://127.0.0.1", "127.0.0.1:8757"),
        ("null", "127.0.0.1:8757"),
        ("", "127.0.0.1:8757"),
        ("file://", "127.0.0.1:8757"),
        ("chrome-extension://127.0.0.1:8757", "127.0.0.1:8757"),
        ("http://127.0.0.1:none", "127.0.0.1:8757"),
        ("http://", ""),
    ],
)
def test_other_pages_are_not(origin: str, host: str) -> None:
    assert not Hosts(names=["other.example.org"]).allow_origin(origin, host)


def test_a_request_for_another_host_is_refused_counted_and_told_what_to_do(site: Site) -> None:
    for path in PATHS:
        answer = site.client.get(path, headers={"Host": "rebound.example.org:8757"})
        assert answer.status_code == 421
        assert "http.hosts" in answer.text
        assert "rebound.example.org" in answer.text
    assert refusals(site, "host") == len(PATHS)
    for path in HEALTH:
        assert site.client.get(path, headers={"Host": "rebound.example.org"}).status_code == 200


def test_a_request_from_a_foreign_page_is_refused_and_counted(site: Site) -> None:
    for path in PATHS:
        assert site.client.get(path, headers={"Origin": "http://evil.example.org"}).status_code == 403
    assert refusals(site, "origin") == len(PATHS)
    assert site.client.get("/status", headers={"Origin": f"http://{site.server.address}"}).status_code == 200


@pytest.mark.parametrize("where", ["cross-site", "same-site", "anything"])
def test_data_is_refused_when_the_browser_says_that_another_site_asks(site: Site, where: str) -> None:
    image = {"Sec-Fetch-Site": where, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    for path in ("/status", "/metrics", "/api/history", "/api/live"):
        assert site.client.get(path, headers=image).status_code == 403
    link = {"Sec-Fetch-Site": where, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert site.client.get("/metrics", headers=link).status_code == 200, "a person follows a link"
    frame = {**link, "Sec-Fetch-Dest": "iframe"}
    assert site.client.get("/metrics", headers=frame).status_code == 403
    for own in ("same-origin", "none"):
        assert site.client.get("/status", headers={"Sec-Fetch-Site": own}).status_code == 200


def test_a_post_needs_headers_that_a_form_cannot_send(site: Site) -> None:
    allowed = {"Content-Type": "application/json", "X-FFStream": "1"}
    unfit: tuple[dict[str, str], ...] = (
        {},
        {**allowed, "X-FFStream": "0"},
        {"X-FFStream": "1"},
        {"Content-Type": "application/json"},
        {**allowed, "Content-Type": "text/plain"},
        {**allowed, "Content-Type": "application/x-www-form-urlencoded"},
    )
    for headers in unfit:
        answer = site.client.post("/api/history", content=b"{}", headers=headers)
        assert answer.status_code == 403, headers
        assert answer.json()["code"] == "forbidden"
        assert "X-FFStream: 1" in answer.json()["hint"]
    assert refusals(site, "origin") == len(unfit)
    for headers in (allowed, {**allowed, "Content-Type": "Application/JSON; charset=utf-8"}):
        assert site.client.post("/api/history", content=b"{}", headers=headers).status_code == 405


def test_no_cors_permission_is_ever_given(site: Site) -> None:
    asked = {"Origin": "http://evil.example.org", "Access-Control-Request-Method": "POST"}
    for path in (*PATHS, *HEALTH):
        answer = site.client.options(path, headers=asked)
        assert not any(name.startswith("access-control-") for name in answer.headers)


def test_every_answer_says_what_a_browser_may_do_with_it(site: Site) -> None:
    answers: list[httpx.Response] = [
        *(site.client.get(path) for path in (*PATHS, *HEALTH)),
        site.client.get("/", headers={"Host": "evil.example.org"}),
        site.client.post("/api/history"),
    ]
    assert {answer.status_code for answer in answers} == {200, 403, 404, 421, 503}
    for answer in answers:
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
    policy = answers[0].headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)


@pytest.mark.parametrize(
    ("forwarded", "logged"),
    [
        *(("10.1.2.3", "10.1.2.3"), ("::2", "::2"), ("", "127.0.0.1")),
        *(("9.9.9.9 reason=token count=999", "unknown"), ("fe80::1%eth0 count=999", "fe80::1")),
    ],
)
def test_a_client_cannot_write_fields_into_the_log(
    site: Site, caplog: pytest.LogCaptureFixture, forwarded: str, logged: str
) -> None:
    site.client.get("/status", headers={"Host": "evil.example.org", "X-Forwarded-For": forwarded})
    assert [record.getMessage() for record in caplog.records] == [
        f"connection rejected socket=http reason=host count=1 address={logged} path='/status'"
    ]


def test_data_is_not_kept_by_caches(site: Site) -> None:
    for path in ("/status", "/api/history", "/api/live"):
        assert site.client.get(path).headers["cache-control"] == "no-store"
