"""What a measurement prints, where it comes from, and how rates are taken on a noisy machine.

A row is one JSON object: `name value unit`, where there is a peer `peer peer_value ratio`, what else the measurement
says, and its origin: the command with its options and seeds, the commit, versions, processor and date. So a row can
be judged without knowing who ran it.
"""

import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ffstream

ROOT = Path(__file__).resolve().parents[2]
# Results recorded one after another must not mark those that follow.
_RECORDED = (":!tools/benchmarks/results.jsonl", ":!tools/README.md")
_PACKAGES = ("torch", "numpy", "pyzmq")
# Those that change which kernels torch and numpy choose.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
NOT_RECORDED = "not recorded"

Row = dict[str, Any]


@functools.cache
def origin() -> Row:
    """Commit, versions and machine. What cannot be found out is "not recorded"."""
    commit, dirty = _commit()
    processor, flags = _processor()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "ffstream": ffstream.__version__,
        "processor": processor,
        "flags": flags,
        "cores": len(os.sched_getaffinity(0)),
    }


def _commit() -> tuple[str, bool | str]:
    """This tree's commit, and whether files differ from it."""
    given = os.environ.get("FFSTREAM_COMMIT")  # for a copy of the tree without its repository
    if given:
        return given, NOT_RECORDED
    try:
        changed = _git("status", "--porcelain", "--", ".", *_RECORDED)
        return _git("rev-parse", "--short=12", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return NOT_RECORDED, NOT_RECORDED


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60, check=True
    ).stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_RECORDED


def _processor() -> tuple[str, list[str]]:
    """Its name, and those of its flags that matter."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or NOT_RECORDED, []
    pairs = (line.partition(":") for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    known = facts.get("flags", facts.get("Features", "")).split()
    return facts.get("model name", platform.machine()), [flag for flag in _FLAGS if flag in known]


class Report:
    """Prints rows as they come: for people, or one JSON object a line."""

    def __init__(
        self,
        as_json: bool,
        command: str,
        options: Mapping[str, Any] | None = None,
        seeds: Sequence[int] = (),
        device: str | None = None,
    ) -> None:
        """`command` and `options` are what a person types to get the same rows; `seeds` are all that were used.
        `device` is the name of the GPU that was measured."""
        self._as_json = as_json
        self._ends_with: Row = {"command": command, "options": dict(options or {}), "seeds": list(seeds)}
        if device is not None:
            self._ends_with["device"] = device
        self._said_origin = False

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        peer: str | None = None,
        peer_value: float = 0.0,
        **more: float | int | str | bool,
    ) -> None:
        """Prints one row."""
        row: Row = {"name": name, "value": value, "unit": unit}
        if peer is not None:
            row |= {"peer": peer, "peer_value": peer_value, "ratio": value / peer_value}
        self._print(row | more)

    def fail(self, name: str, why: str) -> None:
        """Prints a row that says why there is no figure."""
        self._print({"name": name, "failed": why})

    def _print(self, row: Row) -> None:
        if self._as_json:
            print(json.dumps({**row, **self._ends_with, **origin(), "measured": today()}), flush=True)
            return
        if not self._said_origin:
            self._said_origin = True
            print(describe_origin(origin()), flush=True)
        print(_as_text(row), flush=True)


def today() -> str:
    """The date in UTC, as rows have it."""
    return datetime.now(UTC).date().isoformat()


def describe_origin(row: Mapping[str, Any]) -> str:
    """One line for a person."""
    dirty = " with changes" if row["dirty"] is True else ""
    versions = ", ".join(f"{key} {row[key]}" for key in ("python", *_PACKAGES, "ffstream"))
    machine = f"{row['processor']} ({' '.join(row['flags'])}), {row['cores']} cores"
    return f"commit {row['commit']}{dirty}; {versions}; {machine}"


def _as_text(row: Row) -> str:
    if "failed" in row:
        return f"{row['name']:52} failed: {row['failed']}"
    value = row["value"]
    shown = f"{value:12,.4g}" if value < 100 else f"{value:12,.0f}"
    text = f"{row['name']:52} {shown} {row['unit']:16}"
    if "peer" in row:
        text += f" {row['peer']} {row['peer_value']:,.5g} ratio {row['ratio']:.3f}"
    if "low" in row:
        text += f" 95 % {row['low']:.3f} to {row['high']:.3f} {'ok' if row['passed'] else 'SLOWER'}"
    return text


def in_turn(rounds: int, *runs: Callable[[], float]) -> list[float]:
    """Medians of figures measured A B C A B C …, so that a drift of the machine meets them all."""
    figures: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for figure, run in zip(figures, runs, strict=True):
            figure.append(run())
    return [statistics.median(figure) for figure in figures]


def rate(count: int, work: Callable[[], object]) -> float:
    """Count a second of one call."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)
