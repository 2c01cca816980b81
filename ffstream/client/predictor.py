"""A client for the predict socket: asks a daemon for the labels of images."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffstream.client.arguments import seconds
from ffstream.client.images import Encoder
from ffstream.client.keys import CurveKeys
from ffstream.client.requests import RequestConnection
from ffstream.errors import BadSize
from ffstream.wire import codec
from ffstream.wire.messages import DEFAULT_PREDICT, Message, Predict, Prediction, Welcome


class Labels(NamedTuple):
    """Labels (B), the goodness of each label (B, L), and the snapshot that predicted.

    `version`: of the snapshot. `seq`: the snapshot has learned every sample up to this sequence number.
    """

    labels: NDArray[np.int64]
    goodness: NDArray[np.float32]
    version: int
    seq: int


class Predictor:
    """A connection to the predict socket, for the thread that uses it first (see thread_affinity.py).

    It connects with the first query. If there never was a connection, a query fails when the daemon is unreachable
    for `connect_timeout_s`: use a larger value to wait for a daemon that starts. Once there was a connection, a
    query waits until its own timeout, and is sent again if the daemon restarts.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_PREDICT,
        *,
        connect_timeout_s: float = 1.0,
        keys: CurveKeys | None = None,
    ) -> None:
        connect_timeout_s = seconds(connect_timeout_s, "connect_timeout_s")
        self._connection = RequestConnection(
            endpoint, "predict", Prediction, connect_timeout_s=connect_timeout_s, keys=keys
        )
        self._id = 0

    def hello(self, timeout_s: float = 10.0) -> Welcome:
        """The daemon's `welcome`: its limits, and the images and labels of its network.

        Raises RequestRefused, and DeadlineExceeded (Unreachable without a connection).
        """
        self._connection.affinity.check()
        return self._connection.hello(seconds(timeout_s, "timeout_s"))

    def predict(self, images: ArrayLike, timeout_s: float = 10.0) -> Labels:
        """Predicts images (B, …), uint8 0 to 255, float 0.0 to 1.0, or bool, all with one snapshot.

        A single image may come without the first dimension; B is 1 then. Raises RequestRefused, DeadlineExceeded
        (Unreachable without a connection), and BadDtype, BadShape, NotFinite, ValueOutOfRange or TooLarge for images
        that the daemon would reject.
        """
        self._connection.affinity.check()
        self._id += 1
        query = _Query(self._id, images)
        answer, payload = self._connection.ask(
            self._id, query.build, seconds(timeout_s, "timeout_s"), repeatable=True
        )
        assert isinstance(answer, Prediction)
        (goodness,) = codec.expect_payload(payload, 1)
        if len(goodness) % (4 * query.count) or len(answer.labels) != query.count:
            raise BadSize(
                "the daemon's answer does not have the size of the query", hint="are both of the same version?"
            )
        goodness_BL = np.frombuffer(goodness, "<f4").reshape(query.count, -1)
        return Labels(np.array(answer.labels, np.int64), goodness_BL, answer.version, answer.seq)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.affinity.check()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Query:
    """Images, checked against the `welcome` of each connection over which they are sent."""

    def __init__(self, id: int, images: ArrayLike) -> None:
        self._id = id
        self._images = images
        self.count = 0

    def build(self, welcome: Welcome) -> tuple[Message, tuple[bytes, ...]]:
        """The header and its payload. Raises BadDtype, BadShape, NotFinite, ValueOutOfRange, TooLarge."""
        self.count, dtype, shape, frame = Encoder(welcome).images(self._images)
        return Predict(id=self._id, count=self.count, dtype=dtype, shape=shape), (frame,)
