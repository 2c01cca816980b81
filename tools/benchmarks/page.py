"""How long a person waits for the page: until it is painted, has figures and charts, and shows a lost daemon as lost.

Each time the page is opened in a new profile, so nothing is in the browser's cache. The daemon has learned some
digits, and is idle.
"""

import signal
import statistics
import time

from playwright.sync_api import Browser

from tests.harness.browser import Tab, browser
from tests.harness.commands import run_json
from tests.harness.daemon import DaemonProcess, temporary_daemon
from tools.benchmarks.report import Report

SETTINGS = ("network.preset=fast",)
_SAMPLES = 5000
# What the browser calls it, from the start of the navigation on. main.js and charts.js set the last two.
_STEPS = {"first_paint": "first-contentful-paint", "first_data": "first-data", "first_chart": "first-chart"}


def run(report: Report, rounds: int) -> None:
    """Medians of opening the page, and of freezing and killing daemons."""
    frozen, killed = [], []
    with browser() as chromium:
        with temporary_daemon(*SETTINGS) as daemon:
            run_json("replay", "embedded", "--limit", str(_SAMPLES), "--to", daemon.learn)
            daemon.status(idle=True)
            opened = [_open(chromium, daemon) for _ in range(rounds)]
        for name in _STEPS:
            _add(report, name, [each[name] for each in opened])
        for _ in range(rounds):
            with temporary_daemon(*SETTINGS) as daemon:
                frozen.append(_lost(chromium, daemon, signal.SIGSTOP))
                daemon.process.send_signal(signal.SIGCONT)
                killed.append(_lost(chromium, daemon, signal.SIGKILL))
    _add(report, "frozen_daemon_is_lost", frozen)
    _add(report, "killed_daemon_is_lost", killed)


def _add(report: Report, name: str, seconds: list[float]) -> None:
    report.add(f"page/{name}", statistics.median(seconds), "s", slowest=max(seconds))


def _open(chromium: Browser, daemon: DaemonProcess) -> dict[str, float]:
    with Tab(chromium, daemon.http) as tab:
        tab.wait_for_charts("learning")
        found: dict[str, float] = {}
        for name, mark in _STEPS.items():
            tab.wait_for(f"performance.getEntriesByName('{mark}').length")
            found[name] = tab.evaluate(f"performance.getEntriesByName('{mark}')[0].startTime") / 1000
        return found


def _lost(chromium: Browser, daemon: DaemonProcess, sent: signal.Signals) -> float:
    """Seconds from the signal until the page shows the daemon as lost."""
    with Tab(chromium, daemon.http) as tab:
        tab.wait_for_state("ready")
        tab.evaluate(
            """void new MutationObserver(([{ target }]) => {
                if (target.dataset.state === 'lost') globalThis.lostAt ??= Date.now();
            }).observe(document.getElementById('pill'), { attributes: true })"""
        )
        began_s = time.time()
        daemon.process.send_signal(sent)
        tab.wait_for("globalThis.lostAt")
        lost_s: float = tab.evaluate("globalThis.lostAt") / 1000
        return lost_s - began_s
