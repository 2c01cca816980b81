"""What the clients share: one DEALER socket, deadlines on every wait, and a greeting on every connection.

After a connection has come up the client says `hello` and waits for `welcome`: so it knows that it talks to the right
socket of a daemon, and which limits hold there. Until then it sends nothing else.
"""

import math
import time
from collections.abc import Callable
from numbers import Real
from typing import Any, Self

import zmq

from ffstream.client.handshakes import Handshakes
from ffstream.client.keys import CurveKeys
from ffstream.client.owner import Owner
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

_HEARTBEAT_MS = 2_000
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1_000
_CONNECT_MS = 5_000  # the kernel alone would try for two minutes, ever more rarely
_LOOK_S = 0.05  # between two looks at what became of the connection
_SETTLE_S = 0.5  # for a probe that is under way at a deadline
_HELLO_AGAIN_S = 1.0

_CLIENTS = {
    "learn": ("Producer", DEFAULT_LEARN),
    "predict": ("Predictor", DEFAULT_PREDICT),
    "control": ("Control", DEFAULT_CONTROL),
}


def seconds(value: Any, name: str) -> float:
    """A time limit as a float. Raises ConfigError for anything but a number from 0 on."""
    number = float(value) if isinstance(value, Real) else math.nan
    if math.isnan(number) or number < 0:
        raise ConfigError(f"{name}={value!r}", hint="a number of seconds, 0 or more")
    return number


def duration(waited_s: float) -> str:
    """A time as a person says it."""
    return f"{round(waited_s, 2 if waited_s < 10 else 1):g} s"


