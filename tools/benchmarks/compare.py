"""Tests whether this tree is slower than a commit.

For each pair, a new daemon of each side is started, and both are measured within seconds of each other. The side that
is measured first alternates. So a slow drift of the machine's speed affects both sides, and the spread of the ratios
includes the variation between two starts of one program. The first pair is not counted: it fills caches, and from its
speeds follows how many samples one measurement needs.

The commit is extracted into a temporary folder that comes first in PYTHONPATH. It uses the packages of this tree's
virtual environment, so nothing is installed, and only the code differs.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tools.benchmarks.report import ROOT, Failed, Report

WHAT = ("learning", "prediction", "ingest")  # in this order, because `ingest` leaves samples that are not learned
LIMIT = 0.98
SEEDS = (0,)
_UNITS = {"learning": "samples/s", "prediction": "ms", "ingest": "samples/s"}
_PROBE = {"learning": 20_480, "prediction": 200, "ingest": 40_960}
_GRID = {"learning": 10_240, "prediction": 100, "ingest": 10_240}  # counts are multiples of these: whole microbatches
_RESAMPLES = 10_000
_ANSWER_S = 600.0
_END_S = 30.0


@dataclass(frozen=True)
class Verdict:
    """The median ratio of this tree's speed to the base's, and its 95 % confidence interval."""

    ratio: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the interval reaches `LIMIT`."""
        return self.high >= LIMIT


def judge(ratios: Sequence[float]) -> Verdict:
    """The median with its bootstrap interval: percentiles of the medians of resamples."""
    drawn = np.random.default_rng(SEEDS[0]).choice(np.asarray(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return Verdict(float(np.median(ratios)), float(low), float(high))


def run(report: Report, base: str, *, pairs: int, what: Sequence[str], seconds: float) -> bool:
    """Reports each pair, then the verdicts. Returns whether all passed. Raises Failed."""
    base = _git("rev-parse", "--short=12", f"{base}^{{commit}}").decode().strip()
    with checkout(base) as folder:
        trees = {"base": folder, "this": ROOT}
        counts = _choose_counts(_measure_pair(trees, "base", {name: _PROBE[name] for name in what}), seconds)
        ratios: dict[str, list[float]] = {name: [] for name in what}
        figures: dict[str, list[float]] = {name: [] for name in what}
        for pair in range(pairs):
            first = "base" if pair % 2 == 0 else "this"
            for name, seconds_of in _measure_pair(trees, first, counts).items():
                ratios[name].append(seconds_of["base"] / seconds_of["this"])
                figures[name].append(_figure(name, counts[name], seconds_of["base"]))
                figure = _figure(name, counts[name], seconds_of["this"])
                report.add(
                    f"compare/{name}/pair",
                    figure,
                    _UNITS[name],
                    base,
                    figures[name][-1],
                    ratio=ratios[name][-1],
                    pair=pair,
                )
    passed = True
    for name in what:
        verdict = judge(ratios[name])
        passed &= verdict.passed
        report.add(
            f"compare/{name}",
            verdict.ratio,
            "ratio",
            low=verdict.low,
            high=verdict.high,
            pairs=pairs,
            base=base,
            base_median=float(np.median(figures[name])),
            base_unit=_UNITS[name],
            passed=verdict.passed,
        )
    return passed


def _choose_counts(probed: Mapping[str, Mapping[str, float]], seconds: float) -> dict[str, int]:
    """The numbers of samples and queries that take about `seconds` on the slower side."""
    counts = {}
    for name, found in probed.items():
        taken = max(found.values()) * (_PROBE[name] if name == "prediction" else 1)
        wanted = _PROBE[name] * seconds / taken
        counts[name] = max(1, round(wanted / _GRID[name])) * _GRID[name]
    return counts


def _figure(name: str, count: int, seconds: float) -> float:
    """Samples per second, or the median latency in ms."""
    return 1e3 * seconds if name == "prediction" else count / seconds


# --- the two sides -----------------------------------------------------------------------------------------------


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A temporary folder with the files of a commit. Raises Failed."""
    with tempfile.TemporaryDirectory(prefix="ffstream-base-") as folder:
        with tarfile.TarFile(fileobj=BytesIO(_git("archive", commit))) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=60, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise Failed(f"git {' '.join(arguments)}: {error.stderr.decode().strip()}") from error


def _measure_pair(trees: Mapping[str, Path], first: str, counts: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Seconds by measurement and side. Both daemons run; the one that is not measured is idle."""
    order = sorted(trees, key=lambda side: side != first)
    with ExitStack() as stack:
        sides = {side: _Side(stack, trees[side]) for side in order}
        for side in sides.values():
            side.await_ready()
        return {
            name: {side: sides[side].measure(name, counts[name]) for side in order} for name in WHAT if name in counts
        }


class _Side:
    """A daemon of `tree` and its clients: `one_side.py` in a process group that ends with the stack."""

    def __init__(self, stack: ExitStack, tree: Path) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ffstream-side-"))
        self._tree, self._log = tree, Path(folder, "log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("one_side.py")), folder],
                env={**os.environ, "PYTHONPATH": str(tree)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                start_new_session=True,
            )
        stack.callback(self._end)

    def await_ready(self) -> None:
        """Returns once the daemon is warmed up. Raises Failed."""
        self._answer()

    def measure(self, name: str, count: int) -> float:
        """Seconds. Raises Failed."""
        print(name, count, file=self._process.stdin, flush=True)
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(_ANSWER_S, self._kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            raise Failed("\n".join([f"the code in {self._tree} could not be measured:", *tail]))
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> None:
        try:
            self._process.communicate(timeout=_END_S)  # closes its stdin
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.communicate()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
