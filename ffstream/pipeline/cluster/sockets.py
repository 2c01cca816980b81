"""Sockets between the daemon and its stages.

Only stages listen, on ports that the system chooses. The first message of a connection is the token of the run; what
does not begin with it is dropped. Beyond loopback CURVE encrypts and authenticates: each stage makes keys of its own
for each run, and only public keys pass through Ray.
"""

import secrets
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import zmq
from zmq.auth.thread import ThreadAuthenticator

HEARTBEAT_MS: Final = 1_000
LINGER_MS: Final = 5_000  # for the last messages of a run

Socket = zmq.Socket[bytes]


class Keys(NamedTuple):
    """A CURVE key pair, in Z85."""

    public: str
    secret: str

    @classmethod
    def new(cls) -> "Keys":
        """A fresh one."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


class Allowed:
    """The public keys that may connect to the stages of this process."""

    def __init__(self) -> None:
        self._keys: frozenset[str] = frozenset()

    def only(self, keys: Iterable[str]) -> None:
        """These, and no others."""
        self._keys = frozenset(keys)

    def callback(self, domain: str, key: bytes) -> bool:
        """Asked by the authenticator."""
        return key.decode() in self._keys


def authenticate(context: "zmq.Context[Any]", allowed: Allowed) -> ThreadAuthenticator:
    """Starts the authenticator of a process."""
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback("*", allowed)
    return authenticator


def listening(context: "zmq.Context[Any]", host: str, keys: Keys | None) -> tuple[Socket, int]:
    """A bound socket for one peer, and its port."""
    socket = _pair(context)
    if keys is not None:
        socket.curve_server = True
        socket.curve_secretkey = keys.secret.encode()
    return socket, socket.bind_to_random_port(f"tcp://{_bracketed(host)}")


def connected(
    context: "zmq.Context[Any]", host: str, port: int, token: str, keys: Keys | None, server_key: str
) -> Socket:
    """A socket that is connecting to a stage. It has sent the token."""
    socket = _pair(context)
    if keys is not None:
        socket.curve_publickey = keys.public.encode()
        socket.curve_secretkey = keys.secret.encode()
        socket.curve_serverkey = server_key.encode()
    socket.connect(f"tcp://{_bracketed(host)}:{port}")
    socket.send(token.encode())
    return socket


def monitor_of(socket: Socket) -> Socket:
    """Gets a message when the connection of `socket` ends.

    `socket.disable_monitor()` comes before either of them is closed: a closed socket lives on while it delivers what
    was sent, and its next event would block ZeroMQ's own thread for ever, if nobody could receive it.
    """
    # An address of its own: the default names a descriptor, which may have belonged to another socket just now.
    return socket.get_monitor_socket(zmq.EVENT_DISCONNECTED, f"inproc://monitor-{secrets.token_hex(8)}")


class Opened:
    """The messages of a connection after the token with which it must begin; all of them if there is no token."""

    def __init__(self, socket: Socket, token: str | None) -> None:
        self.socket = socket
        self._monitor = monitor_of(socket)
        self._token = (token or "").encode()
        self._is_open = token is None

    def receive(self) -> list[zmq.Frame] | None:
        """The frames of the next message, if there is one."""
        while True:
            try:
                frames: list[Any] = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            if self._is_open:
                return frames
            self._is_open = len(frames) == 1 and frames[0].bytes == self._token

    @property
    def is_cut(self) -> bool:
        """Whether the connection has ended, so that messages may be lost."""
        return bool(self._monitor.poll(0))

    def close(self) -> None:
        """Closes the socket. What was sent is still delivered."""
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close()


def poller_of(*sockets: Socket) -> zmq.Poller:
    """Waits for a message from any of them."""
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    return poller


def _pair(context: "zmq.Context[Any]") -> Socket:
    socket: Socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.IPV6, 1)
    for option in (zmq.SNDHWM, zmq.RCVHWM):
        socket.setsockopt(option, 0)  # credits bound what is on its way
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    return socket


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
