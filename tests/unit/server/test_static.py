import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files

import httpx
import pytest

from ffstream.server.http import HttpServer
from ffstream.server.http_app import make_app
from ffstream.server.static import static_routes

PAGE = files("ffstream.server") / "page"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    server = HttpServer(make_app(static_routes()), "127.0.0.1:0")
    server.start()
    with httpx.Client(base_url=f"http://{server.address}", trust_env=False, timeout=20) as client:
        yield client
    server.stop(20)


class References(HTMLParser):
    """All that a page refers to, and scripts and handlers that stand in it."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects."""
        given = dict(attrs)
        self.paths += [value for name, value in attrs if name in ("src", "href") and value]
        self.inline += [name for name in given if name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/app.css", "text/css; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/plotly.js", "text/javascript; charset=utf-8"),
    ],
)
def test_a_file_is_sent_once_and_then_only_confirmed(client: httpx.Client, path: str, kind: str) -> None:
    first = client.get(path)
    assert (first.status_code, first.headers["content-type"]) == (200, kind)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get(path, headers={"If-None-Match": '"of an earlier version"'}).content == first.content


def test_plotly_comes_from_its_package(client: httpx.Client) -> None:
    assert b"plotly.js v" in client.get("/page/plotly.js").content[:200]


def test_without_plotly_the_answer_says_what_to_install(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not each.endswith("site-packages")])
    monkeypatch.delitem(sys.modules, "plotly", raising=False)
    answer = client.get("/page/plotly.js")
    assert (answer.status_code, answer.text) == (404, "plotly is not installed: pip install plotly\n")


@pytest.mark.parametrize("path", ["/page/", "/page/index.html", "/page/none.js", "/page/..%2Fhttp.py"])
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_refers_only_to_this_server_and_has_no_inline_code(client: httpx.Client) -> None:
    found = References()
    found.feed(client.get("/").text)
    assert found.inline == []
    probes = {"metrics", "status", "readyz", "readyz/learn"}
    for path in {path for path in found.paths if not path.startswith("#")} - probes:
        assert client.get(f"/{path}").status_code == 200, path


def test_every_module_is_preloaded_and_imports_files_that_exist() -> None:
    modules = {file.name: file.read_text(encoding="utf-8") for file in PAGE.iterdir() if file.name.endswith(".js")}
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    assert set(modules) == set(re.findall(r'"page/(\w+\.js)"', index))
    for name, text in modules.items():
        for imported in re.findall(r'from "(.+)"', text):
            assert imported.removeprefix("./") in modules, f"{name} imports {imported}"


def test_data_never_becomes_markup() -> None:
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), f"{file.name} names another server"
