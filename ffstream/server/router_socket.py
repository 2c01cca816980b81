"""Opens and binds the ROUTER socket of a loop, with its limits, its authentication and its handshake monitor."""

import ctypes
import secrets
from contextlib import ExitStack

import zmq

from ffstream.config import Limits
from ffstream.errors import ConfigError
from ffstream.metrics import Metrics
from ffstream.server import ipc
from ffstream.server.access import Guard
from ffstream.server.handshakes import HandshakeMonitor
from ffstream.server.rejections import RejectedConnections
from ffstream.util.endpoints import listens_on_ipv6
from ffstream.util.os_errors import listen_error
from ffstream.wire.messages import MAX_HEADER_BYTES

_LINGER_MS = 1000  # for replies that are not sent yet when the socket is closed
_FRAME_FACTOR = 2  # frames up to this multiple of the limit are received, and answered with an error
_CURVE_BYTES = 33  # that encryption adds to a frame
_KEEPALIVE_PROBES = 3  # without an answer, after which a peer counts as gone


class RouterSocket:
    """A bound socket. `endpoint` has the port that was chosen for a wildcard."""

    def __init__(
        self,
        name: str,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        limits: Limits,
        payload_max_bytes: int,
        metrics: Metrics,
        rejections: RejectedConnections,
        guard: Guard | None,
    ) -> None:
        """Raises ConfigError or StartBlocked. Then nothing stays open."""
        _seed_routing_ids()
        option = f"listen.{name}"
        self._lock = ipc.lock(option, endpoint)
        try:
            with ExitStack() as undo:
                undo.callback(self.release)
                self.socket = context.socket(zmq.ROUTER)
                undo.callback(self.socket.close)  # an open socket would keep the context from ending
                ended = metrics.connections_ended.labels(name)
                self.handshakes = HandshakeMonitor(self.socket, rejections, ended, limits.handshake_timeout_s)
                undo.callback(self.handshakes.close)
                # Only where needed: with it libzmq reports 127.0.0.1 as ::ffff:127.0.0.1, and uses the IPv6 address
                # of an interface.
                self.socket.setsockopt(zmq.IPV6, listens_on_ipv6(endpoint))
                try:
                    _set_options(self.socket, limits, payload_max_bytes, guard)
                except (zmq.ZMQError, OverflowError) as error:
                    raise ConfigError(
                        f"cannot listen on {endpoint}: ZeroMQ rejects a value in [limits]: {error}",
                        hint="set the values that you changed closer to their defaults; see ffstream config show",
                    ) from error
                self.socket.bind(endpoint)
                undo.pop_all()
        except zmq.ZMQError as error:
            raise listen_error(option, endpoint, error) from error
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        """Closes the socket. For its own thread."""
        self.handshakes.close()
        self.socket.close()

    def release(self) -> None:
        """Lets another daemon listen on the same path. Call it when the context has ended."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _seed_routing_ids() -> None:
    """Seeds the random number from which on a ROUTER numbers its peers. Call it before a ROUTER is created.

    libzmq 4.3 does not seed it, so it would always be the same. A peer that knows the number can choose a routing id
    that the ROUTER is about to assign, and then libzmq aborts the process.
    """
    seed = getattr(ctypes.CDLL(None), "srand", None)
    if seed is not None:
        seed(secrets.randbits(32))


def _set_options(socket: zmq.Socket[bytes], limits: Limits, payload_max_bytes: int, guard: Guard | None) -> None:
    # Over a longer frame libzmq closes the connection and tells neither side why. A frame that is not much too long
    # gets an answer.
    frame_max = _FRAME_FACTOR * max(payload_max_bytes, MAX_HEADER_BYTES)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_max + (_CURVE_BYTES if guard else 0))
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a reply to a peer that is gone is an error, so it can be counted
    socket.setsockopt(zmq.RCVHWM, limits.receive_queue_messages)
    socket.setsockopt(zmq.SNDHWM, limits.reply_queue_messages)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    # TCP keepalive finds peers that are gone. ZMTP heartbeats are sent by clients only: libzmq 4.3 aborts the process
    # when its own heartbeat finds a dead peer whose queue was full.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, max(1, round(limits.heartbeat_s)))
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, max(1, round(limits.heartbeat_s)))
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, _KEEPALIVE_PROBES)
    # Keepalive does not probe while data is unacknowledged. Then a peer that does not acknowledge has as much time.
    socket.setsockopt(zmq.TCP_MAXRT, round(1000 * limits.heartbeat_s * (1 + _KEEPALIVE_PROBES)))
    socket.setsockopt(zmq.HANDSHAKE_IVL, int(limits.handshake_timeout_s * 1000))
    if guard is not None:
        guard.protect(socket)
