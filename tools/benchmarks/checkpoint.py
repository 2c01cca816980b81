"""What a checkpoint costs while learning goes on: learning speed while one is taken and written, beside that without.

The whole learning side runs on a journal that holds more than it can learn in the time. Spans with and without a
checkpoint alternate; a span with one lasts from the request until it is durable.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from ffstream.config import Config
from ffstream.journal.journal import Entry, Journal
from ffstream.learner import Learner
from ffstream.metrics import Metrics
from tools.benchmarks.report import Report

_DEADLINE_S = 120.0
_MESSAGE = 1024


def run(report: Report, rounds: int, *, widths: tuple[int, ...] = (2000,) * 4, samples: int = 200_000) -> None:
    """The figures for one network."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "state": Path(folder),
                "network": {"preset": "fast", "widths": widths, "young_samples": 0},
                "checkpoint": {"every_s": 0, "every_samples": 0, "keep": 1},
            }
        )
        journal = Journal(Path(folder) / "journal.sqlite", inputs=784, labels=10)
        _fill(journal, samples)
        failures: list[Exception] = []
        learner = Learner(config, journal, Metrics(), failures.append)
        learner.start()
        try:
            _measure(report, learner, rounds, "-".join(map(str, (784, *widths))))
        finally:
            learner.end_learning(_DEADLINE_S, failed=True)
            learner.end_evaluation(_DEADLINE_S)
            learner.end_writing(_DEADLINE_S)
            journal.close()
        if failures:
            raise failures[0]


def _fill(journal: Journal, samples: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (_MESSAGE, 784), dtype=np.uint8).tobytes()
    labels = generator.integers(0, 10, _MESSAGE).astype("<u2").tobytes()
    for first in range(1, samples // _MESSAGE + 1, 32):
        numbers = range(first, first + 32)
        journal.append([Entry("bench", n, n, _MESSAGE, "uint8", labels, images) for n in numbers])


def _measure(report: Report, learner: Learner, rounds: int, network: str) -> None:
    learner.checkpoint(_DEADLINE_S)  # warm: files, buffers, threads
    learned = [0, 0]
    seconds = [0.0, 0.0]
    written = []
    for _ in range(rounds):
        for which in (0, 1):
            start, before = time.perf_counter(), learner.applied_seq
            if which:
                written.append(learner.checkpoint(_DEADLINE_S))
            else:
                time.sleep(2.0)
            seconds[which] += time.perf_counter() - start
            learned[which] += learner.applied_seq - before
    without, during = (count / span for count, span in zip(learned, seconds, strict=True))
    prefix = f"checkpoint/{network}"
    report.add(f"{prefix}/learning_while_written", during, "samples/s", "learning_without", without)
    report.add(f"{prefix}/slowdown", 100 * (1 - during / without), "percent")
    report.add(f"{prefix}/lost_a_checkpoint", (1 - during / without) * seconds[1] / rounds, "s of learning")
    report.add(f"{prefix}/seconds", seconds[1] / rounds, "s")
    report.add(f"{prefix}/bytes", written[-1].bytes / 1e6, "MB")
