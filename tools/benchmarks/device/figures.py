"""Measures every arrangement of every network and batch size."""

import statistics
import time

from ffstream.pipeline.device import choose_device
from tools.benchmarks import roofline
from tools.benchmarks.device.case import Case
from tools.benchmarks.device.ways import WAYS, Way
from tools.benchmarks.report import Report

WIDTHS = {"784-512-512": (512, 512), "784-2000x4": (2000,) * 4, "784-2048x8": (2048,) * 8}
DRY_WIDTHS = {"784-16-16": (16, 16), "784-16x4": (16,) * 4, "784-16x8": (16,) * 8}
_REPEATS = 3


def run(report: Report, *, dry: bool, seconds: float, limit_s: float) -> bool:
    """Measures all networks and batch sizes; starts no further one after `limit_s`. Returns whether none failed."""
    device = choose_device("cpu" if dry else "cuda")
    deadline = time.monotonic() + limit_s
    good = True
    for network, widths in (DRY_WIDTHS if dry else WIDTHS).items():
        for batch in (8, 16) if dry else (256, 2048):
            name = f"gpu/{network}/batch{batch}"
            if time.monotonic() > deadline:
                report.fail(name, f"not started: the limit of {limit_s:g} s has passed")
                good = False
                continue
            good &= _measure(report, name, Case.make(widths, batch, device), seconds)
    return good


def _measure(report: Report, name: str, case: Case, seconds: float) -> bool:
    batch, flops = len(case.labels), roofline.flops(case.recipe)
    found: dict[str, float] = {}
    good = True
    for way, begin in WAYS.items():
        try:
            with begin(case) as running:
                found[way] = batch * _steps_per_second(running, seconds)
        except Exception as error:  # measure the others all the same
            report.fail(f"{name}/{way}", f"{type(error).__name__}: {error}".splitlines()[0])
            good = False
    for way in ("one_stream", "stage_streams", "stage_graphs"):
        for peer in ("backprop_mlp", "one_stream"):
            if way in found and peer in found and way != peer:
                report.add(f"{name}/{way}/over_{peer}", found[way], "samples/s", peer, found[peer])
        if way in found and "products" in found:
            done, possible = (found[each] * flops / 1e12 for each in (way, "products"))
            report.add(f"{name}/{way}/share_of_products", done, "TFLOP/s", "products", possible)
    return good


def _steps_per_second(way: Way, seconds: float) -> float:
    """The median of `_REPEATS` measurements of about `seconds`, after a warm-up."""
    way.run(3)
    steps, taken = 2, _timed(way, 2)
    while taken < seconds / 4:
        steps *= 2
        taken = _timed(way, steps)
    steps = max(2, round(steps * seconds / taken))
    return statistics.median(steps / _timed(way, steps) for _ in range(_REPEATS))


def _timed(way: Way, steps: int) -> float:
    start = time.perf_counter()
    way.run(steps)
    return time.perf_counter() - start
