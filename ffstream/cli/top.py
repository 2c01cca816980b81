"""`ffstream top`: what a daemon is doing, redrawn several times a second."""

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import click
from rich.console import Group
from rich.live import Live

from ffstream.cli import options, view
from ffstream.cli.output import console
from ffstream.client import Control, CurveKeys
from ffstream.errors import DeadlineExceeded, FFStreamError

_ANSWER_S = 1.5  # after that a daemon counts as lost: with the default interval less than 3 s after its last answer
_DRAW_S = 0.25  # ages grow between two answers


class Seen(NamedTuple):
    """The last status and the monotonic time of its arrival. `failure`: why the next one has not come."""

    status: dict[str, Any]
    time_s: float
    failure: FFStreamError | None


class StatusPoller:
    """Asks a daemon for its status each `interval_s`, also when it did not answer. Thread `ff-poll`.

    `first` is a status that has just arrived.
    """

    def __init__(self, endpoint: str, keys: CurveKeys | None, interval_s: float, first: dict[str, Any]) -> None:
        self.endpoint = endpoint
        self.trend = view.Trend()
        self._see(first)
        self._keys = keys
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ff-poll", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(2 * _ANSWER_S)

    def _see(self, status: dict[str, Any]) -> None:
        self.seen = Seen(status, time.monotonic(), None)
        self.trend.add(status, self.seen.time_s)

    def _run(self) -> None:
        with Control(self.endpoint, keys=self._keys) as control:
            while not self._ended.wait(self._interval_s):
                try:
                    self._see(control.status(_ANSWER_S))
                except FFStreamError as error:
                    self.seen = self.seen._replace(failure=error)

    def frame(self, width: int) -> Group:
        """What is known now."""
        seen = self.seen
        if seen.failure is None:
            return view.draw(seen.status, self.trend, width=width)
        reason = "" if isinstance(seen.failure, DeadlineExceeded) else seen.failure.message
        gone = view.lost(time.monotonic() - seen.time_s, reason)
        return view.draw(seen.status, self.trend, width=width, gone=gone)


@click.command(epilog=options.example("ffstream top", "ffstream top --at tcp://trainer:5759 --once"))
@options.control_endpoint
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Time between two questions to the daemon.",
)
@click.option("--once", is_flag=True, help="Print one frame and end, as without a terminal.")
@options.keys
def top(endpoint: str, interval_s: float, once: bool, keys: CurveKeys | None) -> None:
    """Show what a daemon does and learns, until q or Ctrl-C.

    `error` is the prequential error: each sample is predicted before it is learned. The table shows the mean goodness
    of what each layer compares: the right label and wrong ones, the group of units of the right class and those of
    wrong ones, or real images and negative ones. `margin` is the distance to the strongest wrong one.
    """
    with Control(endpoint, keys=keys) as control:
        first = control.status()  # fails early if there is no daemon
    screen = console(highlight=False)
    if once or not screen.is_terminal:
        screen.print(view.draw(first, view.Trend(), width=screen.width))
        return
    ended: list[int] = []  # an exception could be lost, for example in a destructor
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: ended.append(number))
    with (
        StatusPoller(endpoint, keys, interval_s, first) as poller,
        _keyboard() as pressed,
        Live(console=screen, screen=True, auto_refresh=False) as live,
    ):
        while not ended:
            live.update(poller.frame(screen.width), refresh=True)
            if pressed(_DRAW_S) in ("q", "Q", "\x04"):
                break
    if signal.SIGTERM in ended:
        sys.exit(128 + signal.SIGTERM)


def _no_key(timeout_s: float) -> str:
    time.sleep(timeout_s)
    return ""


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """Yields a function that waits for a key, and returns it, or nothing after that many seconds."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(timeout_s: float) -> str:
        ready, _, _ = select.select([terminal], [], [], timeout_s)
        return (os.read(terminal, 1).decode("ascii", "replace") or "q") if ready else ""  # nothing: it is closed

    tty.setcbreak(terminal)  # keys come without Enter and are not shown
    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
