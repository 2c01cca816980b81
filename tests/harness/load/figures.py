"""What a process holds, over time, and whether that stayed flat."""

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

_MB = 1e6
_FEWEST = 10  # values: fewer make fifths of a single one


class Figures(NamedTuple):
    """One look at a daemon."""

    at_s: float
    rss_mb: float
    descriptors: int
    threads: int
    disk_mb: float


def look(pid: int, state: Path | None = None) -> Figures:
    """What process `pid` holds now, and the folder `state` on disk. Raises OSError when the process is gone."""
    proc = Path("/proc", str(pid))
    lines = (line.partition(":") for line in (proc / "status").read_text(encoding="utf-8").splitlines())
    status = {key: value for key, _, value in lines}
    return Figures(
        time.monotonic(),
        int(status["VmRSS"].split()[0]) * 1024 / _MB,
        sum(1 for _ in (proc / "fd").iterdir()),
        int(status["Threads"]),
        _used(state) / _MB if state else 0.0,
    )


def _used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512  # what it takes on the disk, not how long it is
        except FileNotFoundError:
            continue  # an old checkpoint, deleted between the two calls
    return total


class Watcher:
    """Looks every so often while entered, on a thread of its own. Stops looking when the process is gone."""

    def __init__(self, pid: int, state: Path | None = None, *, every_s: float) -> None:
        self.figures: list[Figures] = []
        self._pid, self._state, self._every_s = pid, state, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.figures.append(look(self._pid, self._state))
            except OSError:
                return
            self._stop.wait(self._every_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def until_level(pid: int, *, descriptors: float, rss_mb: float, timeout_s: float) -> None:
    """Returns once a process holds no more than that, or after the timeout: who judges looks again."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        now = look(pid)
        if now.descriptors <= descriptors and now.rss_mb <= rss_mb:
            return
        time.sleep(0.1)


def at_rest(pid: int, state: Path | None = None, *, seconds: float) -> Figures:
    """The look with the least memory of several: without the buffers of a checkpoint that is just being written."""
    looks = [look(pid, state)]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
        looks.append(look(pid, state))
    return min(looks, key=lambda each: each.rss_mb)


class Tolerance(NamedTuple):
    """How much more than at first is still flat: the larger of the two."""

    absolute: float
    share: float
    why: str

    def allows(self, before: float) -> float:
        """The highest level that is flat for one that began at `before`."""
        return before + max(self.absolute, self.share * before)


@dataclass(frozen=True)
class Verdict:
    """A figure after warm-up and at the end."""

    name: str
    before: float
    after: float
    allowed: float

    @property
    def flat(self) -> bool:
        return self.after <= self.allowed


def judge(name: str, before: float, after: float, tolerance: Tolerance) -> Verdict:
    """Two levels held against each other. To shrink is flat."""
    return Verdict(name, before, after, tolerance.allows(before))


def judge_series(name: str, values: Sequence[float], tolerance: Tolerance) -> Verdict:
    """Medians of the second fifth, when everything is warm, and of the last. Raises ValueError for a short series."""
    if len(values) < _FEWEST:
        raise ValueError(f"{len(values)} looks at {name}, {_FEWEST} are needed: run longer")
    fifth = len(values) // 5
    return judge(name, statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:]), tolerance)
