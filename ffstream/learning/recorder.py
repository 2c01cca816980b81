"""Records once a second what learning does: rates for the status, points and marks for the history.

It reads figures that others keep, and no thread waits for it. The history is for people, so no failure here ends the
daemon: while the disk is full the history goes on in memory, and is stored when there is room again. A kill loses the
seconds since it was stored last.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import Counter

from ffstream.history.file import HISTORY, HistoryFile
from ffstream.history.history import History
from ffstream.history.marks import Mark
from ffstream.history.points import FIGURES
from ffstream.journal.journal import Head
from ffstream.learning.learner import Learner
from ffstream.learning.mark_finder import Found, MarkFinder, Seen
from ffstream.learning.rates import Rates
from ffstream.learning.set_back import SetBack
from ffstream.metrics import Metrics
from ffstream.util.threads import WRITING_NICENESS, Worker

log = logging.getLogger(__name__)

_STORE_EVERY_S = 5.0
_RETRY_S = 30.0  # after a failure
_STOP_S = 2.0  # a disk that is slower does not delay the stop of the daemon
_GAP_S = 5.0  # a longer time without a daemon gets a mark
RATES: Final = {
    "accepted_per_s": "accepted_samples",
    "learned_per_s": "learned_samples",
    "predictions_per_s": "predictions",
}


class Recorder:
    """Thread `ff-history`. Any thread may ask for rates and for the history."""

    name = "ff-history"

    def __init__(self, state: Path, learner: Learner, head: Head, metrics: Metrics, layers: int) -> None:
        self._learner = learner
        self._head = head
        self._metrics = metrics
        self._file = HistoryFile(state / HISTORY, layers)
        self._history = History(layers)
        self._rates = Rates()
        self._finder = MarkFinder()
        self._set_back = SetBack()
        self._before: dict[str, float] = {}
        self._started = 0.0, 0  # when, and how many samples were learned
        self._ticked = self._store_at = 0.0
        self._is_failing = self._is_loaded = False
        self._stopping = threading.Event()
        self.thread = Worker(self.name, self._work, lambda error: None, niceness=WRITING_NICENESS)

    @property
    def rates(self) -> dict[str, float | None]:
        """Per second, over about the last five seconds. None: not known."""
        return {shown: self._rates.per_second(name) for shown, name in RATES.items()}

    def history(self, span: str) -> dict[str, Any]:
        """The history of one of the spans, for /api/history."""
        return self._history.document(span)

    def start(self) -> None:
        """Returns once the thread runs."""
        self.thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Records a last second and stores it. Always True: the history is not worth a failure of the stop."""
        self._stopping.set()
        if not self.thread.join(min(timeout_s, _STOP_S)):
            log.warning("history is not stored in time: the disk is slow")
        return True

    def _work(self) -> None:
        self._tolerate(self._begin)
        while not self._stopping.wait((0.5 - time.time()) % 1.0):  # in the middle of a second of the clock
            self._tolerate(self._tick)
        self._tolerate(self._tick)
        if self._is_loaded:
            self._tolerate(lambda: self._file.close(self._history))
        self._file.abandon()

    def _tolerate(self, work: Callable[[], None]) -> None:
        """Failures are logged once, until something succeeds again."""
        try:
            work()
        except Exception as error:
            self._store_at = time.monotonic() + _RETRY_S
            if not self._is_failing:
                is_disk = isinstance(error, sqlite3.Error | OSError)
                log.warning("history is not stored, and continues in memory error=%s", error, exc_info=not is_disk)
            self._is_failing = True

    def _begin(self) -> None:
        self._before = self._totals()
        self._ticked = time.monotonic()
        self._rates.add(self._ticked, self._before)
        self._finder.find(self._seen(self._learner.run.status()))
        self._started = time.time(), self._learner.applied_seq
        self._load()

    def _load(self) -> None:
        """What is on disk, and then what was recorded while it could not be read. Before that nothing is stored:
        it would replace what is there."""
        loaded, ended_properly = self._file.load()
        (now, seq), last = self._started, loaded.newest_time()
        if last is not None:
            self._set_back.recorded(last)
            if now - last > _GAP_S:
                loaded.mark(Mark(last, seq, "gap", f"no daemon for {now - last:.0f} s"))
            now = max(now, last)  # the clock may have been set back
        without = "start without a history" if seq else "first start"
        after = {None: without, True: "start after a stop", False: "start after a kill or a crash"}
        loaded.mark(Mark(now, seq, "start", f"{after[ended_properly]}; {seq} samples are learned"))
        loaded.append(self._history)
        self._history = loaded
        self._is_loaded = True

    def _tick(self) -> None:
        now, clock = time.time(), time.monotonic()
        totals = self._totals()
        self._rates.add(clock, totals)
        if self._set_back.waits(now, clock):
            return  # what happens now is counted in the next second that is recorded
        self._set_back.recorded(now)
        seconds, self._ticked = clock - self._ticked, clock
        # A rollback makes a new pipeline, whose counts begin at 0.
        counts = {
            name: total - before if total >= (before := self._before.get(name, 0.0)) else total
            for name, total in totals.items()
        }
        self._before = totals
        status = self._learner.run.status()
        learns = counts["learned_samples"] > 0 or counts["microbatches"] > 0
        self._history.add(
            now,
            {**counts, "seconds": seconds, "layer_seconds": seconds if learns else 0.0},
            self._values(status),
            _figures(status["layers"], known=learns),
        )
        found = self._finder.find(self._seen(status))
        for each in found:
            self._history.mark(Mark(now, *each))
        self._store_if_due(clock, found)

    def _store_if_due(self, clock: float, found: list[Found]) -> None:
        if clock < self._store_at and not (found and not self._is_failing):
            return
        self._store_at = clock + _STORE_EVERY_S
        if not self._is_loaded:
            self._load()
        self._file.save(self._history)
        if self._is_failing:
            self._is_failing = False
            log.info("history is stored again")

    def _totals(self) -> dict[str, float]:
        metrics, (slept, fed) = self._metrics, self._learner.run.pipeline.fed_microbatches
        return {
            "accepted_samples": self._head.seq,
            "learned_samples": _total(metrics.samples_learned),
            "predictions": _total(metrics.predictions),
            "evaluated_samples": _total(metrics.prequential_samples),
            "errors": _total(metrics.prequential_errors),
            "microbatches": fed,
            "sleep_microbatches": slept,
        }

    def _values(self, status: dict[str, Any]) -> dict[str, float]:
        accepted = self._head.seq
        values = {
            "accepted": accepted,
            "learned": status["learned"],
            "waiting": max(0, accepted - status["applied_seq"]),
            "window_error": status["prequential_error"],
            "live_error": status["live_error"],
        }
        return {name: value for name, value in values.items() if value is not None}

    def _seen(self, status: dict[str, Any]) -> Seen:
        newest = self._learner.checkpoints.newest
        return Seen(
            seq=status["applied_seq"],
            checkpoint=newest and newest.seq,
            rolled_back=self._learner.rolled_back,
            paused=self._learner.paused,
            restarts=tuple(layer["restarts"] or 0 for layer in status["layers"]),
            drift=self._learner.drift_seq,
            phase=status["phase"],
            interruption=self._learner.restarts.interruption,
        )


def _total(counter: Counter) -> float:
    return float(next(iter(counter.collect())).samples[0].value)


def _figures(layers: list[dict[str, Any]], *, known: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(L, F). NaN: not known."""
    if not known:
        return np.full((len(layers), len(FIGURES)), np.nan)
    rows = [[np.nan if layer[name] is None else layer[name] for name in FIGURES] for layer in layers]
    return np.array(rows, np.float64)
