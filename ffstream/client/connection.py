"""What the clients have in common: a DEALER socket, deadlines on every wait, and a greeting on every connection.

When a connection is up the client sends `hello` and waits for `welcome`. So it knows that it talks to the right
socket of a daemon, and the limits there. It sends nothing else before.
"""

import math
import time
from collections.abc import Callable
from typing import Self

import zmq

from ffstream.client.keys import CurveKeys
from ffstream.client.monitor import ConnectionMonitor
from ffstream.client.thread_affinity import ThreadAffinity
from ffstream.errors import ConfigError, DeadlineExceeded, Reason, RequestRefused, TooLarge, Unreachable
from ffstream.wire import codec
from ffstream.wire.messages import (
    DEFAULT_CONTROL,
    DEFAULT_LEARN,
    DEFAULT_PREDICT,
    MAX_HEADER_BYTES,
    ErrorReply,
    Hello,
    Message,
    Welcome,
)

POLL_S = 0.05  # between two polls of the connection's state during a wait

_HEARTBEAT_MS = 2_000
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1_000
_CONNECT_MS = 5_000  # the kernel alone would retry for two minutes, less and less often
_LAST_PROBE_S = 0.5  # for a probe that is running at a deadline
_HELLO_AGAIN_S = 1.0

_CLIENTS = {
    "learn": ("Producer", DEFAULT_LEARN),
    "predict": ("Predictor", DEFAULT_PREDICT),
    "control": ("Control", DEFAULT_CONTROL),
}


def duration(seconds: float) -> str:
    """Seconds for people, such as `1.25 s` or `63.1 s`."""
    return f"{round(seconds, 2 if seconds < 10 else 1):g} s"


def _check_port(endpoint: str) -> None:
    """Raises ConfigError for a port that does not exist: libzmq would silently take the remainder."""
    host, _, port = endpoint.rpartition(":")
    if host.startswith("tcp://") and port.isdecimal() and not 1 <= int(port) <= 65_535:
        raise ConfigError(f"cannot connect to {endpoint}: there is no port {port}", hint="a port is 1 to 65535")


