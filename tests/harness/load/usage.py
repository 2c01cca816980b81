"""What a process uses (memory, descriptors, threads, disk space), and whether that grew."""

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

_MB = 1e6
_MIN_VALUES = 10  # so that a fifth of a series has at least two values


class Usage(NamedTuple):
    """What a process used at one moment."""

    at_s: float
    rss_mb: float
    descriptors: int
    threads: int
    disk_mb: float


def read_usage(pid: int, state: Path | None = None) -> Usage:
    """What process `pid` uses now, and the folder `state` on disk. Raises OSError when the process has ended."""
    proc = Path("/proc", str(pid))
    lines = (line.partition(":") for line in (proc / "status").read_text(encoding="utf-8").splitlines())
    status = {key: value for key, _, value in lines}
    return Usage(
        time.monotonic(),
        int(status["VmRSS"].split()[0]) * 1024 / _MB,
        sum(1 for _ in (proc / "fd").iterdir()),
        int(status["Threads"]),
        _disk_bytes(state) / _MB if state else 0.0,
    )


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512  # the space on disk, not the length
        except FileNotFoundError:
            continue  # an old checkpoint that was deleted meanwhile
    return total


class UsageSampler:
    """Reads the usage at an interval, on its own thread, during its block. Ends early when the process ends."""

    def __init__(self, pid: int, state: Path | None = None, *, every_s: float) -> None:
        self.values: list[Usage] = []
        self._pid, self._state, self._every_s = pid, state, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.values.append(read_usage(self._pid, self._state))
            except OSError:
                return
            self._stop.wait(self._every_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def wait_for_usage(pid: int, *, descriptors: float, rss_mb: float, timeout_s: float) -> None:
    """Returns once a process uses no more than this, or after the timeout; the caller then compares."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        now = read_usage(pid)
        if now.descriptors <= descriptors and now.rss_mb <= rss_mb:
            return
        time.sleep(0.1)


def lowest_usage(pid: int, state: Path | None = None, *, seconds: float) -> Usage:
    """The reading with the least memory during a time, so that the buffers of a checkpoint do not count."""
    values = [read_usage(pid, state)]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
        values.append(read_usage(pid, state))
    return min(values, key=lambda each: each.rss_mb)


class Tolerance(NamedTuple):
    """How much a value may rise and still count as flat: `absolute` or `share` of the first, whichever is larger."""

    absolute: float
    share: float
    why: str

    def limit(self, before: float) -> float:
        """The highest value that counts as flat after `before`."""
        return before + max(self.absolute, self.share * before)


@dataclass(frozen=True)
class Comparison:
    """A value after warm-up and at the end."""

    name: str
    before: float
    after: float
    limit: float

    @property
    def flat(self) -> bool:
        return self.after <= self.limit


def compare(name: str, before: float, after: float, tolerance: Tolerance) -> Comparison:
    """Compares two values. A lower one counts as flat."""
    return Comparison(name, before, after, tolerance.limit(before))


def compare_series(name: str, values: Sequence[float], tolerance: Tolerance) -> Comparison:
    """Compares the median of the second fifth (after warm-up) with that of the last fifth.

    Raises ValueError when the series is too short.
    """
    if len(values) < _MIN_VALUES:
        raise ValueError(f"{len(values)} readings of {name}, {_MIN_VALUES} are needed: run longer")
    fifth = len(values) // 5
    before, after = statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])
    return compare(name, before, after, tolerance)
