"""A daemon whose answers are written by the test."""

import threading
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

WELCOME = {
    "socket": "learn",
    "boot": "boot",
    "next": 1,
    "credit": 8,
    "max_samples": 10,
    "max_bytes": 600,
    "inputs": 6,
    "image_shape": [2, 3],
    "labels": 10,
}

Script = Callable[["Scripted", dict[str, Any]], None]


def ack_all(daemon: "Scripted", fields: dict[str, Any]) -> None:
    daemon.ack(fields["n"])


class Scripted:
    """A ROUTER on its own thread. It answers `hello` and `ping` itself, and passes other messages to `script`."""

    def __init__(self, script: Script = ack_all, endpoint: str = "tcp://127.0.0.1:*", **welcome: Any) -> None:
        self.script = script
        self.received: list[dict[str, Any]] = []
        self.payloads: list[list[bytes]] = []
        self.welcome = WELCOME | welcome
        self.pong = 8
        self.pong_fields: dict[str, Any] = {}
        self.peer = b""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self._socket.bind(endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted")
        self._thread.start()

    def of_type(self, type: str) -> list[dict[str, Any]]:
        return [fields for fields in self.received if fields["type"] == type]

    @property
    def numbers(self) -> list[int]:
        """Message numbers in the order of arrival."""
        return [fields["n"] for fields in self.of_type("samples")]

    def say(self, type: str, *payload: bytes, **fields: Any) -> None:
        self._socket.send_multipart([self.peer, msgpack.packb({"v": 1, "type": type, **fields}), *payload])

    def ack(self, *numbers: int, credit: int = 8) -> None:
        self.say("ack", acks=[[n, 10 * n, 1] for n in numbers], credit=credit)

    def error(self, n: int | None, code: str = "journal_full", *, retry: bool = True, **fields: Any) -> None:
        self.say("error", **({"n": n, "code": code, "message": "what", "hint": "how", "retry": retry} | fields))

    def _run(self) -> None:
        while not self._ending.is_set():
            if self._socket.poll(20):
                self.peer, header, *payload = self._socket.recv_multipart()
                self._answer(msgpack.unpackb(header), payload)
        self._socket.close()

    def _answer(self, fields: dict[str, Any], payload: list[bytes]) -> None:
        self.received.append(fields)
        if fields["type"] == "hello":
            self.say("welcome", **self.welcome)
        elif fields["type"] == "ping":
            same = {key: self.welcome[key] for key in ("socket", "boot")}
            self.say("pong", **(same | {"credit": self.pong} | self.pong_fields))
        elif fields["type"] == "bye":
            pass
        else:
            self.payloads.append(payload)
            self.script(self, fields)

    def close(self) -> None:
        """The endpoint is free afterwards."""
        self._ending.set()
        self._thread.join(10)
        self._context.term()