class Connection:
    """A DEALER on an endpoint, for one thread (owner.py). Raises ConfigError.

    With `immediate`, sending without a connection raises zmq.Again, and what a broken one did not take is gone, as
    are answers over it that were not read. Every wait raises RequestRefused with the code `unauthorized` soon after
    the daemon has not let us in, and ConfigError when an HTTP server or another socket of the daemon is there.
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
        self.client_kind = _CLIENTS[socket_name][0]
        self.owner = Owner(self.client_kind)
        self.welcome: Welcome | None = None  # of the connection over which `ask` sent last
        self.reason: Reason | None = None  # why the client waits
        self.on_reason: Callable[[Reason], None] | None = None  # told about each new one
        self._socket_name = socket_name
        self._types = codec.table(ErrorReply, Welcome, *answers)
        if not isinstance(endpoint, str):
            raise ConfigError(f"an endpoint {endpoint!r}", hint="write tcp://HOST:PORT or ipc://PATH as text")
        if keys is not None and not isinstance(keys, CurveKeys):
            raise ConfigError(f"keys of type {type(keys).__name__}", hint="take CurveKeys.load(key, server_key)")
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._set_options(immediate=immediate)
        if keys is not None:
            keys.use(self.socket)
        self.handshakes = Handshakes(self.socket, endpoint, has_keys=keys is not None)
        try:
            self.socket.connect(endpoint)
        except (zmq.ZMQError, ValueError) as error:
            self.close()
            raise ConfigError(f"cannot connect to {endpoint}: {error}", hint="write tcp://HOST:PORT") from error

    def _set_options(self, *, immediate: bool) -> None:
        for option, value in (
            (zmq.LINGER, 0),  # what is not acked is the caller's to resend, not the socket's
            (zmq.IMMEDIATE, int(immediate)),
            (zmq.SNDHWM, 0),  # bounded by the callers
            (zmq.RCVHWM, 0),  # bounded by what we asked for
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS),
            (zmq.CONNECT_TIMEOUT, _CONNECT_MS),
        ):
            self.socket.setsockopt(option, value)

    def send(self, message: Message, *payload: bytes) -> None:
        """Sends without waiting: what can be under way is bounded by the callers. Raises TooLarge, zmq.Again."""
        header = codec.encode(message)
        if len(header) > MAX_HEADER_BYTES:
            raise TooLarge(f"{message.type}: a header of {len(header)} bytes", hint=f"at most {MAX_HEADER_BYTES}")
        self.socket.send_multipart([header, *payload], zmq.NOBLOCK)

    def receive(self, timeout_s: float) -> tuple[Message, list[bytes]] | None:
        """The next message and its payload, None after the timeout. Raises ProtocolError for what nobody may send."""
        if not self.await_event(zmq.POLLIN, timeout_s):
            return None
        header, *payload = self.socket.recv_multipart(zmq.NOBLOCK)
        return codec.decode(header, self._types, list_max=MAX_HEADER_BYTES), payload

    def await_event(self, event: int, timeout_s: float) -> bool:
        """Whether the socket can be read, or written, before the timeout. Raises RequestRefused if it has to wait."""
        if timeout_s <= 0:
            return bool(int(self.socket.getsockopt(zmq.EVENTS)) & event)
        deadline = time.monotonic() + timeout_s
        left_s = timeout_s
        while not self.socket.poll(max(1, int(min(left_s, _LOOK_S) * 1000)), event):
            self.handshakes.look()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
        return True

    def came_up(self) -> bool:
        """Whether the connection came up again since the last call. Raises as `Handshakes.look`."""
        self.handshakes.look()
        again = self.handshakes.came_up and self.handshakes.is_up
        self.handshakes.came_up = False
        return again

    def greet(self, hello: Hello, timeout_s: float, *, patience_s: float = math.inf) -> Welcome:
        """Says hello as soon as there is a connection, and returns the daemon's answer.

        A retryable refusal is tried again. Raises Unreachable once there has been no connection for `patience_s`
        if there never was one; DeadlineExceeded, RequestRefused, and ConfigError at the wrong socket.
        """
        began = time.monotonic()
        deadline, again_at = began + timeout_s, math.inf
        while True:
            now = time.monotonic()
            if self.came_up() or now >= again_at:
                again_at = math.inf
                self.say(hello)
            if now >= deadline or (now - began >= patience_s and self.is_out_of_reach()):
                raise self.too_late(now - began)
            self.note_connection()
            received = self.receive(min(deadline - now, _LOOK_S))
            if received is None:
                continue
            answer = received[0]
            if isinstance(answer, ErrorReply) and answer.n is None and answer.id is None:
                if not answer.retry:
                    raise RequestRefused(answer.code, answer.message, hint=answer.hint)
                self.note(answer.code, answer.message, answer.hint)
                again_at = time.monotonic() + (answer.retry_after_s or _HELLO_AGAIN_S)
            elif isinstance(answer, Welcome):
                self.check_socket(answer)
                self.reason = None
                return answer

    def check_socket(self, welcome: Welcome) -> None:
        """Raises ConfigError if this is another socket of the daemon."""
        if welcome.socket != self._socket_name:
            kind, default = _CLIENTS[self._socket_name]
            raise ConfigError(
                f"{self.endpoint} is the {welcome.socket} socket of the daemon",
                hint=f"a {kind} connects to its {self._socket_name} socket: option listen.{self._socket_name}, "
                f"by default {default}",
            )

    def note(self, code: str, message: str, hint: str) -> None:
        """Keeps why the client waits, and since when it waits for that."""
        known = self.reason if self.reason is not None and self.reason.code == code else None
        self.reason = Reason(code, message, hint, known.since if known else time.monotonic())
        if known is None and self.on_reason is not None:
            self.on_reason(self.reason)

    def note_connection(self) -> None:
        """The same for what is wrong with the connection, if anything is."""
        if not self.handshakes.is_up and (self.handshakes.finding or self.handshakes.was_up):
            found = self.handshakes.describe()
            self.note(Unreachable.code, found.text, found.hint)

    def is_out_of_reach(self) -> bool:
        """Whether there never was a connection, and a probe found that there cannot be one now."""
        shakes = self.handshakes
        return not shakes.was_up and shakes.finding is not None and not shakes.finding.connects

    def too_late(self, waited_s: float) -> DeadlineExceeded:
        """The error that says what is known."""
        if not self.handshakes.is_up:
            self.handshakes.settle(_SETTLE_S)
            found = self.handshakes.describe()
            self.note(Unreachable.code, found.text, found.hint)
            return Unreachable(f"{found.text}; tried for {duration(waited_s)}", hint=found.hint, reason=self.reason)
        what = f"no answer from {self.endpoint} in {duration(waited_s)}"
        if self.reason is not None:
            return DeadlineExceeded(f"{what}: {self.reason}", hint=self.reason.hint, reason=self.reason)
        return DeadlineExceeded(
            what, hint="it is connected: is the daemon busy, or stopped? its log tells; or wait for longer"
        )

    def say(self, message: Message) -> bool:
        """Sends if there is a connection. Whether it did."""
        return self._try_send(message, ())

    def hello(self, timeout_s: float, *, patience_s: float) -> Welcome:
        """The welcome over the connection that is up, or a new one's. Raises as `greet`."""
        self.welcome = self._welcome_of_connection(time.monotonic() + timeout_s, patience_s)
        return self.welcome

    def ask(
        self,
        id: int,
        build: Callable[[Welcome], tuple[Message, tuple[bytes, ...]]],
        timeout_s: float,
        *,
        patience_s: float,
        may_repeat: bool,
    ) -> tuple[Message, list[bytes]]:
        """Sends the request that `build` makes for a daemon, and returns the answer with its id.

        When the connection breaks meanwhile, a request that may be repeated is sent again over the next one. Raises
        as `greet`, what `build` raises, and Unreachable when the answer to another request cannot come any more.
        """
        began = time.monotonic()
        deadline = began + timeout_s
        is_sent = False
        while True:
            welcome = self._welcome_of_connection(deadline, patience_s)
            if is_sent and welcome is not self.welcome and not may_repeat:
                raise _lost(self.endpoint)
            if welcome is not self.welcome or not is_sent:
                self.welcome = welcome
                is_sent = self._try_send(*build(welcome))
            now = time.monotonic()
            if now >= deadline:
                raise self.too_late(now - began)
            received = self.receive(min(deadline - now, _LOOK_S))
            if received is None or getattr(received[0], "id", None) not in (id, None):
                continue  # or the late answer to a request that was given up
            answer, answer_payload = received
            if isinstance(answer, ErrorReply):
                raise RequestRefused(answer.code, answer.message, hint=answer.hint)
            if not isinstance(answer, Welcome):
                return answer, answer_payload

    def _welcome_of_connection(self, deadline: float, patience_s: float) -> Welcome:
        """The last one, or a new one if the connection is new."""
        if not self.came_up() and self.welcome is not None:
            return self.welcome
        self.handshakes.came_up = self.handshakes.is_up  # nothing was said over it yet
        return self.greet(Hello(), deadline - time.monotonic(), patience_s=patience_s)

    def _try_send(self, request: Message, payload: tuple[bytes, ...]) -> bool:
        if not self.handshakes.is_up:
            return False
        try:
            self.send(request, *payload)
        except zmq.Again:
            self.handshakes.is_up = False
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self, linger_ms: int = 0) -> None:
        """Closes the socket. What is not sent yet gets that long, behind our back."""
        if not self.socket.closed:
            self.handshakes.close()
            self.socket.close(linger_ms)


def _lost(endpoint: str) -> DeadlineExceeded:
    return Unreachable(
        f"the connection to {endpoint} broke before the answer came; the command may have been carried out",
        hint="ffstream status",
    )
