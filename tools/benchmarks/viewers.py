"""What it costs that people look: readers of the live feed, `/metrics` while learning, and the history.

Learning and acks are measured in pairs, with and without viewers, in one daemon that always has a backlog. The order
of a pair alternates, so that a drift of the machine affects both. The processor time of a viewer is that of an idle
daemon with viewers, minus that of the same daemon without.
"""

import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import psutil

from ffstream.client import Control
from ffstream.history.file import HISTORY, HistoryFile
from ffstream.history.history import History
from ffstream.history.points import FIGURES
from ffstream.server.resources import return_free_memory
from tests.harness.daemon import DaemonProcess, temporary_daemon
from tools.benchmarks.compare import judge
from tools.benchmarks.ingest import PRODUCER, produce
from tools.benchmarks.report import Failed, Report

_Result = TypeVar("_Result")

SETTINGS = ("network.preset=stream", "prequential.fraction=1")
VIEWERS = 10
COST_MAX = 0.03
_LAYERS = 4  # of the history that is measured: more than any preset but one has
_DAY_S = 86_400
_BEGIN_S = 1_800_000_000  # of the history that is measured
_SENDS_S = 120.0  # until the first sample of a producer process is accepted
# A process with the viewers, which reads a line before it ends. Prints how many events they got.
_VIEWERS = """
import http.client, sys, threading
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
events = [0] * count
def view(index, answer):
    try:
        while line := answer.readline():
            events[index] += line.startswith(b"event: status")
    except (OSError, ValueError, http.client.HTTPException):
        pass
for index in range(count):
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request("GET", "/api/live")
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    while not answer.readline().startswith(b"event: "):
        pass
    threading.Thread(target=view, args=(index, answer), daemon=True).start()
print("viewing", flush=True)
sys.stdin.readline()
print(sum(events), flush=True)
"""


class _Window(NamedTuple):
    """One side of a pair. Neighbours on a shared machine disturb the processor time least."""

    acked: float  # samples per second, while a backlog is learned
    learned: float  # samples per second, while none arrive
    learned_per_processor_second: float  # of all threads of the daemon, meanwhile


def run(
    report: Report,
    rounds: int,
    *,
    samples: int = 100_000,
    learn_s: float = 4.0,
    idle_s: float = 10.0,
    scrapes: int = 1000,
) -> None:
    """`rounds` pairs of windows, in each of which `samples` are acked, then a backlog is learned for `learn_s`."""
    with temporary_daemon(*SETTINGS) as daemon, Control(daemon.control) as control:
        produce(daemon.learn, 20_000, 64)  # warm-up
        control.wait_idle(300)
        produce(daemon.learn, 2 * samples, 64)  # from here on there is always a backlog
        _pairs(report, daemon, control, rounds, samples, learn_s)
        _scrapes(report, daemon, control, scrapes)
        control.request("pause")
        _processor_time(report, daemon, rounds, idle_s)
    _history(report)


def _pairs(
    report: Report, daemon: DaemonProcess, control: Control, rounds: int, samples: int, learn_s: float
) -> None:
    windows: dict[bool, list[_Window]] = {True: [], False: []}
    for number in range(rounds):
        for viewed in (True, False) if number % 2 else (False, True):
            with _viewers(daemon, VIEWERS if viewed else 0):
                windows[viewed].append(_window(daemon, control, samples, learn_s))
    for name in _Window._fields:
        with_viewers, without = ([getattr(window, name) for window in windows[viewed]] for viewed in (True, False))
        row = f"viewers/{VIEWERS}_readers/{name}"
        report.add(row, float(np.median(with_viewers)), "samples/s", "no_readers", float(np.median(without)))
        verdict = judge([one / other for one, other in zip(with_viewers, without, strict=True)])
        passed = verdict.high >= 1 - COST_MAX
        report.add(f"{row}/pairs", verdict.ratio, "ratio", low=verdict.low, high=verdict.high, passed=passed)


def _window(daemon: DaemonProcess, control: Control, samples: int, learn_s: float) -> _Window:
    acked, _ = produce(daemon.learn, samples, 64)
    process = psutil.Process(daemon.pid)

    def learn() -> tuple[float, float]:
        """Samples learned per second, and per second of processor time."""
        before, used_before, start = control.status()["learned"], _cpu_s(process), time.perf_counter()
        time.sleep(learn_s)
        learned = control.status()["learned"] - before
        return learned / (time.perf_counter() - start), learned / (_cpu_s(process) - used_before)

    return _Window(acked, *_while_learning(daemon, control, learn))


def _while_learning(daemon: DaemonProcess, control: Control, measure: Callable[[], _Result]) -> _Result:
    """What is measured while a backlog is learned at full speed. If it runs out, then the same with a larger one."""
    for samples in (50_000, 200_000, 800_000):
        if control.status()["backlog"] < samples:
            produce(daemon.learn, samples, 64)
        result = measure()
        if control.status()["backlog"]:
            return result
    raise Failed("the backlog ran out: the daemon was not learning at full speed")


