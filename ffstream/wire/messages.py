"""The messages of SPEC.md, one class for each type, with the ranges of their fields."""

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
MessageNumber = Annotated[int, Field(ge=1, lt=2**62)]  # leaves room for the next number

SEPARATOR = "\x1f"  # not allowed in a client's name, because the daemon puts it between a key and the name
PAGE_CLIENT = "@page"  # the name of the samples that are taught on the daemon's page; no client may use it
NAMELESS_PREFIX = "~"  # first character of a name that a client library generated for one producer


def _check_name(name: str) -> str:
    if len(name.encode()) > 64:
        raise ValueError("longer than 64 bytes")
    if SEPARATOR in name:
        raise ValueError("contains U+001F")
    if name == PAGE_CLIENT:
        raise ValueError(f"{PAGE_CLIENT} is reserved for the daemon's own page; use another name")
    return name


ClientName = Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_name)]
Dimensions = Annotated[list[Annotated[int, Field(ge=1, le=2**31)]], Field(min_length=1, max_length=4)]


class Message(BaseModel):
    """Base class of all headers; `encode` adds `v` and `type`."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)
    type: ClassVar[str]


class Hello(Message):
    """Any socket, from a client: requests a `welcome`. `client` is required on the learn socket only."""

    type = "hello"
    client: ClientName | None = None


class Welcome(Message):
    """Any socket: which socket this is, its limits for messages, and the images and labels that the network takes.

    `boot` differs after each start of the daemon. `max_bytes` limits a payload frame. `next` and `credit` are 0
    except on the learn socket; `max_samples` and `max_bytes` are 0 on the control socket. While the daemon accepts
    no samples, `refusing`, `message` and `hint` are the code, message and hint of the error that a sample would get.
    `unlabelled`: samples without a label are accepted.
    """

    type = "welcome"
    socket: str
    boot: str
    max_samples: Count
    max_bytes: Count
    inputs: Positive
    image_shape: Dimensions
    labels: Positive
    unlabelled: bool = False
    next: Count = 0
    credit: Count = 0
    refusing: str | None = None
    message: str = ""
    hint: str = ""


class ImageHeader(Message):
    """Describes the images in the payload frame of a message; `shape` is that of one image."""

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
    """learn, from a client: everything is answered, and this name will not be used again."""

    type = "bye"
    client: ClientName


class Ack(Message):
    """learn: these messages are on disk, each as [n, first sequence number, number of samples]."""

    type = "ack"
    acks: Sequence[Annotated[tuple[Positive, Positive, Positive], Strict(False)]]  # msgpack has no tuples
    credit: Count


class Predict(ImageHeader):
    """predict, from a client: requests the labels of images."""

    type = "predict"
    id: Count


class Prediction(Message):
    """predict: a label for each image, all from one snapshot. The payload holds the goodness of each label."""

    type = "prediction"
    id: Count
    labels: list[Count]
    version: Count
    seq: Count


class Request(Message):
    """control, from a client: a command."""

    type = "request"
    id: Count
    command: Annotated[str, StringConstraints(max_length=64)]
    arguments: dict[str, Any] = {}


class Reply(Message):
    """control: the result of a command."""

    type = "reply"
    id: Count
    result: dict[str, Any]


class SnapshotRequest(BaseModel):
    """Arguments of the command `snapshot`: weights newer than `after` of this `boot`, within `timeout_s`.

    `recipe`: the answer contains the options of the network, too.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)
    after: Count | None = None
    boot: str | None = None
    timeout_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    recipe: bool = False


class SnapshotInfo(BaseModel):
    """Result of the command `snapshot`: the weights in the payload, or with `bytes` 0 that there are no newer ones.

    `version`, `seq`: of the newest snapshot, `as_of_s` seconds after the request was received. `applied_seq`: what
    every layer had learned then. `checksum`: XXH3-128 of the payload, in hexadecimal digits.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)
    boot: str
    version: Count
    seq: Count
    applied_seq: Count
    as_of_s: Annotated[float, Field(allow_inf_nan=False)]
    bytes: Count
    checksum: str = ""
    recipe: dict[str, Any] | None = None


class ErrorReply(Message):
    """Any socket: what is wrong with message `n` (learn) or request `id`, and what to do about it.

    `retry_after_s`: when to send it again, if the daemon knows.
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
    """Any socket, from a client: asks whether the thread that serves the socket is alive."""

    type = "ping"


class Pong(Message):
    """Any socket: it is. The other keys are as in a welcome."""

    type = "pong"
    socket: str
    boot: str
    credit: Count = 0
    refusing: str | None = None
    message: str = ""
    hint: str = ""


SENT_TO: dict[str, tuple[type[Message], ...]] = {  # what a client may send, by socket
    "learn": (Hello, Samples, Bye, Ping),
    "predict": (Hello, Predict, Ping),
    "control": (Hello, Request, Ping),
}
