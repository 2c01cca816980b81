"""What `ffstream top` and `tools/demo` show of a status, also of an older daemon's, in 80 columns."""

import io
import json
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from ffstream.cli import view

LAYER: dict[str, Any] = {
    "index": 0,
    "compares": "groups",
    "goodness_positive": -0.158,
    "goodness_negative": -0.58,
    "margin": 0.212,
    "dead_units": 0.016,
    "queue_depth": 3,
    "step_s": 0.0034,
}
# What every daemon says, also older ones.
OLD: dict[str, Any] = {
    "state": "ready",
    "phase": "interleaved",
    "refusing": None,
    "version": "0.1.0",
    "accepted": 1_234_567,
    "learned": 1_224_567,
    "skipped": 0,
    "backlog": 10_000,
    "prequential_error": 0.0512,
    "prequential_error_total": 0.0612,
    "prequential_window_samples": 9_990,
    "snapshot": {"version": 7, "seq": 1_224_512, "age_s": 0.31},
    "checkpoint_seq": 1_200_000,
    "endpoints": {"http": "127.0.0.1:8757"},
}
NEW: dict[str, Any] = OLD | {
    "uptime_s": 700.0,
    "preset": "stream",
    "refusing_hint": None,
    "rates": {"accepted_per_s": 144.0, "learned_per_s": 98_765.0, "predictions_per_s": 12.0},
    "lag_s": 69.6,
    "checkpoint": {"seq": 1_200_000, "age_s": 65.0},
    "resources": {"disk_free_bytes": 70 << 30, "memory_bytes": 410 << 20, "memory_max_bytes": 20 << 30},
    "window": {"error": 0.0512, "samples": 9_990, "size": 10_000},
    "warnings": {},
    "layers": [LAYER, LAYER | {"index": 1}],
}

LOST: dict[str, Any] = {"reason": "ff-stage-0 is lost", "hint": "it begins again", "seconds": 12.3, "tries": 3}
STAGE: dict[str, Any] = {"name": "ff-stage-0", "layers": [0], "queue_depth": 0, "last_seq": 7, "skipped": 0}
PLACE: dict[str, Any] = {"node": "52cadf4ec2a4", "host": "10.20.30.40", "pid": 4370, "device": "cuda:0"}


