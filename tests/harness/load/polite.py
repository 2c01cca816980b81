"""Clients that behave: what they were told, how soon, and every error that they should not have met."""

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
from tests.harness.load.peer import INPUTS, LABELS, SHAPE
from tests.harness.load.timeline import Timeline
from tests.harness.load.workers import side_by_side

SAMPLES = 4  # in a message
WARM_SAMPLES = 20_000  # more than the network remembers, so that its memory is full
_ANSWER_S = 30.0
_AFTER_ERROR_S = 0.5
_rng = np.random.default_rng(0)
_IMAGES = _rng.integers(0, 256, (256, SAMPLES, *SHAPE), np.uint8)
_LABELS = _rng.integers(0, LABELS, (256, SAMPLES))
assert _IMAGES[0, 0].size == INPUTS


@dataclass
class Polite:
    """What one process of well-behaved clients saw."""

    acks: Timeline = field(default_factory=Timeline)
    predictions: Timeline = field(default_factory=Timeline)
    commands: Timeline = field(default_factory=Timeline)
    scrapes: Timeline = field(default_factory=Timeline)
    producers: int = 0
    sent: int = 0
    acked: int = 0
    errors: list[str] = field(default_factory=list)

    def count(self, producer: Producer) -> None:
        """Adds a producer's samples."""
        self.sent += producer.counts.sent
        self.acked += producer.counts.acked

    def attempt(self, ending: threading.Event, work: Callable[[], object]) -> None:
        """Runs `work`. What fails is noted, with a moment's rest after it."""
        try:
            work()
        except (FFStreamError, OSError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            ending.wait(_AFTER_ERROR_S)


def warm_up(endpoints: Mapping[str, str], samples: int) -> int:
    """Has so many samples learned, and checkpoints written, so that what the daemon keeps for itself is there.

    Returns how many samples were acked.
    """
    size = 16
    with Producer(endpoints["learn"], connect_timeout_s=_ANSWER_S) as producer:
        for at in range(samples // (size * SAMPLES)):
            which = at % (len(_IMAGES) // size) * size
            images = _IMAGES[which : which + size].reshape(-1, *SHAPE)
            producer.send(images, _LABELS[which : which + size].ravel(), timeout_s=_ANSWER_S)
        producer.flush(_ANSWER_S)
    with Control(endpoints["control"]) as control:
        control.wait_idle(10 * _ANSWER_S)
        for _ in range(3):
            control.request("checkpoint", timeout_s=2 * _ANSWER_S)
    return producer.counts.acked


def serve_all(stop: Event, endpoints: Mapping[str, str], client: str, pause_s: float) -> Polite:
    """A producer that waits for each ack, a predictor, a control client and a scraper, until `stop`."""
    seen = Polite()
    side_by_side(
        stop,
        [
            partial(_produce, seen, endpoints["learn"], client, pause_s),
            partial(_predict, seen, endpoints["predict"], pause_s),
            partial(_command, seen, endpoints["control"], 10 * pause_s),
            partial(_scrape, seen, f"http://{endpoints['http']}/metrics", 20 * pause_s),
        ],
    )
    return seen


def _produce(seen: Polite, endpoint: str, client: str, pause_s: float, ending: threading.Event) -> None:
    with Producer(endpoint, client=client, connect_timeout_s=_ANSWER_S) as producer:
        seen.producers += 1

        def one() -> None:
            producer.send(*_message(producer.counts.sent), timeout_s=_ANSWER_S)
            producer.flush(_ANSWER_S)

        while not ending.is_set():
            seen.attempt(ending, lambda: seen.acks.measure(one))
            ending.wait(pause_s)
        seen.attempt(ending, lambda: producer.flush(_ANSWER_S))
        seen.count(producer)


def _message(at: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    which = at % len(_IMAGES)
    return _IMAGES[which], _LABELS[which]


def _predict(seen: Polite, endpoint: str, pause_s: float, ending: threading.Event) -> None:
    with Predictor(endpoint) as predictor:
        asked = 0
        while not ending.is_set():
            image = _IMAGES[asked % len(_IMAGES), :1]
            seen.attempt(ending, lambda: seen.predictions.measure(lambda: predictor.predict(image, _ANSWER_S)))  # noqa: B023
            asked += 1
            ending.wait(pause_s)


def _command(seen: Polite, endpoint: str, pause_s: float, ending: threading.Event) -> None:
    with Control(endpoint) as control:
        while not ending.is_set():
            seen.attempt(ending, lambda: seen.commands.measure(lambda: control.status(_ANSWER_S)))
            ending.wait(pause_s)


def _scrape(seen: Polite, url: str, pause_s: float, ending: threading.Event) -> None:
    while not ending.is_set():
        seen.attempt(ending, lambda: seen.scrapes.measure(lambda: scrape(url)))
        ending.wait(pause_s)


def scrape(url: str) -> str:
    """What the URL answers. Raises OSError."""
    with urllib.request.urlopen(url, timeout=_ANSWER_S) as response:
        return str(response.read().decode())


def come_and_go(stop: Event, endpoint: str, name: str, messages: int, pause_s: float) -> Polite:
    """Producers one after another, every second one under a new name, the others under one that returns."""
    seen = Polite()

    def visit(ending: threading.Event) -> None:
        client = f"{name}-returns" if seen.producers % 2 else f"{name}-{seen.producers}"
        seen.producers += 1
        with Producer(endpoint, client=client, connect_timeout_s=_ANSWER_S) as producer:
            for at in range(messages):
                producer.send(*_message(at), timeout_s=_ANSWER_S)
                ending.wait(pause_s)
            producer.flush(_ANSWER_S)
            seen.count(producer)

    def loop(ending: threading.Event) -> None:
        while not ending.is_set():
            seen.attempt(ending, lambda: visit(ending))

    side_by_side(stop, [loop])
    return seen


def until_killed(stop: Event, endpoint: str, client: str, pause_s: float, acked: Any) -> None:
    """One name, message after message with many under way; adds what was acked to the shared count `acked`."""
    with Producer(endpoint, client=client, connect_timeout_s=_ANSWER_S) as producer:
        told = 0
        while not stop.is_set():
            producer.send(*_message(producer.counts.sent), timeout_s=_ANSWER_S)
            acked.value += producer.counts.acked - told
            told = producer.counts.acked
            time.sleep(pause_s)
