"""What the three sockets share: one thread, one ROUTER socket, batches of messages in, replies out.

The socket belongs to the thread. A message that breaks the protocol is answered and counted here, once, whatever the
socket; an unexpected exception ends the loop and is reported, because a loop that limps is worse than one that ends.
With a guard, libzmq encrypts and the ZAP thread admits; whose key was taken away meanwhile is refused here.
"""

import ctypes
import logging
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import zmq

from ffstream.config import Limits
from ffstream.errors import BadFrames, ConfigError, FFStreamError, TooLarge, Unauthorized, Unavailable
from ffstream.metrics import Metrics
from ffstream.server import ipc
from ffstream.server.access import Guard
from ffstream.server.handshakes import HandshakeWatch
from ffstream.server.refusals import Refusals, RejectionLog
from ffstream.util.endpoints import listens_on_ipv6
from ffstream.util.os_errors import listen_error
from ffstream.util.threads import OnFailure, Worker
from ffstream.wire import codec
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import MAX_HEADER_BYTES, SENT_TO, ErrorReply, Message, Ping, Pong, Welcome

_LINGER_MS = 1000  # for replies under way when the socket closes
_POLL_MS = 100
_NOW = int(zmq.NOBLOCK)
_SLACK = 2  # times the longest frame that is taken: so long a one is answered
_CURVE_BYTES = 33  # that encryption adds to a frame
_STRANGERS_MAX = 1000  # peers remembered as refused, so that each is logged once
_REFUSED_MAX = 32  # a turn
_FRAMES_MAX = 4  # more than any message has; the rest is read and dropped
_ROUTING_ID_BYTES = 5  # of an id that the ROUTER gave itself, beginning with 0
_REQUEST_ID_BYTES = 4
_SILENT_MAX = 3  # unanswered keepalive probes after which a peer is gone


def _seed_routing_ids() -> None:
    """Before a ROUTER is made. It numbers its peers from a random number on, and libzmq 4.3 seeds nothing: always the
    same one. Who knows it can take a number that is about to be given, and at that libzmq aborts the process.
    """
    seed = getattr(ctypes.CDLL(None), "srand", None)
    if seed is not None:
        seed(secrets.randbits(32))


class Received(NamedTuple):
    """One message: whom to answer, the decoded header, the payload frames, and with a guard the sender's key."""

    peer: bytes
    message: Message
    payload: list[bytes]
    key: str = ""
    header: zmq.Frame | None = None  # as it came: libzmq knows its sender's address

    def sender(self) -> str:
        """Who sent it, for a log line: the address, and where they are known the client's name and key."""
        client = getattr(self.message, "client", None)
        name = f" client={client!r}" if client is not None else ""
        return f"{_address(self.header)}{name}{f' key={self.key}' if self.key else ''}"


def _address(frame: zmq.Frame | None) -> str:
    """The sender's IP address (libzmq knows no port); for an ipc endpoint what libzmq says instead."""
    try:
        return f"address={frame.get('Peer-Address')}" if frame is not None else "address=unknown"
    except zmq.ZMQError:  # its transport has none
        return "address=unknown"


