"""Samples per second that a producer in another process gets acked, and learned; with `--long` the daemon's memory.

The peer of the ack rate is SQLite alone: the journal commits such rows in this process once the daemon has ended.
"""

import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from ffstream.client import Control
from ffstream.journal.journal import Journal
from tests.harness.daemon import temporary_daemon
from tools.benchmarks.journals import fill
from tools.benchmarks.report import Report, rate

SETTINGS = ("network.preset=fast",)
# A producer process. Prints the samples acked per second, and the time at which it sent the first one.
PRODUCER = """
import sys, time
import numpy as np
from ffstream.client import CurveKeys, Producer
endpoint, samples, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keys = CurveKeys.load(*sys.argv[4:6]) if len(sys.argv) > 4 else None
images = np.random.default_rng(0).integers(0, 256, (4096, 28, 28), dtype=np.uint8)
labels = np.random.default_rng(1).integers(0, 10, 4096)
single = [(images[at], int(labels[at])) for at in range(4096)]
producer = Producer(endpoint, keys=keys)
began, start = time.time(), time.perf_counter()
for first in range(0, samples, batch):
    at = first % 4096
    if batch == 1:
        producer.send(*single[at])
    else:
        producer.send(images[at : at + batch], labels[at : at + batch])
producer.flush(300)
print(producer.counts.acked / (time.perf_counter() - start), began)
producer.close()
"""


def run(report: Report, rounds: int, *, long: bool, samples: int = 240_000) -> None:
    """Messages of 64 samples, messages of one sample, and with `long` the memory at sample 600,000."""
    for _ in range(rounds):
        _batches(report, samples, 64)
        _singles(report, samples // 4)
    if long:
        _memory(report)


def produce(endpoint: str, samples: int, batch: int, keys: tuple[Path, Path] | None = None) -> tuple[float, float]:
    """Samples acked per second by a producer process, and the time at which it sent the first one."""
    command = [sys.executable, "-c", PRODUCER, endpoint, str(samples), str(batch), *map(str, keys or ())]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=True)
    acked, began = map(float, done.stdout.split())
    return acked, began


def _batches(report: Report, samples: int, batch: int) -> None:
    with temporary_daemon(*SETTINGS) as daemon, Control(daemon.endpoints["control"]) as control:
        produce(daemon.endpoints["learn"], 5_120, batch)  # warm-up: threads and buffers
        control.wait_idle(60)
        acked, began = produce(daemon.endpoints["learn"], samples, batch)
        control.wait_idle(300)
        learned = samples / (time.time() - began)
    report.add(f"ingest/batch{batch}/acked", acked, "samples/s", "journal_alone", _journal_rate(samples, batch))
    report.add(f"ingest/batch{batch}/acked_and_learned", learned, "samples/s")


def _singles(report: Report, samples: int) -> None:
    with temporary_daemon(*SETTINGS) as daemon:
        acked, _ = produce(daemon.endpoints["learn"], samples, 1)
    report.add("ingest/single/acked", acked, "samples/s", "journal_alone", _journal_rate(samples, 1))


def _memory(report: Report) -> None:
    with temporary_daemon(*SETTINGS) as daemon, Control(daemon.endpoints["control"]) as control:
        produce(daemon.endpoints["learn"], 60_032, 64)
        control.wait_idle(300)
        early = daemon.resident_mb()
        produce(daemon.endpoints["learn"], 540_032, 64)
        control.wait_idle(600)
        report.add("ingest/resident_memory_60k", early, "MB")
        report.add("ingest/resident_memory_600k_growth", daemon.resident_mb() - early, "MB")


def _journal_rate(samples: int, batch: int) -> float:
    """Samples per second of the journal alone, with as many messages per commit as in a busy daemon."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Journal(Path(folder, "journal.sqlite"), inputs=784, labels=10)) as journal,
    ):
        return rate(samples, lambda: fill(journal, 784, batch, samples // batch, commit=max(1, 512 // batch)))
