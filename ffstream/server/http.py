"""The HTTP server: uvicorn on a thread of its own.

Anybody may connect and send nothing. So a connection that waits for the other side is closed when a new one needs its
place, and only requests that are being answered count towards the limit. Health and readiness are always answered.

A standby does not listen at `listen.http`: on one machine the port belongs to the daemon it stands by for. It may
have an address of its own: see `daemon/standby.py`.
"""

import logging
import math
import socket
import threading
from collections.abc import Callable
from functools import partial

import uvicorn
from starlette.applications import Starlette

from ffstream.errors import ConfigError, DeadlineExceeded, StageFailed
from ffstream.server.http_app import ConcurrencyLimit
from ffstream.server.http_connection import Connection
from ffstream.server.origin import SecurityHeaders
from ffstream.server.rejections import RejectedConnections, RejectionLog
from ffstream.util.os_errors import listen_error
from ffstream.util.threads import OnFailure, Worker

_START_TIMEOUT_S = 10.0
_CONNECTIONS = 64
_RESERVE = 16  # more connections than that, for health and for 503 answers
_HANDSHAKE_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 330.0


class _Throttle(logging.Filter):
    """Writes the records of a logger through a `RejectionLog`, because clients can cause any number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.log = RejectionLog("http server", "http")

    def filter(self, record: logging.LogRecord) -> bool:
        """Writes the record, now or later; the logger itself does not."""
        self.log.add(record.levelname.lower(), record.getMessage(), record.levelno, record.exc_info)
        return False


# One for all servers, as there is one logger of each name in a process.
_THROTTLE = _Throttle()


def _listen(host: str, port: int) -> socket.socket:
    """`::` listens on IPv4 as well. If a name has addresses of both kinds, IPv4 is used. Raises OSError."""
    families = {each[0] for each in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)}
    family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    listener = socket.create_server(
        (host, port), family=family, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
    )
    # Its connections inherit this, and asyncio does not set it on them. uvicorn sends head and body one after the
    # other: without it the body waits for the acknowledgement of the head, which clients delay by 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Server(uvicorn.Server):
    """Ends streams first when it stops."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called on the event loop, once no more connections are accepted."""
        self._on_stop()
        await super().shutdown(sockets)


class HttpServer:
    """Thread `ff-http`. It listens from the constructor on and answers between `start` and `stop`."""

    name = "ff-http"

    def __init__(
        self,
        app: Starlette,
        address: str,
        connections: int = _CONNECTIONS,
        handshake_timeout_s: float = _HANDSHAKE_TIMEOUT_S,
        keep_alive_s: float = _KEEP_ALIVE_S,
        on_failure: OnFailure = lambda error: None,
        rejections: RejectedConnections | None = None,
        *,
        streams: int = 0,
        on_stop: Callable[[], None] = lambda: None,
        option: str = "listen.http",
    ) -> None:
        """`streams`: connections for answers that do not end by themselves; `on_stop` ends them on the event loop.

        `option` names the address in errors.
        """
        self._rejections = rejections
        host, _, port = address.rpartition(":")
        try:
            self._listener = _listen(host.strip("[]"), int(port))
        except OSError as error:
            raise listen_error(option, address, error) from error
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {address} ({option}): {error}",
                hint=f"set {option} to host:port, with a port from 0 to 65535",
            ) from error
        host, bound = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        config = uvicorn.Config(
            SecurityHeaders(ConcurrencyLimit(app, connections, self._reject)),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=math.ceil(keep_alive_s),
            timeout_graceful_shutdown=1,  # a client that does not read its answer must not delay a stop
            # Connections accepted at once. Requests on them are read before enough others come to replace them.
            backlog=_RESERVE,
            # h11 limits the size of a request's head. uvicorn only calls what it is given.
            http=partial(  # type: ignore[arg-type]
                Connection,
                most=connections + streams + _RESERVE,
                handshake_timeout_s=handshake_timeout_s,
                keep_alive_s=keep_alive_s,
                on_rejected=self._reject,
            ),
            ws="none",
            callback_notify=self._tick,
            timeout_notify=1,
        )
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addFilter(_THROTTLE)
        self._server = _Server(config, on_stop)
        self.thread = Worker(self.name, self._serve, on_failure)

    def start(self) -> None:
        """Returns once requests are answered."""
        self.thread.start()
        pause = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / 0.01)):
            if self._server.started:
                self._listener.listen()  # from now on more connections may wait than are accepted at once
                return
            pause.wait(0.01)
        raise DeadlineExceeded("the HTTP server did not start", hint="see the log")

    def _serve(self) -> None:
        self._server.run(sockets=[self._listener])
        if not self._server.should_exit:
            raise StageFailed(f"{self.name} ended unexpectedly", hint="see the log")

    async def _tick(self) -> None:
        """uvicorn calls it once a second."""
        self.thread.progressed()  # the event loop runs
        self._flush_logs()

    def _reject(self, detail: str) -> None:
        if self._rejections is not None:
            self._rejections.add("too_many", detail)

    def _flush_logs(self, *, everything: bool = False) -> None:
        _THROTTLE.log.flush(everything=everything)
        if self._rejections is not None:
            self._rejections.flush(everything=everything)

    def end(self) -> None:
        """Makes the thread close the listener and let requests finish; returns at once."""
        self._server.should_exit = True

    def stop(self, timeout_s: float) -> bool:
        """Closes the listener and lets requests finish. False if the deadline passed."""
        self.end()
        in_time = self.thread.join(timeout_s)
        self._listener.close()
        self._flush_logs(everything=True)
        return in_time
