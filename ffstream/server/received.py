"""A message as a ROUTER receives it: the peer that it came from, and the frames."""

from typing import NamedTuple

import zmq

from ffstream.errors import BadFrames
from ffstream.wire.messages import Message

_FRAMES_MAX = 4  # more than any message has; further frames are dropped
_ROUTING_ID_BYTES = 5  # of an id that the ROUTER has assigned; its first byte is 0
_REQUEST_ID_BYTES = 4


class Received(NamedTuple):
    """A decoded message. `peer` is where the answer goes; `key` is the sender's key if the socket has a guard."""

    peer: bytes
    message: Message
    payload: list[bytes]
    key: str = ""
    header: zmq.Frame | None = None  # as received: libzmq attaches the sender's address to it
    at_s: float = 0.0  # when it was received, by `time.perf_counter`

    def sender(self) -> str:
        """The sender for a log line: its address, and its name and key where they are known."""
        client = getattr(self.message, "client", None)
        name = f" client={client!r}" if client is not None else ""
        return f"{address_of(self.header)}{name}{f' key={self.key}' if self.key else ''}"


def address_of(frame: zmq.Frame | None) -> str:
    """The sender's IP address for a log line (libzmq does not tell the port)."""
    try:
        return f"address={frame.get('Peer-Address')}" if frame is not None else "address=unknown"
    except zmq.ZMQError:  # a transport without addresses
        return "address=unknown"


def add_frame(frames: list[bytes], frame: zmq.Frame) -> bool:
    """Appends a frame. False if it was dropped, because no message has so many."""
    if len(frames) >= _FRAMES_MAX:
        return False
    frames.append(frame.bytes)
    return True


def check_peer(peer: bytes) -> None:
    """Raises BadFrames if the client has set its own routing id."""
    if len(peer) != _ROUTING_ID_BYTES or peer[0]:
        raise BadFrames(
            "this socket has set a routing id",
            hint="do not set ZMQ_ROUTING_ID (ZMQ_IDENTITY): of two connections with the same one, one is ignored",
        )


def split_envelope(frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The frames that a REQ socket puts before a message (empty, or two with REQ_CORRELATE), and the message."""
    if len(frames) > 1 and not frames[0]:
        return frames[:1], frames[1:]
    if len(frames) > 2 and len(frames[0]) == _REQUEST_ID_BYTES and not frames[1]:
        return frames[:2], frames[2:]
    return [], frames
