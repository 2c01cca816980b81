"""The history is bounded, exact at each level, and says null where nothing is known."""

import json
import threading
import time

import numpy as np
import psutil
import pytest

from ffstream.history.history import SPANS, History
from ffstream.history.marks import MARKS_MAX, Mark
from ffstream.history.points import FIGURES
from tests.unit.history.recorded import BEGIN_S, LAYERS, record

DAY_S = 86_400


def test_a_new_history_is_empty_at_every_level() -> None:
    history = History(LAYERS)
    assert history.newest_time() is None
    for span in SPANS:
        document = history.document(span)
        assert document["span"] == span
        assert all(column == [] for column in document["columns"].values())
        assert [set(layer) for layer in document["layers"]] == [set(FIGURES)] * LAYERS
        assert document["marks"] == []


@pytest.mark.parametrize(("span", "seconds"), [("10m", 600), ("3h", 3 * 3600), ("1d", DAY_S)])
def test_a_level_covers_its_span_and_no_more(span: str, seconds: int) -> None:
    history = History(LAYERS)
    record(history, 0, 100)
    record(history, 10 * DAY_S, 30)
    assert history.document(span)["columns"]["accepted"][-1] == 10 * DAY_S + 29
    times = history.document(span)["columns"]["time"]
    assert times[0] >= BEGIN_S + 10 * DAY_S - 60, "what is older than the span is gone"
    record(history, 10 * DAY_S + 30, min(seconds, 700))
    times = history.document(span)["columns"]["time"]
    assert times[-1] - times[0] < seconds


@pytest.mark.parametrize("span", SPANS)
def test_the_error_of_each_point_is_that_of_its_samples(span: str) -> None:
    history = History(LAYERS)
    rates = {0: (10.0, 1.0), 700: (40.0, 10.0), 1400: (0.0, 0.0)}  # of samples and errors in 700 seconds each
    for first, (evaluated, errors) in rates.items():
        record(history, first, 700, evaluated=evaluated, errors=errors)
    document = history.document(span)
    columns, interval_s = document["columns"], document["interval_s"]
    evaluated_of = np.repeat([each[0] for each in rates.values()], 700)
    errors_of = np.repeat([each[1] for each in rates.values()], 700)
    for at, error, seconds in zip(columns["time"], columns["error"], columns["seconds"], strict=True):
        own = slice(max(0, at - BEGIN_S), at - BEGIN_S + interval_s)
        assert seconds == len(evaluated_of[own])
        whole = evaluated_of[own].sum()
        assert error == (pytest.approx(errors_of[own].sum() / whole, rel=1e-5) if whole else None)


def test_the_whole_stream_stays_within_its_points_and_loses_no_sample() -> None:
    history = History(LAYERS)
    record(history, 0, 5000)
    columns, interval_s = (history.document("all")[key] for key in ("columns", "interval_s"))
    assert columns["time"][0] == BEGIN_S // interval_s * interval_s
    assert len(columns["time"]) <= 720
    assert sum(columns["seconds"]) == 5000
    rates = np.array(columns["rate"]) * np.array(columns["seconds"])
    assert rates.sum() == pytest.approx(5000)


def test_a_gap_needs_no_points() -> None:
    history = History(LAYERS)
    record(history, 0, 5)
    record(history, 300, 5)
    assert history.document("10m")["columns"]["time"] == [
        BEGIN_S + each for each in (0, 1, 2, 3, 4, *range(300, 305))
    ]


def test_a_clock_that_is_set_back_removes_the_future() -> None:
    history = History(LAYERS)
    record(history, 0, 50)
    record(history, 30 * DAY_S, 50)
    record(history, 60, 5)
    for span in SPANS:
        columns = history.document(span)["columns"]
        assert columns["time"][-1] <= BEGIN_S + 64
        assert columns["accepted"][-1] == 64
    assert history.document("10m")["columns"]["time"] == [BEGIN_S + each for each in range(60, 65)]


def test_marks_that_are_later_than_the_clock_are_not_shown() -> None:
    history = History(LAYERS)
    record(history, 1000, 5)
    history.mark(Mark(BEGIN_S + 1004.5, 4, "pause", "learning paused"))
    history.mark(Mark(BEGIN_S + 2000.0, 9, "resume", "by a clock that was wrong"))
    for span in ("10m", "all"):
        assert [mark["kind"] for mark in history.document(span)["marks"]] == ["pause"]


def test_what_is_not_known_is_null() -> None:
    history = History(LAYERS)
    infinite = np.full((LAYERS, len(FIGURES)), np.inf)
    history.add(BEGIN_S, {"seconds": 1.0, "layer_seconds": 1.0}, {"live_error": np.nan}, infinite)
    document = history.document("10m")
    json.dumps(document, allow_nan=False)
    columns = document["columns"]
    assert [columns[name] for name in ("error", "live_error", "window_error", "sleep")] == [[None]] * 4
    assert document["layers"][0]["loss"] == [None]
    assert columns["rate"] == [0.0], "it is known that nothing was learned"


def test_the_newest_marks_of_each_kind_are_kept() -> None:
    history = History(LAYERS)
    record(history, 0, 2 * MARKS_MAX + 2)
    history.mark(Mark(BEGIN_S + 1.0, 0, "start", "first start"))
    for number in range(2 * MARKS_MAX):
        history.mark(Mark(BEGIN_S + 2.0 + number, number, "checkpoint", "x" * 1000))
    marks = history.document("10m")["marks"]
    assert marks[0] == {"time": BEGIN_S + 1.0, "seq": 0, "kind": "start", "text": "first start"}
    assert [mark["seq"] for mark in marks[1:]] == list(range(MARKS_MAX, 2 * MARKS_MAX))
    assert all(len(mark["text"]) <= 200 for mark in marks)


def test_thirty_days_need_less_than_the_memory_that_is_promised() -> None:
    """At one point a second, which is added here in steps of ten minutes as a coarse level would hold them."""
    history = History(LAYERS)
    before = psutil.Process().memory_info().rss
    for minutes in range(0, 30 * 24 * 60, 10):
        record(history, 60 * minutes, 1)
    record(history, 30 * DAY_S, 700)
    assert sum(level._ring.count for level in history._levels.values()) < 7000
    assert psutil.Process().memory_info().rss - before < 20e6


def test_readers_and_the_recorder_do_not_disturb_each_other() -> None:
    history = History(LAYERS)
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            for span in SPANS:
                document = history.document(span)
                lengths = {len(column) for column in document["columns"].values()}
                lengths |= {len(column) for layer in document["layers"] for column in layer.values()}
                if len(lengths) != 1:
                    wrong.append(lengths)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + 60
    for number in range(0, 2000, 100):
        record(history, number, 100)
        assert time.monotonic() < deadline
    stop.set()
    for reader in readers:
        reader.join(60)
    assert not wrong
