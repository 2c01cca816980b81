"""Rows: what a measurement prints, with its origin. And how to measure rates on a noisy machine.

A row is one JSON object. It has `name value unit`, with a peer also `peer peer_value ratio`, further keys of the
measurement, and its origin: the command with its options and seeds, the commit, versions, processor and date.
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
# Changes of these files do not count: otherwise the first recorded result would make the tree dirty for the next.
_RECORDED = (":!tools/benchmarks/results.jsonl", ":!tools/README.md")
_PACKAGES = ("torch", "numpy", "pyzmq")
# Flags that decide which kernels torch and numpy choose.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
NOT_RECORDED = "not recorded"

Row = dict[str, Any]


class Failed(Exception):
    """Nothing was measured, or nothing that can be trusted. The message says why."""


@functools.cache
def origin() -> Row:
    """Commit, versions and machine. A value that is unknown is "not recorded"."""
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
    """The commit of this tree, and whether files differ from it."""
    given = os.environ.get("FFSTREAM_COMMIT")  # set by `tools/gpu --commit`, for a copy of the tree without .git
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
    """The name of the processor, and which of `_FLAGS` it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or NOT_RECORDED, []
    pairs = (line.partition(":") for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    known = facts.get("flags", facts.get("Features", "")).split()
    return facts.get("model name", platform.machine()), [flag for flag in _FLAGS if flag in known]


class Report:
    """Prints each row at once: as text, or as one JSON object per line."""

    def __init__(
        self,
        as_json: bool,
        command: str,
        options: Mapping[str, Any] | None = None,
        seeds: Sequence[int] = (),
        device: str | None = None,
    ) -> None:
        """`command` and `options` are those that produced the rows, `seeds` all that were used, and `device` is the
        name of the GPU that was measured."""
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
            row |= {"peer": peer, "peer_value": peer_value}
            row |= {"ratio": value / peer_value} if peer_value else {}  # an error may be 0
        self._print(row | more)

    def fail(self, name: str, why: str) -> None:
        """Prints a row with the reason why there is no value."""
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
    """The date in UTC."""
    return datetime.now(UTC).date().isoformat()


def describe_origin(row: Mapping[str, Any]) -> str:
    """The origin of a row as one line of text."""
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
        text += f" {row['peer']} {row['peer_value']:,.5g}"
        text += f" ratio {row['ratio']:.3f}" if "ratio" in row else ""
    if "standing" in row:
        text += f" {row['lowest']:+.2f} to {row['highest']:+.2f}: {row['standing']}"
    if "low" in row:
        text += f" 95 % {row['low']:.3f} to {row['high']:.3f} {'ok' if row['passed'] else 'SLOWER'}"
    return text


def in_turn(rounds: int, *runs: Callable[[], float]) -> list[float]:
    """Medians of measurements in the order A B C A B C …, so that a drift of the machine affects all of them."""
    figures: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for figure, run in zip(figures, runs, strict=True):
            figure.append(run())
    return [statistics.median(figure) for figure in figures]


def rate(count: int, work: Callable[[], object]) -> float:
    """`count` divided by the seconds that one call of `work` takes."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)
