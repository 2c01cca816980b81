"""A mirror on loopback whose answers a test chooses, and small datasets."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ffstream.data.dataset import Dataset, Split
from ffstream.data.idx import write_idx


class Mirror:
    """An HTTP server; `answers` maps a path to what is sent, `requests` and `ranges` record what was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []
        self.ranges: list[str | None] = []
        self.release = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="mirror")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def serve(
        self, path: str, content: bytes, *, announced: int | None = None, ranges: bool = True, shift: int = 0
    ) -> None:
        """`announced`: a wrong length. `shift`: how far a part begins after the byte that was asked for."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            first = int((request.headers["Range"] or "bytes=0-")[len("bytes=") : -1]) if ranges else 0
            if first >= len(content):
                request.send_error(416)
                return
            length = len(content) if announced is None else announced
            if first:
                first += shift
                request.send_response(206)
                request.send_header("Content-Range", f"bytes {first}-{length - 1}/{length}")
            else:
                request.send_response(200)
            request.send_header("Content-Length", str(length - first))
            request.end_headers()
            request.wfile.write(content[first:])

        self.answers[path] = answer

    def serve_endless(self, path: str) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.end_headers()
            while not self.release.is_set():
                request.wfile.write(bytes(4096))

        self.answers[path] = answer

    def hang(self, path: str) -> None:
        """Announce 10 bytes, send one, then nothing."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.send_header("Content-Length", "10")
            request.end_headers()
            request.wfile.write(b"x")
            self.release.wait()

        self.answers[path] = answer

    def stop(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.requests.append(self.path)
                mirror.ranges.append(self.headers["Range"])
                answer = mirror.answers.get(self.path)
                with contextlib.suppress(ConnectionError):  # a client that has closed the connection
                    answer(self) if answer else self.send_error(404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    server = Mirror()
    yield server
    server.stop()


@pytest.fixture
def second_mirror() -> Iterator[Mirror]:
    server = Mirror()
    yield server
    server.stop()


@pytest.fixture
def tiny() -> Dataset:
    rng = np.random.default_rng(1)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 3, 2), np.uint8), rng.integers(0, 10, n, np.uint8))

    parts = {"train": split(7), "test": split(4)}
    return Dataset("tiny", lambda part: parts[part])


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny: Dataset) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for prefix, split in ("train", tiny.train), ("t10k", tiny.test):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", split.images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", split.labels)
    return folder
