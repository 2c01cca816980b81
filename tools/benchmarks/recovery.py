"""Time to recover from kill -9, with 60,000 acked samples after the last checkpoint.

`ready`: from the start of the process until it accepts samples and queries. `first_answer`: until it has answered a
query, for which it loads the compiled loops. `caught_up`: until predictions have learned every acked sample; the peer
is the speed at which a daemon learns the same samples as they arrive. `taken_over`: from the kill until a standby has
answered a query.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from ffstream.client import Control, Predictor, Producer
from tests.harness.daemon import DaemonProcess, Daemons
from tools.benchmarks.report import Report

SETTINGS = ("network.preset=fast", "checkpoint.every_s=0", "checkpoint.every_samples=0")
_BATCH = 100
_DEADLINE_S = 300.0


def run(report: Report, rounds: int, *, samples: int = 60_000) -> None:
    """Reports medians over `rounds` kills."""
    ready, first_answer, caught_up, taken_over, learning = [], [], [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, Daemons(Path(folder)) as daemons:
            daemon = daemons.start(*SETTINGS)
            learning.append(_learn(daemon, samples))
            daemon.kill()
            start = time.perf_counter()
            again = daemons.start(*SETTINGS)
            ready.append(time.perf_counter() - start)
            first_answer.append(_ask(again) - start)
            with Control(again.control) as control:
                assert control.wait_idle(_DEADLINE_S)["learned"] == 2 * samples
            caught_up.append(time.perf_counter() - start - ready[-1])
            taken_over.append(_take_over(daemons, again))
    report.add("recovery/ready", statistics.median(ready), "s")
    report.add("recovery/first_answer", statistics.median(first_answer), "s")
    report.add("recovery/taken_over", statistics.median(taken_over), "s", "ready", statistics.median(ready))
    report.add("recovery/caught_up_after_ready", statistics.median(caught_up), "s")
    speed = samples / statistics.median(caught_up)
    report.add("recovery/catching_up", speed, "samples/s", "learning_as_they_come", statistics.median(learning))


def _ask(daemon: DaemonProcess) -> float:
    """The time at which it has answered a query."""
    with Predictor(daemon.predict) as predictor:
        predictor.predict(np.zeros((1, 784), np.uint8))
    return time.perf_counter()


def _take_over(daemons: Daemons, daemon: DaemonProcess) -> float:
    """Seconds from the kill of `daemon` until a standby serves."""
    standby = daemons.start(*SETTINGS, standby=True)
    start = time.perf_counter()
    daemon.kill()
    standby.await_ready()
    return _ask(standby) - start


def _learn(daemon: DaemonProcess, samples: int) -> float:
    """Sends samples, takes a checkpoint, and sends as many again. Returns the speed of learning these."""
    images = np.random.default_rng(0).integers(0, 256, (samples, 784), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 10, samples)
    seconds = 0.0
    with Producer(daemon.learn) as producer, Control(daemon.control) as control:
        for half in range(2):
            start = time.perf_counter()
            for at in range(0, samples, _BATCH):
                producer.send(images[at : at + _BATCH], labels[at : at + _BATCH])
            producer.flush(_DEADLINE_S)
            control.wait_idle(_DEADLINE_S)
            seconds = time.perf_counter() - start
            if half == 0:
                control.request("checkpoint", timeout_s=_DEADLINE_S)
    return samples / seconds
