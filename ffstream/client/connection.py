"""What the clients share: one DEALER socket, owned by the thread that uses it, and deadlines on every wait."""

import time
from typing import Self

import zmq

from ffstream.client.handshakes import Handshakes
from ffstream.client.keys import CurveKeys
from ffstream.errors import ConfigError, DeadlineExceeded, RequestRefused
from ffstream.wire import codec
from ffstream.wire.messages import MAX_HEADER_BYTES, ErrorReply, Message

_HEARTBEAT_MS = 2_000
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1_000
_LOOK_S = 0.1  # between two looks at whether the daemon lets us in


class Connection:
    """A DEALER on an endpoint. Not for sharing between threads, nor across a fork. Raises ConfigError.

    With `immediate`, sending without a connection raises zmq.Again, and what a broken one did not take is gone.
    Every wait raises RequestRefused with the code `unauthorized` soon after the daemon has not let us in.
    """

    def __init__(
        self,
        endpoint: str,
        answers: tuple[type[Message], ...],
        *,
        immediate: bool = False,
        keys: CurveKeys | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._types = codec.table(ErrorReply, *answers)
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)  # what is not acked is the caller's to resend, not the socket's
        self.socket.setsockopt(zmq.IMMEDIATE, int(immediate))
        self.socket.setsockopt(zmq.SNDHWM, 0)  # bounded by the callers
        self.socket.setsockopt(zmq.RCVHWM, 0)  # bounded by what we asked for
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        if keys is not None:
            keys.use(self.socket)
        self.handshakes = Handshakes(self.socket, endpoint, has_keys=keys is not None)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot connect to {endpoint}: {error}", hint="write tcp://HOST:PORT") from error

    def send(self, message: Message, *payload: bytes) -> None:
        """Sends without waiting: what can be under way is bounded by the callers."""
        self.socket.send_multipart([codec.encode(message), *payload], zmq.NOBLOCK)

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
        while not self.socket.poll(max(0, int(min(left_s, _LOOK_S) * 1000)), event):
            self.handshakes.look()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
        return True

    def ask(
        self, id: int, request: Message, payload: tuple[bytes, ...], timeout_s: float
    ) -> tuple[Message, list[bytes]]:
        """Sends a request and returns the answer with its id. Raises RequestRefused or DeadlineExceeded."""
        deadline = time.monotonic() + timeout_s
        self._send_before(deadline, request, *payload)
        while (left_s := deadline - time.monotonic()) > 0:
            received = self.receive(left_s)
            if received is None:
                break
            answer, answer_payload = received
            if getattr(answer, "id", None) not in (id, None):
                continue  # the late answer to a request that was given up
            if isinstance(answer, ErrorReply):
                raise RequestRefused(answer.code, answer.message, hint=answer.hint)
            return answer, answer_payload
        raise DeadlineExceeded(
            f"no answer from {self.endpoint} in {timeout_s:g} s", hint="does the daemon run there?"
        )

    def _send_before(self, deadline: float, message: Message, *payload: bytes) -> None:
        """Without a connection to wait for, because the last one was refused, there is nowhere to send to."""
        while True:
            try:
                self.send(message, *payload)
                return
            except zmq.Again:
                if not self.await_event(zmq.POLLOUT, deadline - time.monotonic()):
                    return  # then there is no answer either

    def close(self, linger_ms: int = 0) -> None:
        """Closes the socket. What is not sent yet gets that long, behind our back."""
        self.handshakes.close()
        self.socket.close(linger_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
