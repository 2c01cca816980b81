"""The stream that the daemons of `tools/crash` learn, and producers that keep every ack they receive.

Messages are counted from 0; the client numbers message `at` as `at` + 1. The content of a message depends only on the
seed and `at`, so a run that is never killed can learn the same stream for comparison.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ffstream.checkpoint.ladder import Ladder
from ffstream.client import Producer
from ffstream.client.unanswered import Unanswered
from ffstream.errors import DeadlineExceeded
from ffstream.util.labels import UNLABELLED
from ffstream.wire.messages import Ack

CLIENT = "crash"
LABELS = 4
BATCH = 8
CHECKPOINT_SAMPLES = 19 * BATCH
KEPT_CHECKPOINTS = 3
LADDER = Ladder(KEPT_CHECKPOINTS, (1.0, 5.0, 60.0), 1 << 30)  # so short that old checkpoints are deleted all the time
_SIZES = (1, 8, 3, 5)  # samples in a message; microbatches start and end at any place within a message
_ANSWER_S = 120.0
_CONNECT_S = 2.0

# Of every daemon; a stream adds the rest of the network.
SETTINGS = (
    f"network.labels={LABELS}",
    f"network.batch_size={BATCH}",
    "network.replay=4",  # so the weights depend on what the replay buffer holds
    "network.replay_buffer=100",
    "network.seed=3",
    "pipeline.device=cpu",
    "pipeline.precision=fp32",
    "learning.partial=wait",
    "learning.publish_every=1",  # a snapshot published because the daemon is idle would change `progress.version`
    "checkpoint.every_s=0",
    f"checkpoint.every_samples={CHECKPOINT_SAMPLES}",
    f"checkpoint.keep={KEPT_CHECKPOINTS}",  # so few that the journal is trimmed all the time
    f"checkpoint.ladder_s={list(LADDER.steps_s)}",
    f"checkpoint.max_bytes={LADDER.max_bytes}",
    "limits.window_messages=32",
    "prequential.busy_fraction=1",  # predict every sample: the prequential record is compared, too
    "prequential.queue_depth=1000000",
    "shutdown.drain_timeout_s=60",
)
DENSE = (
    "network.image_shape=[16]",
    "network.widths=[32,32]",
    "network.warmup_batch_size=4",
    "network.warmup_samples=32",
    "network.replay_jitter=0",
)


class StoredMessage(NamedTuple):
    """What one entry of an ack promises, and what one row of the journal says: message `n` has these samples."""

    n: int
    first_seq: int
    samples: int

    @property
    def last_seq(self) -> int:
        """Sequence number of its last sample."""
        return self.first_seq + self.samples - 1


def message_size(at: int) -> int:
    """Samples in message `at`."""
    return _SIZES[at % len(_SIZES)]


@dataclass(frozen=True)
class Stream:
    """Messages of random images, and the settings of the daemons that learn them."""

    seed: int
    settings: Sequence[str] = DENSE  # come after those of every daemon
    image_shape: tuple[int, ...] = (16,)
    unlabelled: float = 0.0  # share of samples without a label

    @property
    def inputs(self) -> int:
        """How many numbers an image has."""
        return math.prod(self.image_shape)

    def message(self, at: int, samples: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images and labels of message `at`."""
        rng = np.random.default_rng((self.seed, at))
        images, labels = rng.integers(0, 256, (samples, self.inputs), np.uint8), rng.integers(0, LABELS, samples)
        labels[rng.random(samples) < self.unlabelled] = UNLABELLED
        return images, labels


def message_sizes(messages: int) -> list[int]:
    """Samples in each message of a stream. The last message completes the last microbatch.

    The stream does not end where a checkpoint is due. Otherwise the checkpoint of the stop would have the same
    sequence number as a regular one, and which of the two is kept would vary from run to run.
    """
    sizes = [message_size(at) for at in range(messages - 1)]
    last = BATCH - sum(sizes) % BATCH
    return [*sizes, last if (sum(sizes) + last) % CHECKPOINT_SAMPLES else last + BATCH]


class RecordingProducer(Producer):
    """A producer that keeps every ack that it receives."""

    def __init__(self, endpoint: str) -> None:
        self.acks: list[StoredMessage] = []
        self.acked_s: list[float] = []  # when they came, on the monotonic clock
        super().__init__(endpoint, client=CLIENT, ack_timeout_s=5.0, connect_timeout_s=_CONNECT_S)
        self._handle = self._delivery.handle
        self._delivery.handle = self._record  # type: ignore[method-assign]

    def resume_at(self, n: int) -> None:
        """Continues with message `n`, as a producer that has received acks for all messages below `n` only."""
        self._delivery.next_n = n
        self._delivery.unanswered = Unanswered(n)

    def receive(self, seconds: float) -> None:
        """Reads answers for that long. An answer that is not read before the connection breaks is lost."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            self._delivery.work(left_s)

    def _record(self, answer: Any) -> None:
        if isinstance(answer, Ack):
            self.acks += (StoredMessage(*each) for each in answer.acks)
            self.acked_s.append(time.monotonic())
        self._handle(answer)


def connect(endpoint: str) -> RecordingProducer:
    """A connected producer. Tries again while daemons are killed before they greet it. Raises DeadlineExceeded."""
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            return RecordingProducer(endpoint)
        except DeadlineExceeded:
            if time.monotonic() > deadline:
                raise


def send_all(
    producer: RecordingProducer,
    stream: Stream,
    sizes: Sequence[int],
    *,
    begin: int = 0,
    end: int | None = None,
    pause_s: float = 0.0,
) -> None:
    """Sends messages `begin` to `end` - 1 and returns once all are acked."""
    for at in range(begin, len(sizes) if end is None else end):
        producer.send(*stream.message(at, sizes[at]), timeout_s=_ANSWER_S)
        time.sleep(pause_s)
    producer.flush(_ANSWER_S)


class Sender:
    """A thread that sends at a steady rate while daemons are killed and restarted, until `finish` is called."""

    def __init__(self, endpoint: str, stream: Stream, messages_per_s: float) -> None:
        self.sizes: list[int] = []
        self.acks: list[StoredMessage] = []
        self.acked_s: list[float] = []
        self.resent = 0
        self._endpoint = endpoint
        self._stream = stream
        self._pause_s = 1 / messages_per_s
        self._finishing = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            producer = connect(self._endpoint)
            self.acks, self.acked_s = producer.acks, producer.acked_s
            for at in self._messages():
                producer.send(*self._stream.message(at, self.sizes[at]), timeout_s=_ANSWER_S)
                producer.receive(self._pause_s)
            producer.flush(_ANSWER_S)
            self.resent = producer.counts.resent
            producer.close()
        except Exception as error:
            self._error = error

    def _messages(self) -> Iterator[int]:
        while not self._finishing.is_set():
            self.sizes.append(message_size(len(self.sizes)))
            yield len(self.sizes) - 1
        self.sizes = message_sizes(len(self.sizes) + 1)
        yield len(self.sizes) - 1

    def check(self) -> None:
        """Raises the error that has ended the thread, if any."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Sends the last message and returns once everything is acked. Raises DeadlineExceeded."""
        self._finishing.set()
        self._thread.join(2 * _ANSWER_S)
        self.check()
        if self._thread.is_alive():
            raise DeadlineExceeded("the producer did not finish", hint="see the daemon's log")
