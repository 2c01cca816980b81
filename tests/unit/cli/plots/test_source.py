"""Where `ffstream plot` gets its records: a wrong address is explained."""

import socket
import threading

import pytest

from ffstream.cli.plots.source import Http
from ffstream.errors import Unreachable

DEADLINE_S = 60.0


def test_a_server_that_does_not_speak_http_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)  # closing with unread bytes could discard the answer
                connection.sendall(b"\xff\x00 ready\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unreachable, match=f"no answer from {url}/status: what listens there") as caught:
            Http(url).compares()
        thread.join(DEADLINE_S)
    assert "does not answer in HTTP" in caught.value.message
    assert "give its HTTP address with --at" in caught.value.hint


def test_an_address_with_a_space_is_named() -> None:
    with pytest.raises(Unreachable, match="URL can't contain control characters"):
        Http("http://127.0.0.1:8757/a page").compares()
