"""Clients that go on while the processes of a cluster are killed, and what their answers say."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ffstream.client import Predictor
from ffstream.errors import FFStreamError
from tests.harness.crashing.stream import Stream

_ANSWER_S = 30.0
_PAUSE_S = 0.1


class Outage(NamedTuple):
    """A time in which no daemon serves."""

    begun_s: float
    ended_s: float


def longest_gap(answered_s: Sequence[float], outages: Sequence[Outage]) -> float:
    """The longest time between two answers, except around outages."""
    return max((later - earlier for earlier, later in pairwise(answered_s) if not _hit(earlier, later, outages)),
               default=0.0)  # fmt: skip


def _hit(begun_s: float, ended_s: float, outages: Sequence[Outage]) -> bool:
    return any(outage.begun_s < ended_s and begun_s < outage.ended_s for outage in outages)


@dataclass
class Asker:
    """A thread that asks for predictions until `finish` is called."""

    endpoint: str
    stream: Stream
    answered_s: list[float] = field(default_factory=list)
    unanswered: list[tuple[Outage, str]] = field(default_factory=list)  # the time of the query, and the error

    def __post_init__(self) -> None:
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        images, _ = self.stream.message(0, 1)
        with Predictor(self.endpoint) as predictor:
            while not self._finishing.wait(_PAUSE_S):
                begun_s = time.monotonic()
                try:
                    predictor.predict(images.reshape(1, *self.stream.image_shape), _ANSWER_S)
                    self.answered_s.append(time.monotonic())
                except FFStreamError as error:
                    self.unanswered.append((Outage(begun_s, time.monotonic()), str(error)))

    def finish(self) -> None:
        """Returns once it has ended."""
        self._finishing.set()
        self._thread.join(2 * _ANSWER_S)

    def errors(self, outages: Sequence[Outage]) -> list[str]:
        """The errors of queries while a daemon served."""
        return [error for (begun_s, ended_s), error in self.unanswered if not _hit(begun_s, ended_s, outages)]