@contextmanager
def _viewers(daemon: DaemonProcess, count: int) -> Iterator[None]:
    """So many viewers in the block. They must have got events when it ends."""
    host, _, port = daemon.http.removeprefix("http://").rpartition(":")
    command = [sys.executable, "-c", _VIEWERS, host, port, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        if process.stdout.readline() != "viewing\n":
            raise Failed("the viewers did not get the live feed")
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        events, _ = process.communicate("end\n", timeout=60)
        if int(events) < count * (seconds / 2 - 2):
            raise Failed(f"{count} viewers got {events.strip()} events in {seconds:.0f} s")


def _processor_time(report: Report, daemon: DaemonProcess, rounds: int, idle_s: float) -> None:
    process = psutil.Process(daemon.pid)

    def used(viewers: int) -> float:
        with _viewers(daemon, viewers):
            before = _cpu_s(process)
            time.sleep(idle_s)
            return 1e3 * (_cpu_s(process) - before) / idle_s

    extra = [(used(VIEWERS), used(0)) for _ in range(min(rounds, 5))]
    each = float(np.median([(one - other) / VIEWERS for one, other in extra]))
    report.add("viewers/processor_time_of_a_reader", each, "ms/s")
    report.add("viewers/processor_time_idle", float(np.median([other for _, other in extra])), "ms/s")


def _cpu_s(process: psutil.Process) -> float:
    """Of its threads that run now. In nanoseconds at the source, while psutil counts in hundredths of a second."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def _scrapes(report: Report, daemon: DaemonProcess, control: Control, scrapes: int) -> None:
    """Latencies over one connection while a backlog is learned at full speed; then also with a producer."""
    _report_times(report, daemon, control, "learning", scrapes)
    command = [sys.executable, "-c", PRODUCER, daemon.learn, "10000000", "64"]
    accepted, deadline = control.status()["accepted"], time.monotonic() + _SENDS_S
    producer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while control.status()["accepted"] == accepted:
            if time.monotonic() > deadline:
                raise Failed(f"no sample of the producer is accepted after {_SENDS_S:g} s")
            time.sleep(0.05)
        _report_times(report, daemon, control, "learning_and_ingest", scrapes)
    finally:
        producer.terminate()
        producer.wait(30)


def _report_times(report: Report, daemon: DaemonProcess, control: Control, state: str, scrapes: int) -> None:
    for path in ("/metrics", "/status", "/api/history?span=10m"):
        times = _while_learning(daemon, control, partial(_times, daemon.http, path, scrapes))
        name = path.strip("/").partition("?")[0].replace("/", "_")
        for percent in (50, 99):
            report.add(f"viewers/{state}/{name}/p{percent}", float(np.percentile(times, percent)), "ms")


def _times(url: str, path: str, requests: int) -> list[float]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    times = []
    for _ in range(requests):
        start = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        times.append(1e3 * (time.perf_counter() - start))
        if answer.status != 200:
            raise Failed(f"{path} was answered with {answer.status}")
    connection.close()
    return times


def _history(report: Report) -> None:
    """Every level as full as after 30 days of a point a second: each gets a second for each of its intervals.

    Memory is that of a second history in this process, because the first one also loads code.
    """
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        first = _filled(folders[0])
        before = _resident_mb()
        second = _filled(folders[1])
        report.add("viewers/history_30_days/memory", _resident_mb() - before, "MB")
        used = sum(path.stat().st_size for path in folders[1].iterdir())
        report.add("viewers/history_30_days/disk", used / 1e6, "MB")
        start = time.perf_counter()
        second.history.document("30d")
        report.add("viewers/history_30_days/document", 1e3 * (time.perf_counter() - start), "ms")
        first.file.abandon()
        second.file.abandon()


class _Filled(NamedTuple):
    history: History
    file: HistoryFile


def _filled(folder: Path) -> _Filled:
    file = HistoryFile(folder / HISTORY, _LAYERS)
    history, _ = file.load()
    fill_thirty_days(history, lambda: file.save(history))
    return _Filled(history, file)


def _resident_mb() -> float:
    return_free_memory()  # as a daemon does every ten seconds
    return float(psutil.Process().memory_info().rss / 1e6)


def fill_thirty_days(history: History, save: Callable[[], None]) -> None:
    """Seconds that fill every level, oldest first. Calls `save` after every fifth, as often as a daemon."""
    figures = np.random.default_rng(0).random((_LAYERS, len(FIGURES)))
    counts = {"seconds": 1.0, "learned_samples": 1e4, "evaluated_samples": 1e3, "errors": 30.0, "layer_seconds": 1.0}
    values = {"accepted": 1e9, "learned": 1e9, "waiting": 5.0, "window_error": 0.03, "live_error": 0.03}
    spans = ((30 * _DAY_S, 600), (_DAY_S, 60), (3 * 3600, 10), (600, 1), (0, 1))
    added = 0
    for (oldest_s, step_s), (newest_s, _) in pairwise(spans):
        for ago_s in range(oldest_s, newest_s, -step_s):
            history.add(_BEGIN_S + 30 * _DAY_S - ago_s, counts, values, figures)
            added += 1
            if added % 5 == 0:
                save()
    save()
