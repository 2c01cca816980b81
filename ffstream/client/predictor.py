"""Asks a daemon for labels."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffstream.client.connection import Connection, seconds
from ffstream.client.images import Encoder
from ffstream.client.keys import CurveKeys
from ffstream.errors import BadSize
from ffstream.wire import codec
from ffstream.wire.messages import DEFAULT_PREDICT, Message, Predict, Prediction, Welcome


class Labels(NamedTuple):
    """Labels (B), goodness for each label (B, L), and the snapshot that answered: its version, and the sequence
    number up to which it has learned every sample."""

    labels: NDArray[np.int64]
    goodness: NDArray[np.float32]
    version: int
    seq: int


class Predictor:
    """A connection to the predict socket, for the thread that uses it first (see owner.py).

    It is made with the first query. If there never was a connection, a query fails as soon as the daemon has been out
    of reach for `connect_timeout_s`: pass more to wait for a daemon that starts. Once there was one, a query goes on
    trying until its own timeout, and is asked again when the daemon restarts meanwhile.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_PREDICT,
        *,
        connect_timeout_s: float = 1.0,
        keys: CurveKeys | None = None,
    ) -> None:
        self._patience_s = seconds(connect_timeout_s, "connect_timeout_s")
        self._connection = Connection(endpoint, "predict", (Prediction,), keys=keys)
        self._id = 0

    def hello(self, timeout_s: float = 10.0) -> Welcome:
        """Returns what the daemon says of itself: its limits, and the images and labels of its network.

        Raises RequestRefused, and DeadlineExceeded (Unreachable without a connection).
        """
        self._connection.owner.check()
        return self._connection.hello(seconds(timeout_s, "timeout_s"), patience_s=self._patience_s)

    def predict(self, images: ArrayLike, timeout_s: float = 10.0) -> Labels:
        """Labels of images (B, …), uint8 0 to 255, float 0.0 to 1.0, or bool, all from one snapshot.

        A single image may come without the first dimension; B is 1 then. Raises RequestRefused, DeadlineExceeded
        (Unreachable without a connection), and BadDtype, BadShape, NotFinite, ValueOutOfRange or TooLarge for what
        the daemon would not take.
        """
        self._connection.owner.check()
        self._id += 1
        query = _Query(self._id, images)
        answer, payload = self._connection.ask(
            self._id, query.build, seconds(timeout_s, "timeout_s"), patience_s=self._patience_s, may_repeat=True
        )
        assert isinstance(answer, Prediction)
        (goodness,) = codec.expect_payload(payload, 1)
        if len(goodness) % (4 * query.count) or len(answer.labels) != query.count:
            raise BadSize("the daemon's prediction does not fit the query", hint="do versions differ?")
        goodness_BL = np.frombuffer(goodness, "<f4").reshape(query.count, -1)
        return Labels(np.array(answer.labels, np.int64), goodness_BL, answer.version, answer.seq)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.owner.check()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Query:
    """Images that are held against the limits of each connection over which they are sent."""

    def __init__(self, id: int, images: ArrayLike) -> None:
        self._id = id
        self._images = images
        self.count = 0

    def build(self, welcome: Welcome) -> tuple[Message, tuple[bytes, ...]]:
        """The header and its payload. Raises BadDtype, BadShape, NotFinite, ValueOutOfRange, TooLarge."""
        self.count, dtype, shape, frame = Encoder(welcome).images(self._images)
        return Predict(id=self._id, count=self.count, dtype=dtype, shape=shape), (frame,)
