"""The stream that every daemon here learns, and a producer that keeps every ack it hears.

Message `at` (0, 1, 2 …) is number `at` + 1 of its client. What is in it depends on the seed and `at` alone.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ffstream.checkpoint.ladder import Ladder
from ffstream.client import Producer
from ffstream.errors import DeadlineExceeded
from ffstream.wire.messages import Ack

CLIENT = "crash"
INPUTS = 16
LABELS = 4
_BATCH = 8
CHECKPOINT_SAMPLES = 19 * _BATCH
KEPT = 3
LADDER = Ladder(KEPT, (1.0, 5.0, 60.0), 1 << 30)  # old checkpoints come and go all the time
_SIZES = (1, 8, 3, 5)  # samples in a message: microbatches begin and end anywhere in one
_ANSWER_S = 120.0
_GREETING_S = 2.0

SETTINGS = (
    f"network.image_shape=[{INPUTS}]",
    f"network.labels={LABELS}",
    "network.widths=[32,32]",
    f"network.batch_size={_BATCH}",
    "network.warmup_batch_size=4",
    "network.warmup_samples=32",
    "network.replay=4",  # what the replay buffer holds matters to the weights
    "network.replay_jitter=0",
    "network.replay_buffer=100",
    "network.seed=3",
    "pipeline.device=cpu",
    "pipeline.precision=fp32",
    "learning.partial=wait",
    "learning.publish_every=1",  # a snapshot published when idle would count in the progress
    "checkpoint.every_s=0",
    f"checkpoint.every_samples={CHECKPOINT_SAMPLES}",
    f"checkpoint.keep={KEPT}",  # the journal is trimmed all the time
    f"checkpoint.ladder_s={list(LADDER.steps_s)}",
    f"checkpoint.max_bytes={LADDER.max_bytes}",
    "limits.window_messages=32",
    "prequential.busy_fraction=1",  # every sample is predicted: the record is part of what must be equal
    "prequential.queue_depth=1000000",
    "shutdown.drain_timeout_s=60",
)


class Heard(NamedTuple):
    """One entry of an ack: message number, sequence number of its first sample, samples."""

    n: int
    first_seq: int
    samples: int


def size(at: int) -> int:
    """Samples in message `at`."""
    return _SIZES[at % len(_SIZES)]


def message(seed: int, at: int, samples: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of message `at`."""
    chance = np.random.default_rng((seed, at))
    return chance.integers(0, 256, (samples, INPUTS), np.uint8), chance.integers(0, LABELS, samples)


def sizes(messages: int) -> list[int]:
    """Samples in each of so many messages; the last is as large as makes the whole end with a full microbatch.

    But not where a checkpoint is due anyway: chance would say which of the two, equal but for their number, is kept.
    """
    plain = [size(at) for at in range(messages - 1)]
    last = _BATCH - sum(plain) % _BATCH
    return [*plain, last if (sum(plain) + last) % CHECKPOINT_SAMPLES else last + _BATCH]


class Witness(Producer):
    """A producer that keeps what it was told."""

    def __init__(self, endpoint: str) -> None:
        self.heard: list[Heard] = []
        super().__init__(endpoint, client=CLIENT, ack_timeout_s=5.0, connect_timeout_s=_GREETING_S)

    def resume_at(self, n: int) -> None:
        """Goes on with message n, as a producer does that has heard acks for all below and for nothing else."""
        self._next_n = self._base = n

    def listen(self, seconds: float) -> None:
        """Reads answers as they come: what lies unread when a connection breaks was never heard."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            self._work(left_s)

    def _take(self, answer: Any) -> None:
        if isinstance(answer, Ack):
            self.heard += (Heard(*each) for each in answer.acks)
        super()._take(answer)


def connect(endpoint: str) -> Witness:
    """A producer, once a daemon has lived for long enough to greet it."""
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            return Witness(endpoint)
        except DeadlineExceeded:
            if time.monotonic() > deadline:
                raise


def send_all(
    producer: Witness,
    seed: int,
    counts: Sequence[int],
    *,
    begin: int = 0,
    end: int | None = None,
    pause_s: float = 0.0,
) -> None:
    """Sends messages from `begin` on (to before `end`) and returns once all are acked."""
    for at in range(begin, len(counts) if end is None else end):
        producer.send(*message(seed, at, counts[at]), timeout_s=_ANSWER_S)
        time.sleep(pause_s)
    producer.flush(_ANSWER_S)


class Sender:
    """A thread that sends at a steady pace, whatever becomes of the daemon, until it is told to finish."""

    def __init__(self, endpoint: str, seed: int, messages_per_s: float) -> None:
        self.sizes: list[int] = []
        self.heard: list[Heard] = []
        self.resent = 0
        self._endpoint = endpoint
        self._seed = seed
        self._pause_s = 1 / messages_per_s
        self._finishing = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            producer = connect(self._endpoint)
            self.heard = producer.heard
            for at in self._numbers():
                producer.send(*message(self._seed, at, self.sizes[at]), timeout_s=_ANSWER_S)
                producer.listen(self._pause_s)
            producer.flush(_ANSWER_S)
            self.resent = producer.counts.resent
            producer.close()
        except Exception as error:
            self._error = error

    def _numbers(self) -> Iterator[int]:
        while not self._finishing.is_set():
            self.sizes.append(size(len(self.sizes)))
            yield len(self.sizes) - 1
        self.sizes = sizes(len(self.sizes) + 1)
        yield len(self.sizes) - 1

    def check(self) -> None:
        """Raises what ended the thread before its time."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Sends the last message and returns once everything is acked."""
        self._finishing.set()
        self._thread.join(2 * _ANSWER_S)
        self.check()
        if self._thread.is_alive():
            raise DeadlineExceeded("the producer did not finish", hint="see the daemon's log")
