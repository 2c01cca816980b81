"""Learning speed while a checkpoint is written, beside learning speed without one.

The learner runs on a journal that holds more samples than it can learn in the time. Intervals with and without a
checkpoint alternate and are equally long. An interval with one lasts from the request until it is durable. The
slowdown is the median over the pairs.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ffstream.config import Config
from ffstream.journal.journal import Journal
from ffstream.learning.learner import Learner
from ffstream.metrics import Metrics
from ffstream.pipeline.engine import make_engine
from tools.benchmarks.journals import fill
from tools.benchmarks.report import Failed, Report

_DEADLINE_S = 120.0
_MESSAGE = 1024


def run(report: Report, rounds: int, *, widths: tuple[int, ...] = (2000,) * 4, samples: int = 600_000) -> None:
    """Measures one network."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "state": Path(folder),
                "network": {"preset": "fast", "widths": widths, "warmup_samples": 0},
                "checkpoint": {"every_s": 0, "every_samples": 0, "keep": 1},
            }
        )
        journal = Journal(Path(folder) / "journal.sqlite", inputs=784, labels=10)
        fill(journal, 784, _MESSAGE, samples // _MESSAGE)
        failures: list[Exception] = []
        metrics = Metrics()
        learner = Learner(config, make_engine(config, metrics), journal, metrics, failures.append)
        learner.start()
        try:
            _measure(report, learner, journal, rounds, "-".join(map(str, (784, *widths))))
        finally:
            learner.end_learning(_DEADLINE_S, failed=True)
            learner.end_evaluation(_DEADLINE_S)
            learner.end_writing(_DEADLINE_S)
            journal.close()
        if failures:
            raise failures[0]


def _measure(report: Report, learner: Learner, journal: Journal, rounds: int, network: str) -> None:
    learner.checkpoint(_DEADLINE_S)  # warm-up: files, buffers, threads
    start = time.perf_counter()
    written = learner.checkpoint(_DEADLINE_S)
    span_s = time.perf_counter() - start
    without, during, slowdowns = [], [], []
    for _ in range(rounds):
        without.append(_rate(learner, journal, lambda: time.sleep(span_s)))
        during.append(_rate(learner, journal, lambda: learner.checkpoint(_DEADLINE_S)))
        slowdowns.append(100 * (1 - during[-1] / without[-1]))
    prefix, median = f"checkpoint/{network}", statistics.median
    report.add(f"{prefix}/learning_while_written", median(during), "samples/s", "learning_without", median(without))
    report.add(f"{prefix}/slowdown", median(slowdowns), "percent")
    report.add(f"{prefix}/seconds", span_s, "s")
    report.add(f"{prefix}/bytes", written.bytes / 1e6, "MB")


def _rate(learner: Learner, journal: Journal, work: Callable[[], object]) -> float:
    """Samples learned per second while `work` runs. Raises Failed if it had nothing to learn at the end."""
    start, before = time.perf_counter(), learner.applied_seq
    work()
    learned, seconds = learner.applied_seq - before, time.perf_counter() - start
    if learner.applied_seq >= journal.head.seq:
        raise Failed(f"the journal ran out of its {journal.head.seq:,} samples: take fewer rounds")
    return learned / seconds
