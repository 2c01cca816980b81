"""One side of `tools/bench compare`: measures the source tree that comes first in PYTHONPATH.

The tree may have another layout and other option names than this one. So this script is run by its path, and it uses
only interfaces that have not changed for long: `ffstream serve`, `endpoints.json` in the state folder, and the public
methods of the clients.

Its argument is an empty folder for the daemon's state. It prints `{"ready": true}` once the daemon is warmed up. Then
it reads lines of the form `MEASUREMENT COUNT` from stdin and answers each with a line `{"seconds": …}` on stdout: the
time for all samples (`learning`, `ingest`), or the median over the queries (`prediction`). It kills its daemon and
ends when stdin ends.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ffstream.client import Control, Predictor, Producer

_SETTINGS = (
    "network.preset=fast",
    "checkpoint.every_s=0",
    "checkpoint.every_samples=0",
    "listen.learn=tcp://127.0.0.1:*",
    "listen.predict=tcp://127.0.0.1:*",
    "listen.control=tcp://127.0.0.1:*",
    "listen.http=127.0.0.1:0",
)
_BATCH = 64
_WARMUP_SAMPLES = 10_240  # presets begin with small microbatches, up to 8,192 samples
_WARMUP_QUERIES = 100
_START_S = 120.0
_DEADLINE_S = 300.0


def _samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of ten classes, two thirds of whose pixels are noise. They can be learned: a network that cannot learn
    looks for a change of the concept far more often than on a real stream."""
    random = np.random.default_rng(0)
    classes = random.integers(0, 256, (10, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, count)
    noise = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return np.where(random.random(noise.shape) < 2 / 3, noise, classes[labels]), labels


_IMAGES, _LABELS = _samples(4096)


class Side:
    """Measurements of one running daemon."""

    def __init__(self, endpoints: dict[str, str]) -> None:
        self._producer = Producer(endpoints["learn"])
        self._predictor = Predictor(endpoints["predict"])
        self._control = Control(endpoints["control"])
        self.learning(_WARMUP_SAMPLES)
        self.prediction(_WARMUP_QUERIES)

    def learning(self, samples: int) -> float:
        """Seconds from `resume`, with all samples in the journal, until predictions have learned them."""
        self._control.request("pause")
        self._send(samples)
        start = time.perf_counter()
        self._control.request("resume")
        self._control.wait_idle(_DEADLINE_S)
        return time.perf_counter() - start

    def ingest(self, samples: int) -> float:
        """Seconds until all samples are acked, while the daemon learns them."""
        self._control.request("resume")
        seconds = self._send(samples)
        self._control.request("pause")  # so that it does not compete with the other side, which is measured next
        return seconds

    def prediction(self, queries: int) -> float:
        """Median seconds of queries of one image, one after another, while the daemon is idle."""
        times = []
        for at in range(queries):
            image = _IMAGES[at % 4096][None]
            start = time.perf_counter()
            self._predictor.predict(image)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def _send(self, samples: int) -> float:
        start = time.perf_counter()
        for first in range(0, samples, _BATCH):
            at = first % 4096
            self._producer.send(_IMAGES[at : at + _BATCH], _LABELS[at : at + _BATCH])
        self._producer.flush(_DEADLINE_S)
        return time.perf_counter() - start


def main() -> None:
    folder = Path(sys.argv[1])
    options = [part for setting in _SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-P", "-m", "ffstream.cli", "serve", "--state", str(folder / "state"), *options]
    daemon = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        side = Side(_await_endpoints(folder / "state" / "endpoints.json", daemon))
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            name, count = line.split()
            print(json.dumps({"seconds": getattr(side, name)(int(count))}), flush=True)
    finally:
        daemon.kill()  # its state is not needed
        daemon.wait()


def _await_endpoints(path: Path, daemon: "subprocess.Popen[bytes]") -> dict[str, str]:
    deadline = time.monotonic() + _START_S
    while not path.exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"ffstream serve does not start, exit code {daemon.returncode}")
        time.sleep(0.01)
    endpoints: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return endpoints


if __name__ == "__main__":
    main()
