"""Well-behaved clients. They record every answer and how long it took, and every error; there should be none."""

import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffstream.client import Control, Predictor, Producer
from ffstream.errors import FFStreamError
from tests.harness.load.timeline import Timeline
from tests.harness.load.workers import run_in_threads
from tests.harness.raw_client import INPUTS, LABELS, SHAPE

SAMPLES = 4  # in a message
WARM_SAMPLES = 20_000  # more than the replay buffer holds, so that it is full
_ANSWER_S = 30.0
_AFTER_ERROR_S = 0.5
_rng = np.random.default_rng(0)
_IMAGES = _rng.integers(0, 256, (256, SAMPLES, *SHAPE), np.uint8)
_LABELS = _rng.integers(0, LABELS, (256, SAMPLES))
assert _IMAGES[0, 0].size == INPUTS


@dataclass
class Observations:
    """What the clients of one process observed."""

    acks: Timeline = field(default_factory=Timeline)
    predictions: Timeline = field(default_factory=Timeline)
    commands: Timeline = field(default_factory=Timeline)
    scrapes: Timeline = field(default_factory=Timeline)
    producers: int = 0
    sent: int = 0
    acked: int = 0
    errors: list[str] = field(default_factory=list)

    def count(self, producer: Producer) -> None:
        """Adds the samples of a producer."""
        self.sent += producer.counts.sent
        self.acked += producer.counts.acked

    def attempt(self, ending: threading.Event, work: Callable[[], object]) -> None:
        """Calls `work`. An error is recorded, and followed by a pause."""
        try:
            work()
        except (FFStreamError, OSError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            ending.wait(_AFTER_ERROR_S)


def warm_up(endpoints: Mapping[str, str], samples: int) -> int:
    """Lets the daemon learn samples and write checkpoints, so that its buffers and files reach their full size.

    Returns how many samples were acked.
    """
    size = 16
    with Producer(endpoints["learn"], connect_timeout_s=_ANSWER_S) as producer:
        for at in range(samples // (size * SAMPLES)):
            first = at % (len(_IMAGES) // size) * size
            images = _IMAGES[first : first + size].reshape(-1, *SHAPE)
            producer.send(images, _LABELS[first : first + size].ravel(), timeout_s=_ANSWER_S)
        producer.flush(_ANSWER_S)
    with Control(endpoints["control"]) as control:
        control.wait_idle(10 * _ANSWER_S)
        for _ in range(3):
            control.request("checkpoint", timeout_s=2 * _ANSWER_S)
    return producer.counts.acked


def run_one_of_each(stop: Event, endpoints: Mapping[str, str], client: str, pause_s: float) -> Observations:
    """A producer that waits for each ack, a predictor, a control client and a metrics scraper, until `stop`."""
    observed = Observations()
    run_in_threads(
        stop,
        [
            partial(_produce, observed, endpoints["learn"], client, pause_s),
            partial(_predict, observed, endpoints["predict"], pause_s),
            partial(_request_status, observed, endpoints["control"], 10 * pause_s),
            partial(_scrape, observed, f"http://{endpoints['http']}/metrics", 20 * pause_s),
        ],
    )
    return observed


def _produce(observed: Observations, endpoint: str, client: str, pause_s: float, ending: threading.Event) -> None:
    with Producer(endpoint, client=client, connect_timeout_s=_ANSWER_S) as producer:
        observed.producers += 1

        def send_one() -> None:
            producer.send(*_message(producer.counts.sent), timeout_s=_ANSWER_S)
            producer.flush(_ANSWER_S)

        while not ending.is_set():
            observed.attempt(ending, lambda: observed.acks.measure(send_one))
            ending.wait(pause_s)
        observed.attempt(ending, lambda: producer.flush(_ANSWER_S))
        observed.count(producer)


def _message(at: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return _IMAGES[at % len(_IMAGES)], _LABELS[at % len(_LABELS)]


def _predict(observed: Observations, endpoint: str, pause_s: float, ending: threading.Event) -> None:
    with Predictor(endpoint) as predictor:
        queries = 0

        def predict_one() -> None:
            predictor.predict(_IMAGES[queries % len(_IMAGES), :1], _ANSWER_S)

        while not ending.is_set():
            observed.attempt(ending, lambda: observed.predictions.measure(predict_one))
            queries += 1
            ending.wait(pause_s)


def _request_status(observed: Observations, endpoint: str, pause_s: float, ending: threading.Event) -> None:
    with Control(endpoint) as control:
        while not ending.is_set():
            observed.attempt(ending, lambda: observed.commands.measure(lambda: control.status(_ANSWER_S)))
            ending.wait(pause_s)


def _scrape(observed: Observations, url: str, pause_s: float, ending: threading.Event) -> None:
    while not ending.is_set():
        observed.attempt(ending, lambda: observed.scrapes.measure(lambda: scrape(url)))
        ending.wait(pause_s)


def scrape(url: str) -> str:
    """The body of the answer to GET. Raises OSError."""
    with urllib.request.urlopen(url, timeout=_ANSWER_S) as response:
        return str(response.read().decode())


def connect_and_leave(stop: Event, endpoint: str, name: str, messages: int, pause_s: float) -> Observations:
    """Producers one after another. Every second one has a new name; the others share one name."""
    observed = Observations()

    def run_producer(ending: threading.Event) -> None:
        client = f"{name}-returns" if observed.producers % 2 else f"{name}-{observed.producers}"
        observed.producers += 1
        with Producer(endpoint, client=client, connect_timeout_s=_ANSWER_S) as producer:
            for at in range(messages):
                producer.send(*_message(at), timeout_s=_ANSWER_S)
                ending.wait(pause_s)
            producer.flush(_ANSWER_S)
            observed.count(producer)

    def loop(ending: threading.Event) -> None:
        while not ending.is_set():
            observed.attempt(ending, lambda: run_producer(ending))

    run_in_threads(stop, [loop])
    return observed


def send_until_killed(stop: Event, endpoint: str, client: str, pause_s: float, acked: Any) -> None:
    """A producer that does not wait for acks. Adds the number of acked samples to the shared count `acked`."""
    with Producer(endpoint, client=client, connect_timeout_s=_ANSWER_S) as producer:
        counted = 0
        while not stop.is_set():
            producer.send(*_message(producer.counts.sent), timeout_s=_ANSWER_S)
            acked.value += producer.counts.acked - counted
            counted = producer.counts.acked
            time.sleep(pause_s)
