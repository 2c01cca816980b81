"""The live feed on real sockets: one document for all readers, and no reader that anybody waits for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.support import wait_until
from tests.unit.server.site import STATUS, WAIT_S, Site

PATH = "/api/live"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


class Reader:
    """Reads server-sent events."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def part(self) -> list[str]:
        """The lines up to the next empty one."""
        lines: list[str] = []
        for line in self._lines:
            if not line:
                return lines
            lines.append(line)
        pytest.fail(f"the stream has ended with {lines}")

    def rest(self) -> list[str]:
        """All lines up to the end of the stream."""
        return list(self._lines)


@contextmanager
def reading(site: Site) -> Iterator[Reader]:
    """A reader on a connection of its own, behind the comment that comes first."""
    with httpx.stream("GET", f"http://{site.server.address}{PATH}", trust_env=False, timeout=WAIT_S) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        reader = Reader(response)
        assert reader.part() == [": ffstream"]
        yield reader


def readers(site: Site) -> float | None:
    return site.metrics.registry.get_sample_value("ffstream_http_live_readers")


def test_events_hold_the_status_and_follow_one_another(site: Site) -> None:
    shown: dict[str, Any] = STATUS
    with reading(site) as reader:
        while shown["accepted"] < 8:
            name, data = reader.part()
            assert name == "event: status"
            before, shown = shown, json.loads(data.removeprefix("data: "))
            assert shown == {**STATUS, "accepted": shown["accepted"]}
            assert shown["accepted"] >= before["accepted"]
            site.document = {**STATUS, "accepted": shown["accepted"] + 1}


def test_the_status_is_computed_once_for_all_readers(site: Site) -> None:
    events = []
    with reading(site) as one, reading(site) as two, reading(site) as three:
        for _ in range(3):
            events.append([each.part() for each in (one, two, three)])
    computed = 0
    while site.asked.acquire(blocking=False):
        computed += 1
    assert computed <= 3 + 2, "not 9: the readers did not begin and end at the same moment"


def test_nothing_is_computed_without_a_reader(site: Site) -> None:
    with reading(site) as reader:
        reader.part()
        assert readers(site) == 1
    wait_until(lambda: readers(site) == 0, WAIT_S, "the server has noticed that the reader is gone")
    wait_until(lambda: site.feed._publisher is None, WAIT_S, "it makes no more events")
    with reading(site) as reader:
        assert reader.part()[0] == "event: status", "and it begins again"


def test_figures_have_six_digits_and_what_is_not_known_is_null(site: Site) -> None:
    site.document = {
        "time": 1764286123.4567,
        "error": 0.123456789,
        "margin": float("nan"),
        "layers": [{"loss": 1e-9 / 3}],
    }
    with reading(site) as reader:
        data = reader.part()[1].removeprefix("data: ")
    assert data == '{"time":1764286123.457,"error":0.123457,"margin":null,"layers":[{"loss":3.33333e-10}]}'
    assert site.client.get("/status").text == data


def test_a_status_that_is_unavailable_is_an_event_with_the_reason(site: Site) -> None:
    site.state = "unreadable"
    with reading(site) as reader:
        name, data = reader.part()
        assert name == "event: unavailable"
        assert json.loads(data.removeprefix("data: "))["hint"] == "put it back"
        site.state = "ready"
        while reader.part()[0] != "event: status":
            pass


def test_readers_do_not_use_up_the_requests_that_are_answered_at_a_time() -> None:
    site = Site(connections=1, readers=3)
    with reading(site) as one, reading(site), reading(site):
        one.part()
        assert site.client.get("/status").json() == STATUS
        refused = site.client.get(PATH)
        assert refused.status_code == 503
        assert refused.json()["code"] == "too_many_readers"
        assert "limits.http_live_readers" in refused.json()["hint"]
        assert site.too_many() == 1
    wait_until(lambda: readers(site) == 0, WAIT_S, "the readers are gone")
    with reading(site) as again:
        again.part()
    site.close()


def test_open_streams_end_when_the_server_stops(site: Site) -> None:
    """A stream that was cut off would raise an error at the reader."""
    with reading(site) as one, reading(site) as two:
        one.part()
        assert site.server.stop(WAIT_S)
        for reader in (one, two):
            assert all(line.startswith(("event: ", "data: ")) for line in filter(None, reader.rest()))


def test_a_reader_that_does_not_read_is_disconnected_and_others_go_on() -> None:
    site = Site(handshake_timeout_s=1.0)
    site.document = {"text": "x" * 4_000_000}  # more than the buffers of a connection hold
    with site.connect() as lazy, reading(site) as reader:
        lazy.sendall(b"GET /api/live HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: readers(site) == 2, WAIT_S, "both are readers")
        while readers(site) == 2:
            assert reader.part()[0] == "event: status"
        assert readers(site) == 1
    site.close()


def test_head_has_no_events(site: Site) -> None:
    answer = site.client.head(PATH)
    assert (answer.status_code, answer.text) == (200, "")
    assert site.client.post(PATH, json={}, headers={"X-FFStream": "1"}).status_code == 405
