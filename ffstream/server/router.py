"""What the three sockets have in common: a thread that receives batches of messages from a ROUTER socket and replies.

Only this thread uses the socket. Messages that violate the protocol are answered and counted here, for every socket.
An unexpected exception ends the loop and is reported: the daemon then stops. If the socket has a guard, libzmq
encrypts and the ZAP thread checks keys when a client connects; a key that was removed later is checked here.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import zmq

from ffstream.config import Limits
from ffstream.errors import BadFrames, FFStreamError, TooLarge, Unauthorized, Unavailable
from ffstream.metrics import Metrics
from ffstream.server.access import Guard
from ffstream.server.received import Received, add_frame, address_of, check_peer, split_envelope
from ffstream.server.rejections import RejectedConnections, RejectionLog
from ffstream.server.router_socket import RouterSocket
from ffstream.util.threads import OnFailure, Worker
from ffstream.wire import codec
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import SENT_TO, ErrorReply, Message, Ping, Pong, Welcome

_POLL_MS = 100
_NOW = int(zmq.NOBLOCK)
_REMOVED_MAX = 1000  # peers whose key was removed, remembered so that each is logged once
_REJECTED_MAX = 32  # messages in a batch; then the valid ones are handled first


class RouterLoop(ABC):
    """A thread that serves one socket: `bind` it, `start` it, `stop` it."""

    def __init__(
        self,
        name: str,
        limits: Limits,
        metrics: Metrics,
        on_failure: OnFailure,
        *,
        checker: ImageChecker,
        boot: str,
        payload_max_bytes: int,
        batch_messages: int,
        batch_bytes: int,
    ) -> None:
        self.name = f"ff-{name}"
        self.socket_name = name
        self._types = codec.table(*SENT_TO[name])
        self._checker = checker
        self.boot = boot  # a replica replaces it by that of the daemon that it follows
        self._payload_max_bytes = payload_max_bytes
        self._limits = limits
        self._metrics = metrics
        self._guard: Guard | None = None
        self._removed: set[bytes] = set()  # peers whose key was removed
        self._rejected_connections = RejectedConnections(name, metrics)
        self._rejected_messages = RejectionLog("message rejected", name)
        self._batch_messages = batch_messages
        self._batch_bytes = batch_bytes
        self._stopping = threading.Event()
        self.thread = Worker(self.name, self._serve, on_failure)

    def bind(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, guard: Guard | None = None) -> None:
        """Opens and binds the socket. Raises ConfigError, or StartBlocked if it may succeed later."""
        self._guard = guard
        self._bound = RouterSocket(
            self.socket_name,
            context,
            endpoint,
            limits=self._limits,
            payload_max_bytes=self._payload_max_bytes,
            metrics=self._metrics,
            rejections=self._rejected_connections,
            guard=guard,
        )
        self._socket = self._bound.socket

    @property
    def endpoint(self) -> str:
        """Where the socket is bound."""
        return self._bound.endpoint

    def release(self) -> None:
        """Lets another daemon listen on the same path. Call it when the context has ended."""
        self._bound.release()

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    @property
    def serves(self) -> bool:
        """Whether messages are answered now."""
        return self.thread.is_alive() and not self._stopping.is_set()

    def stop(self, timeout_s: float) -> bool:
        """Ends the loop after the current batch and closes the socket. False if the deadline passed."""
        self._stopping.set()
        if not self.thread.was_started:
            self._close()
        return self.thread.join(timeout_s)

    def _serve(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
            self.finish()
        finally:
            self._close()

    def _close(self) -> None:
        self._rejected_messages.flush(everything=True)
        self._bound.close()

    def _turn(self) -> None:
        with self.thread.waiting():
            has_message = self._socket.poll(self._poll_ms())
        if has_message:
            batch = self._receive()
            if batch:
                self.handle(batch)
        self.idle()
        self._bound.handshakes.poll()
        self._rejected_messages.flush()

    def _poll_ms(self) -> int:
        return _POLL_MS

    # --- receiving -------------------------------------------------------------------------------------------------

    def _receive(self) -> list[Received]:
        """The messages that are queued, up to the limits of a batch. Invalid ones are answered with an error."""
        batch: list[Received] = []
        size = rejected = 0
        for _ in range(self._batch_messages):
            try:
                peer, frames, header = self._receive_one()
            except zmq.Again:
                break
            try:
                key = self._check_key(self._guard, peer, header) if self._guard is not None else ""
                received = self._decode(peer, frames, key, header)
            except FFStreamError as error:
                self._reject_undecoded(peer, frames, header, error)
                rejected += 1
                if rejected >= _REJECTED_MAX:
                    break
                continue
            if received is None:
                continue
            batch.append(received)
            size += sum(map(len, frames))
            if size >= self._batch_bytes:
                break
        return batch

    def _receive_one(self) -> tuple[bytes, list[bytes], zmq.Frame]:
        """The next message. Raises zmq.Again if there is none."""
        peer = self._socket.recv(_NOW)
        header = frame = self._socket.recv(_NOW, copy=False)
        frames = [frame.bytes]
        while frame.more:  # faster than asking the socket
            frame = self._socket.recv(_NOW, copy=False)
            if not add_frame(frames, frame):
                self.thread.progressed()  # a message may have millions of frames: the loop is not stuck
        return peer, frames, header

    def _check_key(self, guard: Guard, peer: bytes, frame: zmq.Frame) -> str:
        """Returns the sender's key. Raises Unauthorized if it was removed after the client had connected."""
        try:
            key = str(frame.get("User-Id"))
        except zmq.ZMQError:  # the connection was not authenticated
            key = ""
        if guard.admits(key):
            return key
        raise self._key_removed(guard, peer, key)

    def _key_removed(self, guard: Guard, peer: bytes, key: str) -> Unauthorized:
        """The error for a client whose key was removed. It is counted and logged once for each connection."""
        if peer not in self._removed:
            if len(self._removed) >= _REMOVED_MAX:
                self._removed.clear()
            self._removed.add(peer)
            self._rejected_connections.add("key_removed", f"key={key}")
        return Unauthorized(
            "this client's key is no longer accepted", hint=f"it was removed from {' or '.join(guard.keyrings)}"
        )

    def _decode(self, peer: bytes, frames: list[bytes], key: str, header: zmq.Frame) -> Received | None:
        """The message, or None if it was a ping and is answered. Raises a ProtocolError."""
        check_peer(peer)
        message = codec.decode(frames[0], self._types, socket=self.socket_name)
        for frame in frames[1:]:
            if len(frame) > self._payload_max_bytes and self._payload_max_bytes:
                raise TooLarge(f"{len(frame)} bytes of payload", hint=f"at most {self._payload_max_bytes} in a frame")
        if isinstance(message, Ping):
            pong = Pong(socket=self.socket_name, boot=self.boot, credit=self.credit(), **self._rejection_fields())
            self.reply(peer, pong)
            return None
        return Received(peer, message, frames[1:], key, header, time.perf_counter())

    # --- replying --------------------------------------------------------------------------------------------------

    def _reject_undecoded(self, peer: bytes, frames: list[bytes], header: zmq.Frame, error: FFStreamError) -> None:
        """Answers an invalid message, with its `n` or `id` if these can be decoded."""
        envelope, message = split_envelope(frames)
        if envelope:
            error = BadFrames("an empty frame comes before the header", hint="use a DEALER socket, not REQ")
        n, id = codec.subject(message[0])
        self.reject(peer, error, sender=address_of(header), n=n, id=id, envelope=envelope)

    def reject(
        self,
        peer: bytes,
        error: FFStreamError,
        *,
        sender: str,
        n: int | None = None,
        id: int | None = None,
        envelope: Sequence[bytes] = (),
    ) -> None:
        """Answers with an error, counts it by its code, and logs it with its `sender`.

        The frames of `envelope` are sent before the header: a REQ socket cannot read an answer without them.
        """
        self.note_rejection(error, sender)
        answer = ErrorReply(
            code=error.code,
            message=error.message,
            hint=error.hint,
            retry=isinstance(error, Unavailable),
            n=n,
            id=id,
            retry_after_s=error.retry_after_s if isinstance(error, Unavailable) else None,
        )
        if envelope:
            self._send([peer, *envelope, codec.encode(answer)])
        else:
            self.reply(peer, answer)

    def note_rejection(self, error: FFStreamError, sender: str) -> None:
        """Counts and logs a message that is rejected."""
        self._metrics.messages_rejected.labels(error.code).inc()
        # A message that may be sent again has met a limit. That is not the client's fault.
        level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
        self._rejected_messages.add(error.code, f"{sender} message={error.message!r} hint={error.hint!r}", level)

    def welcome(self, peer: bytes, *, next: int = 0) -> None:
        """Answers a `hello`."""
        checker = self._checker
        welcome = Welcome(
            socket=self.socket_name,
            boot=self.boot,
            max_samples=checker.max_samples,
            max_bytes=self._payload_max_bytes,
            inputs=checker.inputs,
            image_shape=checker.image_shape,
            labels=checker.labels,
            unlabelled=checker.unlabelled,
            next=next,
            credit=self.credit(),
            **self._rejection_fields(),
        )
        self.reply(peer, welcome)

    def _rejection_fields(self) -> dict[str, str]:
        error = self.rejection_reason()
        if error is None:
            return {"message": note} if (note := self.note()) else {}
        return {"refusing": error.code, "message": error.message, "hint": error.hint}

    def reply(self, peer: bytes, message: Message, *payload: bytes) -> None:
        """Sends without blocking. If the peer is gone or does not read, the reply is dropped and counted."""
        self._send([peer, codec.encode(message), *payload])

    def reply_tracked(
        self, peer: bytes, message: Message, payload: Sequence[memoryview]
    ) -> zmq.MessageTracker | None:
        """As `reply`, with a payload that is not copied. The tracker says when libzmq no longer needs it; None if
        the reply was dropped."""
        return self._send([peer, codec.encode(message), *payload], track=True)

    def _send(self, frames: Sequence[bytes | memoryview], *, track: bool = False) -> zmq.MessageTracker | None:
        try:
            return self._socket.send_multipart(frames, zmq.NOBLOCK, copy=not track, track=track)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._metrics.replies_dropped.inc()
            return None

    # --- for the three loops
    # -----------------------------------------------------------------------------------------

    def credit(self) -> int:
        """Messages that a client may have unanswered; 0 on sockets without a window."""
        return 0

    def rejection_reason(self) -> Unavailable | None:
        """Why every sample is rejected at present; None if samples are accepted, and on other sockets."""
        return None

    def note(self) -> str:
        """A remark in `welcome` and `pong` while nothing is rejected."""
        return ""

    @abstractmethod
    def handle(self, batch: list[Received]) -> None:
        """Serves valid messages. Must not raise because of what a client has sent."""

    def idle(self) -> None:  # noqa: B027 - most loops have nothing to do
        """Called after each turn."""

    def finish(self) -> None:  # noqa: B027
        """Called after the last turn, while replies can still be sent."""
