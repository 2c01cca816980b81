"""A man in the middle: forwards TCP connections, records what clients send, and changes bytes on request."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

_CHUNK = 1 << 16


class RecordingProxy:
    """Listens on a free port of loopback. Several clients may be connected at the same time."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self.recorded = bytearray()  # what clients have sent, in order
        self.change: Callable[[bytes], bytes] = bytes  # applied to what clients send
        self.change_answers: Callable[[bytes], bytes] = bytes  # applied to what the daemon sends
        self.closed_by_daemon = 0  # connections that the daemon closed first
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "tcp://{}:{}".format(*self._listener.getsockname())
        self._sockets = [self._listener]
        self._closed: dict[socket.socket, bool] = {}  # by its peer
        self._threads = [threading.Thread(target=self._accept, name="proxy", daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for source, sink, is_client in ((client, server, True), (server, client, False)):
                thread = threading.Thread(
                    target=self._pump, args=(source, sink, is_client), name="proxy", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if is_client:
                    self.recorded += data
                sink.sendall(self.change(data) if is_client else self.change_answers(data))
        if not is_client and not self._closed.get(sink):
            self.closed_by_daemon += 1
        self._closed[source] = True
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes every connection."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)