def _split_envelope(frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What a REQ socket puts before a message (an empty frame; two frames with REQ_CORRELATE), and the message."""
    if len(frames) > 1 and not frames[0]:
        return frames[:1], frames[1:]
    if len(frames) > 2 and len(frames[0]) == _REQUEST_ID_BYTES and not frames[1]:
        return frames[:2], frames[2:]
    return [], frames


class RouterLoop(ABC):
    """A thread that serves one socket. `bind` it, `start` it, `stop` it."""

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
        self.endpoint = ""
        self._types = codec.table(*SENT_TO[name])
        self._checker = checker
        self._boot = boot
        self._payload_max_bytes = payload_max_bytes
        self._limits = limits
        self._metrics = metrics
        self._guard: Guard | None = None
        self._claim: ipc.IpcClaim | None = None
        self._strangers: set[bytes] = set()
        self._refusals = Refusals(name, metrics)
        self._rejections = RejectionLog("rejected", name)
        self._batch_messages = batch_messages
        self._batch_bytes = batch_bytes
        self._stopping = threading.Event()
        self.thread = Worker(self.name, self._serve, on_failure)

    def bind(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, guard: Guard | None = None) -> str:
        """Opens the socket; returns its endpoint, with the port if a wildcard was given. Raises ConfigError, or
        StartBlocked for what may pass."""
        _seed_routing_ids()
        option = f"listen.{self.socket_name}"
        self._claim = ipc.claim(option, endpoint)
        try:
            with ExitStack() as undo:
                undo.callback(self.release)
                opened = self._open(context, endpoint, guard, undo)
                undo.pop_all()
        except zmq.ZMQError as error:
            raise listen_error(option, endpoint, error) from error
        self._socket, self._handshakes = opened
        self._guard = guard
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return self.endpoint

    def _open(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, guard: Guard | None, undo: ExitStack
    ) -> tuple[zmq.Socket[bytes], HandshakeWatch]:
        """The bound socket. Adds to `undo` how to close it: an open socket would keep the context from ending."""
        socket = context.socket(zmq.ROUTER)
        undo.callback(socket.close)
        ended = self._metrics.connections_ended.labels(self.socket_name)
        handshakes = HandshakeWatch(socket, self._refusals, ended, self._limits.handshake_timeout_s)
        undo.callback(handshakes.close)
        # Not for all: with it libzmq writes 127.0.0.1 as ::ffff:127.0.0.1, and an interface is its IPv6 address.
        socket.setsockopt(zmq.IPV6, listens_on_ipv6(endpoint))
        try:
            self._set_options(socket, guard)
        except (zmq.ZMQError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {endpoint}: ZeroMQ does not take a value of [limits]: {error}",
                hint="set those that you have changed nearer to their defaults; see ffstream config show",
            ) from error
        socket.bind(endpoint)
        return socket, handshakes

    def release(self) -> None:
        """Lets another daemon listen on the same path. Call it once the context has ended."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _set_options(self, socket: zmq.Socket[bytes], guard: Guard | None) -> None:
        limits = self._limits
        # libzmq closes the connection over a longer frame, and tells neither side why. One that is a little too long
        # gets an answer.
        frame_max = _SLACK * max(self._payload_max_bytes, MAX_HEADER_BYTES)
        socket.setsockopt(zmq.MAXMSGSIZE, frame_max + (_CURVE_BYTES if guard else 0))
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a reply to nobody is an error, not silence
        socket.setsockopt(zmq.RCVHWM, limits.receive_queue_messages)
        socket.setsockopt(zmq.SNDHWM, limits.reply_queue_messages)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        # TCP asks whether a silent peer is there. ZMTP heartbeats come from clients alone: libzmq 4.3 aborts the
        # process when its own find a peer dead whose queue was full.
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, max(1, round(limits.heartbeat_s)))
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, max(1, round(limits.heartbeat_s)))
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, _SILENT_MAX)
        # Keepalive asks only where nothing is under way. A peer that has vanished with data unacknowledged, or takes
        # none, has as long.
        socket.setsockopt(zmq.TCP_MAXRT, round(1000 * limits.heartbeat_s * (1 + _SILENT_MAX)))
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(limits.handshake_timeout_s * 1000))
        if guard is not None:
            guard.protect(socket)

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    @property
    def serves(self) -> bool:
        """Whether messages are answered now."""
        return self.thread.is_alive() and not self._stopping.is_set()

    def stop(self, timeout_s: float) -> bool:
        """Ends the loop after the batch in hand, and closes the socket. False if the deadline passed."""
        self._stopping.set()
        if not self.thread.was_started:
            self._close()  # bound, never started
        return self.thread.join(timeout_s)

    def _serve(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
            self.finish()
        finally:
            self._close()

    def _close(self) -> None:
        self._rejections.flush(everything=True)
        self._handshakes.close()
        self._socket.close()

    def _turn(self) -> None:
        with self.thread.waiting():
            there_is_more = self._socket.poll(self._poll_ms())
        if there_is_more:
            batch = self._receive()
            if batch:
                self.handle(batch)
        self.idle()
        self._handshakes.look()
        self._rejections.flush()

    def _poll_ms(self) -> int:
        return _POLL_MS

    def _receive(self) -> list[Received]:
        """What waits on the socket, up to the batch limits. Bad messages are answered on the way."""
        batch: list[Received] = []
        size = refused = 0
        for _ in range(self._batch_messages):
            try:
                peer, frames, header = self._receive_one()
            except zmq.Again:
                break
            try:
                key = self._check_key(self._guard, peer, header) if self._guard is not None else ""
                received = self._decode(peer, frames, key, header)
            except FFStreamError as error:
                self._refuse_unread(peer, frames, header, error)
                refused += 1
                if refused >= _REFUSED_MAX:
                    break  # the good ones among them wait no longer for the bad ones behind
                continue
            if received is None:
                continue
            batch.append(received)
            size += sum(map(len, frames))
            if size >= self._batch_bytes:
                break
        return batch

    def _receive_one(self) -> tuple[bytes, list[bytes], zmq.Frame]:
        """One message; zmq.Again if there is none. A frame knows whether more follow; to ask the socket is slower."""
        peer = self._socket.recv(_NOW)
        header = frame = self._socket.recv(_NOW, copy=False)
        frames = [frame.bytes]
        while frame.more:
            frame = self._socket.recv(_NOW, copy=False)
            if len(frames) < _FRAMES_MAX:
                frames.append(frame.bytes)
            else:
                self.thread.progressed()  # millions of them take a while: that is no standstill
        return peer, frames, header

    def _check_key(self, guard: Guard, peer: bytes, frame: zmq.Frame) -> str:
        """The sender's key. Raises Unauthorized if that is in the folder no more, though its connection is there."""
        try:
            key = str(frame.get("User-Id"))
        except zmq.ZMQError:  # nobody was asked about this connection
            key = ""
        if key in guard.keyring.admitted:
            return key
        if peer not in self._strangers:
            if len(self._strangers) >= _STRANGERS_MAX:
                self._strangers.clear()
            self._strangers.add(peer)
            self._refusals.count("key_removed", f"key={key}")
        raise Unauthorized("this client's key is admitted no more", hint=f"it was taken out of {guard.name}_clients")

    def _decode(self, peer: bytes, frames: list[bytes], key: str, header: zmq.Frame) -> Received | None:
        if len(peer) != _ROUTING_ID_BYTES or peer[0]:
            raise BadFrames(
                "this socket has set a routing id",
                hint="do not set ZMQ_ROUTING_ID (ZMQ_IDENTITY): of two connections with the same one, one is ignored",
            )
        message = codec.decode(frames[0], self._types, socket=self.socket_name)
        for frame in frames[1:]:
            if len(frame) > self._payload_max_bytes and self._payload_max_bytes:
                raise TooLarge(f"{len(frame)} bytes of payload", hint=f"at most {self._payload_max_bytes} in a frame")
        if isinstance(message, Ping):
            pong = Pong(socket=self.socket_name, boot=self._boot, credit=self.credit(), **self._why_refusing())
            self.reply(peer, pong)
            return None
        return Received(peer, message, frames[1:], key, header)

    def _refuse_unread(self, peer: bytes, frames: list[bytes], header: zmq.Frame, error: FFStreamError) -> None:
        """Answers a message that did not decode, under its `n` or `id` if these can be read."""
        envelope, message = _split_envelope(frames)
        if envelope:
            error = BadFrames("an empty frame comes before the header", hint="use a DEALER socket, not REQ")
        n, id = codec.subject(message[0])
        self.refuse(peer, error, sender=_address(header), n=n, id=id, envelope=envelope)

    def refuse(
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

        The frames of `envelope` go before the header: a REQ socket reads no answer without them.
        """
        self._metrics.messages_rejected.labels(error.code).inc()
        retry = isinstance(error, Unavailable)
        # What may be sent again is a limit at work, and no fault of a client's.
        level = logging.INFO if retry else logging.WARNING
        self._rejections.add(error.code, f"{sender} message={error.message!r} hint={error.hint!r}", level)
        answer = ErrorReply(
            code=error.code,
            message=error.message,
            hint=error.hint,
            retry=retry,
            n=n,
            id=id,
            retry_after_s=error.retry_after_s if isinstance(error, Unavailable) else None,
        )
        if envelope:
            self._send([peer, *envelope, codec.encode(answer)])
        else:
            self.reply(peer, answer)

    def welcome(self, peer: bytes, *, next: int = 0) -> None:
        """Answers a `hello`."""
        checker = self._checker
        welcome = Welcome(
            socket=self.socket_name,
            boot=self._boot,
            max_samples=checker.max_samples,
            max_bytes=self._payload_max_bytes,
            inputs=checker.inputs,
            image_shape=checker.image_shape,
            labels=checker.labels,
            next=next,
            credit=self.credit(),
            **self._why_refusing(),
        )
        self.reply(peer, welcome)

    def _why_refusing(self) -> dict[str, str]:
        error = self.refusal()
        return {} if error is None else {"refusing": error.code, "message": error.message, "hint": error.hint}

    def reply(self, peer: bytes, message: Message, *payload: bytes) -> None:
        """Sends without waiting. A peer that is gone or does not read loses its reply, and nobody else notices."""
        self._send([peer, codec.encode(message), *payload])

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._metrics.replies_dropped.inc()

    def credit(self) -> int:
        """Messages that a client may have unanswered; 0 on sockets without a window."""
        return 0

    def refusal(self) -> Unavailable | None:
        """Why every sample is refused at present; None on sockets that take none."""
        return None

    @abstractmethod
    def handle(self, batch: list[Received]) -> None:
        """Serves messages that decoded well. Raises nothing for what a client did."""

    def idle(self) -> None:  # noqa: B027 - most loops have nothing to do
        """Called after each turn."""

    def finish(self) -> None:  # noqa: B027
        """Called after the last turn, while replies can still be sent."""
