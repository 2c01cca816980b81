"""Asks a daemon for labels."""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffstream.client.connection import Connection
from ffstream.client.keys import CurveKeys
from ffstream.errors import BadSize
from ffstream.wire import codec
from ffstream.wire.messages import DEFAULT_PREDICT, Predict, Prediction


class Labels(NamedTuple):
    """Labels (B), goodness for each label (B, L), and the snapshot that answered: its version, and the sequence
    number up to which it has learned every sample."""

    labels: NDArray[np.int64]
    goodness: NDArray[np.float32]
    version: int
    seq: int


class Predictor:
    """A connection to the predict socket. For one thread."""

    def __init__(self, endpoint: str = DEFAULT_PREDICT, *, keys: CurveKeys | None = None) -> None:
        self._connection = Connection(endpoint, (Prediction,), keys=keys)
        self._id = 0

    def predict(self, images: ArrayLike, timeout_s: float = 10.0) -> Labels:
        """Labels of images (B, …), uint8 0 to 255 or float 0.0 to 1.0, all from one snapshot.

        Raises RequestRefused, DeadlineExceeded, BadDtype.
        """
        array: NDArray[Any] = np.asarray(images)
        dtype, shape, frame = codec.array_to_images(array)
        self._id += 1
        request = Predict(id=self._id, count=len(array), dtype=dtype, shape=shape)
        answer, payload = self._connection.ask(self._id, request, (frame,), timeout_s)
        assert isinstance(answer, Prediction)
        (goodness,) = codec.expect_payload(payload, 1)
        if len(goodness) % (4 * len(array)) or len(answer.labels) != len(array):
            raise BadSize("the daemon's prediction does not fit the query", hint="do versions differ?")
        goodness_BL = np.frombuffer(goodness, "<f4").reshape(len(array), -1)
        return Labels(np.array(answer.labels, np.int64), goodness_BL, answer.version, answer.seq)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
