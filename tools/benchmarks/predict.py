"""Latency of predictions at the client, while the daemon is idle and while it learns at full speed.

The peer is a call of the classifier in this process, without a daemon.
"""

import subprocess
import sys
import time

import numpy as np
import torch

from ffstream.client import Control, Predictor
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe
from tests.harness.daemon import DaemonProcess, temporary_daemon
from tools.benchmarks.ingest import PRODUCER
from tools.benchmarks.report import Failed, Report

SETTINGS = ("network.preset=fast",)


def run(report: Report, rounds: int, *, queries: int = 2000) -> None:
    """Queries of one image, one after another."""
    for _ in range(rounds):
        alone_ms = _percentile(_times_alone(), 50)
        with temporary_daemon(*SETTINGS) as daemon:
            while_idle(report, daemon, alone_ms, queries)
            _while_learning(report, daemon, alone_ms, queries)


def while_idle(report: Report, daemon: DaemonProcess, alone_ms: float, queries: int) -> None:
    """Reports the latencies of a daemon that has nothing to learn, beside the median without a daemon."""
    _times(daemon.predict, 100)  # warm-up
    _report(report, "idle", _times(daemon.predict, queries), alone_ms)


def _while_learning(report: Report, daemon: DaemonProcess, alone_ms: float, queries: int) -> None:
    command = [sys.executable, "-c", PRODUCER, daemon.learn, "600000", "64"]
    with Control(daemon.control) as control:
        producer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _until_backlog(control, 20_000)
            busy = _times(daemon.predict, queries)
            if control.status()["backlog"] == 0:
                raise Failed("the backlog ran out: the daemon was not learning at full speed")
            _report(report, "learning", busy, alone_ms)
        finally:
            producer.terminate()
            producer.wait(30)
            control.request("pause")  # so that the daemon need not learn the backlog before it stops


def _report(report: Report, state: str, times: list[float], alone_ms: float) -> None:
    for percent in (50, 99):
        report.add(f"predict/{state}/p{percent}", _percentile(times, percent), "ms", "classifier_alone", alone_ms)


def _until_backlog(control: Control, samples: int) -> None:
    deadline = time.monotonic() + 60
    while control.status()["backlog"] < samples:
        if time.monotonic() > deadline:
            raise Failed("no backlog: the daemon learns as fast as the producer sends")
        time.sleep(0.02)


def _times(endpoint: str, queries: int) -> list[float]:
    images = np.random.default_rng(0).integers(0, 256, (queries, 1, 28, 28), dtype=np.uint8)
    times = []
    with Predictor(endpoint) as predictor:
        for image in images:
            start = time.perf_counter()
            predictor.predict(image)
            times.append(1e3 * (time.perf_counter() - start))
    return times


def _times_alone() -> list[float]:
    classifier = Network(recipe("fast")).classifier()
    image = torch.randint(0, 256, (1, 784), dtype=torch.uint8)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        classifier.predict(image)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _percentile(times: list[float], percent: float) -> float:
    return float(np.percentile(times, percent))
