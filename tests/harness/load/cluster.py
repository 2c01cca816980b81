"""The memory of a daemon and of the cluster that its stages run in, while it learns: what grows would end it one day.

Resident memory counts pages that several processes share in each of them, so sums are upper bounds.
"""

import time
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from ffstream.client import Control, Producer
from tests.harness.cluster_processes import Learning, read_learning, resident_mb
from tests.harness.daemon import DaemonFailed, DaemonProcess, temporary_daemon
from tests.harness.load.report import growth
from tests.harness.load.usage import Comparison, Tolerance, compare_series
from tests.harness.raw_client import LABELS, SHAPE

SETTINGS: Final = ("pipeline.engine=ray", "checkpoint.every_s=5", "checkpoint.keep=2")
TOLERANCE: Final = Tolerance(25.0, 0.05, "allocator arenas and SQLite's cache; a leak exceeds this within an hour")
WARM_SAMPLES: Final = 20_000  # more than the replay buffer holds, so that it is full

_READINGS: Final = 40
_MESSAGE: Final = 64
_PLACED_S: Final = 240.0
_ANSWER_S: Final = 60.0
_LEARN_S: Final = 600.0
_POLL_S: Final = 0.1


def run(
    samples: int, *, settings: Sequence[str] = (), warm_samples: int = WARM_SAMPLES, times: int = _READINGS
) -> dict[str, Any]:
    """Learns so many samples, and reads the memory so many times. `broken` in the result names what grew."""
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        learning = _await_cluster(daemon)
        _learn(daemon, warm_samples, seed=0)
        begun_s, readings = time.monotonic(), []
        for seed in range(1, times + 1):
            _learn(daemon, samples // times, seed)
            readings.append(resident_mb(daemon, learning.actors))
        seconds = time.monotonic() - begun_s
        replaced = read_learning(daemon).actors != learning.actors
        status = daemon.status()
    comparisons = compare_all(readings)
    broken = growth(comparisons) + (["stages were replaced meanwhile"] if replaced else [])
    return {
        "samples": status["learned"],
        "seconds": round(seconds, 1),
        "samples_per_s": round(samples / seconds),
        "stages": [stage["layers"] for stage in status["stages"]],
        "mb_before": {each.name: round(each.before, 1) for each in comparisons},
        "mb_after": {each.name: round(each.after, 1) for each in comparisons},
        "total_mb": round(sum(each.after for each in comparisons), 1),
        "flat": all(each.flat for each in comparisons),
        "broken": broken,
    }


def compare_all(readings: Sequence[dict[str, float]]) -> list[Comparison]:
    """The memory of each part over time. A part that was not always there counts as 0 meanwhile."""
    parts = dict.fromkeys(chain.from_iterable(readings))
    return [compare_series(part, [each.get(part, 0.0) for each in readings], TOLERANCE) for part in parts]


def _await_cluster(daemon: DaemonProcess) -> Learning:
    """What it says once all stages are placed. Raises DaemonFailed."""
    deadline = time.monotonic() + _PLACED_S
    while time.monotonic() < deadline:
        learning = read_learning(daemon)
        if learning.actors:
            return learning
        time.sleep(_POLL_S)
    raise daemon.failure(f"stages are not placed after {_PLACED_S:g} s")


def _learn(daemon: DaemonProcess, samples: int, seed: int) -> None:
    """Sends random images and returns when they are learned. Raises DaemonFailed."""
    rng = np.random.default_rng(seed)
    with Producer(daemon.learn, client="cluster", connect_timeout_s=_ANSWER_S) as producer:
        for _ in range(-(-samples // _MESSAGE)):
            images = rng.integers(0, 256, (_MESSAGE, *SHAPE), np.uint8)
            producer.send(images, rng.integers(0, LABELS, _MESSAGE), timeout_s=_ANSWER_S)
        producer.flush(_ANSWER_S)
        if producer.counts.acked != producer.counts.sent:
            raise DaemonFailed(f"{producer.counts.acked} of {producer.counts.sent} samples were acked")
    with Control(daemon.control) as control:
        control.wait_idle(_LEARN_S)
