"""The messages of SPEC.md as checked records. Knows no socket and no array.

A header decodes to exactly one of these, or to a ProtocolError that says which field is wrong.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints

VERSION = 1
MAX_HEADER_BYTES = 65_536
LABEL_DTYPE = "<u2"

DEFAULT_LEARN = "tcp://127.0.0.1:5757"
DEFAULT_PREDICT = "tcp://127.0.0.1:5758"
DEFAULT_CONTROL = "tcp://127.0.0.1:5759"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
MessageNumber = Annotated[int, Field(ge=1, lt=2**62)]  # so that the one after it is a number too


SEPARATOR = "\x1f"  # stands in no client's name: the daemon puts it between that and a key
NAMELESS_PREFIX = "~"  # first character of a name that a client library made up for one producer


def _check_name(name: str) -> str:
    if len(name.encode()) > 64:
        raise ValueError("longer than 64 bytes")
    if SEPARATOR in name:
        raise ValueError("holds U+001F")
    return name


ClientName = Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_name)]
Dimensions = Annotated[list[Annotated[int, Field(ge=1, le=2**31)]], Field(min_length=1, max_length=4)]


class Message(BaseModel):
    """Base of all headers; `type` and `v` are added on the wire."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)
    type: ClassVar[str]


class Hello(Message):
    """Any socket, from a client: asks for a `welcome`. `client` is required on the learn socket only."""

    type = "hello"
    client: ClientName | None = None


class Welcome(Message):
    """Any socket: which socket this is, the limits of its messages, and the images and labels that the network takes.

    `boot` is another string after each start of the daemon. `next` and `credit` are 0 but on the learn socket,
    `max_samples` and `max_bytes`, of a payload frame, are 0 on the control socket. While samples are refused,
    `refusing`, `message` and `hint` say why, as an error would.
    """

    type = "welcome"
    socket: str
    boot: str
    max_samples: Count
    max_bytes: Count
    inputs: Positive
    image_shape: Dimensions
    labels: Positive
    next: Count = 0
    credit: Count = 0
    refusing: str | None = None
    message: str = ""
    hint: str = ""


class ImageHeader(Message):
    """What describes the image frame of a message."""

    count: Positive
    dtype: str
    shape: Dimensions


class Samples(ImageHeader):
    """learn, from a client: labelled images under the client's message number `n`."""

    type = "samples"
    client: ClientName
    n: MessageNumber
    base: MessageNumber
    labels: bytes


class Bye(Message):
    """learn, from a client: I have an answer to everything, and nothing more comes under this name."""

    type = "bye"
    client: ClientName


class Ack(Message):
    """learn: these messages are on disk, as [n, first sequence number, samples]."""

    type = "ack"
    acks: Sequence[Annotated[tuple[Positive, Positive, Positive], Strict(False)]]  # msgpack knows no tuples
    credit: Count


class Predict(ImageHeader):
    """predict, from a client: which labels?"""

    type = "predict"
    id: Count


class Prediction(Message):
    """predict: labels, and in the payload the goodness for each label, from one snapshot."""

    type = "prediction"
    id: Count
    labels: list[Count]
    version: Count
    seq: Count


class Request(Message):
    """control, from a client."""

    type = "request"
    id: Count
    command: Annotated[str, StringConstraints(max_length=64)]
    arguments: dict[str, Any] = {}


class Reply(Message):
    """control: the request's result."""

    type = "reply"
    id: Count
    result: dict[str, Any]


class ErrorReply(Message):
    """Any socket: what was wrong with message `n` (learn) or request `id`, and what to do.

    `retry_after_s` says when it is worth trying again, if the daemon can tell.
    """

    type = "error"
    code: str
    message: str
    hint: str = ""
    retry: bool = False
    n: Count | None = None
    id: Count | None = None
    retry_after_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Ping(Message):
    """Any socket, from a client: does the thread that does the work still turn?"""

    type = "ping"


class Pong(Message):
    """Any socket: it does. The other keys as in a welcome."""

    type = "pong"
    socket: str
    boot: str
    credit: Count = 0
    refusing: str | None = None
    message: str = ""
    hint: str = ""


SENT_TO: dict[str, tuple[type[Message], ...]] = {  # by socket: what a client may send to it
    "learn": (Hello, Samples, Bye, Ping),
    "predict": (Hello, Predict, Ping),
    "control": (Hello, Request, Ping),
}