class Connection:
    """A DEALER socket connected to an endpoint, for one thread (thread_affinity.py). Raises ConfigError.

    With `immediate`, sending without a connection raises zmq.Again, and messages that a broken connection has not
    sent are lost, as are unread answers. Every wait raises RequestRefused with the code `unauthorized` soon after
    the daemon has rejected the connection, and ConfigError if an HTTP server or another socket of the daemon listens
    there.
    """

    def __init__(
        self,
        endpoint: str,
        socket_name: str,
        answers: tuple[type[Message], ...],
        *,
        immediate: bool = False,
        keys: CurveKeys | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.affinity = ThreadAffinity(_CLIENTS[socket_name][0])
        self.reason: Reason | None = None  # why the client waits
        self.on_reason: Callable[[Reason], None] | None = None  # called with each new reason
        self._socket_name = socket_name
        self._types = codec.table(ErrorReply, Welcome, *answers)
        if not isinstance(endpoint, str):
            raise ConfigError(f"the endpoint {endpoint!r} is not a string", hint="use tcp://HOST:PORT or ipc://PATH")
        if keys is not None and not isinstance(keys, CurveKeys):
            raise ConfigError(f"keys of type {type(keys).__name__}", hint="use CurveKeys.load(key, server_key)")
        _check_port(endpoint)
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._set_options(immediate=immediate)
        if keys is not None:
            keys.use(self.socket)
        self.monitor = ConnectionMonitor(self.socket, endpoint, has_keys=keys is not None)
        try:
            self.socket.connect(endpoint)
        except (zmq.ZMQError, ValueError) as error:
            self.close()
            raise ConfigError(f"cannot connect to {endpoint}: {error}", hint="use tcp://HOST:PORT") from error

    def _set_options(self, *, immediate: bool) -> None:
        for option, value in (
            (zmq.LINGER, 0),  # the caller resends what is not acked
            (zmq.IMMEDIATE, int(immediate)),
            (zmq.SNDHWM, 0),  # the callers limit what they send
            (zmq.RCVHWM, 0),  # limited by what was sent
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS),
            (zmq.CONNECT_TIMEOUT, _CONNECT_MS),
        ):
            self.socket.setsockopt(option, value)

    # --- messages --------------------------------------------------------------------------------------------------

    def send(self, message: Message, *payload: bytes) -> None:
        """Sends without blocking. Raises TooLarge, zmq.Again."""
        header = codec.encode(message)
        if len(header) > MAX_HEADER_BYTES:
            raise TooLarge(f"{message.type}: a header of {len(header)} bytes", hint=f"at most {MAX_HEADER_BYTES}")
        self.socket.send_multipart([header, *payload], zmq.NOBLOCK)

    def send_if_up(self, message: Message, *payload: bytes) -> bool:
        """Sends if the connection is up, and returns whether it did."""
        if not self.monitor.is_up:
            return False
        try:
            self.send(message, *payload)
        except zmq.Again:
            self.monitor.is_up = False
            return False
        return True

    def receive(self, timeout_s: float) -> tuple[Message, list[bytes]] | None:
        """The next message and its payload, or None after the timeout. Raises ProtocolError for an invalid one."""
        if not self.await_event(zmq.POLLIN, timeout_s):
            return None
        header, *payload = self.socket.recv_multipart(zmq.NOBLOCK)
        return codec.decode(header, self._types, list_max=MAX_HEADER_BYTES), payload

    def await_event(self, event: int, timeout_s: float) -> bool:
        """Whether the socket can be read, or written, before the timeout. Raises as `ConnectionMonitor.poll`."""
        if timeout_s <= 0:
            return bool(int(self.socket.getsockopt(zmq.EVENTS)) & event)
        deadline = time.monotonic() + timeout_s
        left_s = timeout_s
        while not self.socket.poll(max(1, int(min(left_s, POLL_S) * 1000)), event):
            self.monitor.poll()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
        return True

    # --- greeting --------------------------------------------------------------------------------------------------

    def came_up(self) -> bool:
        """Whether a new connection is up since the last call. Raises as `ConnectionMonitor.poll`."""
        self.monitor.poll()
        is_new = self.monitor.came_up and self.monitor.is_up
        self.monitor.came_up = False
        return is_new

    def greet(self, hello: Hello, timeout_s: float, *, connect_timeout_s: float = math.inf) -> Welcome:
        """Sends hello when a connection is up, and returns the daemon's answer.

        Sends it again after a retryable error. Raises Unreachable if there never was a connection and there is none
        within `connect_timeout_s`; DeadlineExceeded, RequestRefused, and ConfigError at the wrong socket.
        """
        began = time.monotonic()
        deadline, again_at = began + timeout_s, math.inf
        while True:
            now = time.monotonic()
            if self.came_up() or now >= again_at:
                again_at = math.inf
                self.send_if_up(hello)
            if now >= deadline or (now - began >= connect_timeout_s and self.cannot_connect()):
                raise self.deadline_error(now - began)
            self.note_broken_connection()
            received = self.receive(min(deadline - now, POLL_S))
            if received is None:
                continue
            answer = received[0]
            if isinstance(answer, ErrorReply) and answer.n is None and answer.id is None:
                if not answer.retry:
                    raise RequestRefused(answer.code, answer.message, hint=answer.hint)
                self.note_reason(answer.code, answer.message, answer.hint)
                again_at = time.monotonic() + (answer.retry_after_s or _HELLO_AGAIN_S)
            elif isinstance(answer, Welcome):
                self.check_socket(answer)
                self.reason = None
                return answer

    def check_socket(self, welcome: Welcome) -> None:
        """Raises ConfigError if the welcome comes from another socket of the daemon."""
        if welcome.socket != self._socket_name:
            kind, default = _CLIENTS[self._socket_name]
            raise ConfigError(
                f"{self.endpoint} is the {welcome.socket} socket of the daemon",
                hint=f"a {kind} connects to its {self._socket_name} socket: option listen.{self._socket_name}, "
                f"by default {default}",
            )

    # --- why the client waits --------------------------------------------------------------------------------------

    def note_reason(self, code: str, message: str, hint: str) -> None:
        """Records why the client waits, and since when."""
        known = self.reason if self.reason is not None and self.reason.code == code else None
        self.reason = Reason(code, message, hint, known.since if known else time.monotonic())
        if known is None and self.on_reason is not None:
            self.on_reason(self.reason)

    def note_broken_connection(self) -> None:
        """Records the problem with the connection, if there is one."""
        if not self.monitor.is_up and (self.monitor.probed or self.monitor.was_up):
            found = self.monitor.describe()
            self.note_reason(Unreachable.code, found.text, found.hint)

    def cannot_connect(self) -> bool:
        """Whether there never was a connection, and a probe found that there cannot be one now."""
        monitor = self.monitor
        return not monitor.was_up and monitor.probed is not None and not monitor.probed.connects

    def deadline_error(self, waited_s: float) -> DeadlineExceeded:
        """The error about a deadline, with what is known about the reason."""
        if not self.monitor.is_up:
            self.monitor.finish_probe(_LAST_PROBE_S)
            found = self.monitor.describe()
            self.note_reason(Unreachable.code, found.text, found.hint)
            return Unreachable(f"{found.text}; tried for {duration(waited_s)}", hint=found.hint, reason=self.reason)
        what = f"no answer from {self.endpoint} in {duration(waited_s)}"
        if self.reason is not None:
            return DeadlineExceeded(f"{what}: {self.reason}", hint=self.reason.hint, reason=self.reason)
        return DeadlineExceeded(
            what, hint="the client is connected: is the daemon busy, or stopped? see its log, or wait longer"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self, linger_ms: int = 0) -> None:
        """Closes the socket. Unsent messages have that much time to be sent, in the background."""
        if not self.socket.closed:
            self.monitor.close()
            self.socket.close(linger_ms)