def drawn(status: dict[str, Any], trend: view.Trend | None = None, *, gone: view.State | None = None) -> str:
    """A frame as plain text, 80 columns wide."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(view.draw(status, trend or view.Trend(), width=80, gone=gone))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "…" not in text, "nothing is cut off"
    assert "nan" not in text.lower()
    return " ".join(text.split())


def test_a_frame_has_all_figures_with_the_true_size_of_the_window() -> None:
    text = drawn(NEW)
    assert text.startswith("READY learning ffstream 0.1.0, preset stream, up 12 min, page http://127.0.0.1:8757/")
    assert "1,234,567 accepted, 1,224,567 learned, 10,000 waiting (70 s behind)" in text
    assert "144 accepted, 98,765 learned, 12 predictions" in drawn(NEW, trend_of(NEW, NEW))
    assert "5.12% of the last 9,990 predicted, 6.12% of all" in text
    assert "snapshot 0.3 s old, learned up to 1,224,512" in text
    assert "checkpoint 65 s old, learned up to 1,200,000" in text
    assert "410.0 MiB, 70.0 GiB free" in text
    assert "0 -0.158 -0.58 0.212 1.6% 3 3.40 ms" in text


def trend_of(*statuses: dict[str, Any], interval_s: float = 1.0) -> view.Trend:
    trend = view.Trend()
    for index, status in enumerate(statuses):
        trend.add(status, index * interval_s)
    return trend


def test_the_status_of_an_older_daemon_is_shown_without_what_it_lacks() -> None:
    text = drawn(OLD)
    assert "5.12% of the last 9,990 predicted, 6.12% of all" in text
    assert "checkpoint learned up to 1,200,000" in text
    assert "a second –" in text
    assert "memory" not in text


def test_what_is_not_known_yet_is_a_dash_and_never_a_zero() -> None:
    unknown = dict.fromkeys(LAYER, None) | {"index": 0, "compares": "labels", "queue_depth": 0}
    nothing = NEW | dict.fromkeys(
        ("prequential_error", "prequential_error_total", "lag_s", "checkpoint", "resources")
    )
    rates = dict.fromkeys(NEW["rates"])
    text = drawn(nothing | {"checkpoint_seq": 0, "rates": rates, "layers": [unknown]})
    assert "error no samples are predicted yet" in text
    assert "a second –" in text
    assert "checkpoint none yet" in text
    assert "0 – – – – 0 –" in text


@pytest.mark.parametrize(
    ("kinds", "heads"),
    [
        (["labels"], "right label wrong labels"),
        (["groups", "groups"], "right group wrong groups"),
        (["images", "images"], "real images negatives"),
        (["labels", "groups"], "right wrong"),
        ([None], "right wrong"),
    ],
)
def test_the_two_figures_of_a_layer_are_named_for_what_it_compares(kinds: list[str | None], heads: str) -> None:
    layers = [LAYER | {"index": index, "compares": kind} for index, kind in enumerate(kinds)]
    text = drawn(NEW | {"layers": layers})
    assert f"layer {heads} margin" in text
    assert ("1 (groups)" in text) == (kinds == ["labels", "groups"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"backlog": 0}, "READY waiting for samples"),
        ({"phase": "sleep"}, "READY asleep"),
        ({"state": "paused"}, "PAUSED samples are stored, not learned; ffstream resume"),
        ({"state": "draining"}, "DRAINING"),
        ({"state": "starting"}, "STARTING"),
        ({"state": "failed"}, "FAILED a thread has died; see the log"),
        (
            {"refusing": "disk_full", "refusing_hint": "free disk space"},
            "REFUSING new samples: disk_full; free disk space",
        ),
        ({"warnings": {"log_pinned": "end the program"}}, "warning: end the program"),
        ({"drift_seq": 31_200}, "drift detected at sample 31,200"),
        ({"interrupted": LOST}, "INTERRUPTED samples are stored, not learned; predictions go on"),
        ({"interrupted": LOST, "state": "paused"}, "PAUSED"),
        (
            {"interrupted": LOST, "state": "paused"},
            "learning is interrupted for 12 s, 3 tries: ff-stage-0 is lost; it begins again",
        ),
        ({"interrupted": LOST | {"hint": "", "tries": 1}}, "for 12 s, 1 try: ff-stage-0 is lost samples"),
    ],
)
def test_the_state_is_said_in_words(change: dict[str, Any], expected: str) -> None:
    assert expected in drawn(NEW | change)


def test_stages_of_a_cluster_have_a_place() -> None:
    stages = [STAGE | PLACE, STAGE | PLACE | {"name": "ff-stage-1", "device": "cpu"}]
    text = drawn(NEW | {"stages": stages})
    assert "stage node host process device ff-stage-0 52cadf4ec2a4 10.20.30.40 4370 cuda:0 ff-stage-1" in text
    for stages in ([STAGE], []):
        assert "process" not in drawn(NEW | {"stages": stages}), "threads of the daemon have none"


def test_a_daemon_that_learns_without_a_backlog_is_learning() -> None:
    idle = NEW | {"backlog": 0}
    assert "READY learning" in drawn(idle, trend_of(idle))


def test_a_lost_daemon_is_said_to_be_lost_beside_its_old_figures() -> None:
    text = drawn(NEW, gone=view.lost(3.21, "no such key"))
    assert text.startswith("LOST no answer for 3.2 s; these figures are old: no such key")
    assert "1,224,567 learned" in text


def test_the_rate_of_an_older_daemon_comes_from_what_it_has_learned() -> None:
    trend = trend_of(*(OLD | {"learned": 100 * index} for index in range(20)), interval_s=0.5)
    assert trend.rate == pytest.approx(200)
    trend.add(OLD | {"learned": 50}, 10.0)
    assert trend.rate is None, "a rollback is no rate"


def test_sparklines_show_the_last_points_with_their_scale() -> None:
    errors = [None, None, *(0.5 / (1 + index) for index in range(100))]
    text = drawn(NEW, trend_of(*(NEW | {"prequential_error": error} for error in errors)))
    assert "▁ max 0.78% in 37 s" not in text, "the scale is that of the largest point shown"
    assert "max 98,765 in 37 s" in text
    assert view.sparkline([0.0, 0.5, 1.0, None]) == "▁▅█ "
    assert view.sparkline([0.0, 0.0]) == "▁▁"
    assert view.sparkline([None]) == " "


def test_a_status_that_came_over_the_wire_can_be_drawn() -> None:
    assert drawn(json.loads(json.dumps(NEW))) == drawn(NEW)
