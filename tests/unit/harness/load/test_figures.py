"""A detector that cannot report is worth nothing: these series grow, and are found out."""

import os
from pathlib import Path

import pytest

from tests.harness.load import flood, soak
from tests.harness.load.figures import Figures, Tolerance, Watcher, judge, judge_series, look, until_level
from tests.harness.load.report import grown
from tests.harness.load.timeline import Timeline
from tests.support import wait_until

TOLERANCE = Tolerance(10.0, 0.1, "a test")
LEVEL = 450.0


def series(*, per_look: float, looks: int = 200, warm_up: float = 100.0) -> list[float]:
    """Rises to a level in the first tenth, wobbles, and grows by so much with each look."""
    warm = looks // 10
    return [
        LEVEL - warm_up * max(0, warm - at) / warm + 3 * (-1) ** at + per_look * max(0, at - warm)
        for at in range(looks)
    ]


def test_a_series_that_stays_level_is_flat_however_it_began() -> None:
    verdict = judge_series("memory", series(per_look=0), TOLERANCE)
    assert verdict.flat
    assert grown([verdict]) == []
    assert verdict.before == pytest.approx(LEVEL, abs=3)


def test_a_series_that_grows_is_reported() -> None:
    verdict = judge_series("memory", series(per_look=0.5), TOLERANCE)
    assert not verdict.flat
    (said,) = grown([verdict])
    assert said.startswith("memory grew from 4")


def test_a_series_that_shrinks_is_flat() -> None:
    assert judge_series("memory", series(per_look=-0.5), TOLERANCE).flat


def test_one_peak_is_no_growth() -> None:
    values = series(per_look=0)
    values[-5] = 10 * LEVEL
    assert judge_series("memory", values, TOLERANCE).flat


def test_a_short_series_says_nothing() -> None:
    with pytest.raises(ValueError, match="run longer"):
        judge_series("memory", [1.0] * 9, TOLERANCE)


@pytest.mark.parametrize(
    ("before", "after", "flat"), [(50, 60, True), (50, 60.1, False), (200, 220, True), (200, 221, False)]
)
def test_the_larger_tolerance_counts(before: float, after: float, flat: bool) -> None:
    assert judge("memory", before, after, TOLERANCE).flat is flat


@pytest.mark.parametrize("name", soak.TOLERANCES)
def test_the_soak_reports_each_figure_that_grows(name: str) -> None:
    level = Figures(0.0, 450.0, 30, 20, 70.0)
    figures = [level._replace(at_s=float(at), **{name: getattr(level, name) + at}) for at in range(100)]
    assert [verdict.name for verdict in soak.judge_all(figures) if not verdict.flat] == [name]
    assert all(verdict.flat for verdict in soak.judge_all([level] * 100))


@pytest.mark.parametrize(("name", "leaked"), [("rss_mb", 100.0), ("descriptors", 139), ("threads", 1000)])
def test_the_flood_reports_each_figure_that_grew(name: str, leaked: float) -> None:
    before = Figures(0.0, 450.0, 27, 29, 70.0)
    after = before._replace(**{name: getattr(before, name) + leaked})
    assert len(grown(flood.verdicts_of(before, after))) == 1
    assert grown(flood.verdicts_of(before, before)) == []


def test_a_look_sees_what_this_process_holds(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    before = look(os.getpid(), tmp_path)
    (tmp_path / "folder" / "file").write_bytes(os.urandom(1 << 20))
    held = b"x" * (64 << 20)
    with (tmp_path / "folder" / "file").open("rb"):
        after = look(os.getpid(), tmp_path)
    assert after.disk_mb - before.disk_mb == pytest.approx(1.05, abs=0.2)
    assert after.rss_mb - before.rss_mb > len(held) / 2e6
    assert after.descriptors >= before.descriptors + 1
    assert before.threads >= 1


def test_a_watcher_looks_until_it_is_left() -> None:
    with Watcher(os.getpid(), every_s=0.001) as watcher:
        wait_until(lambda: len(watcher.figures) >= 3, 10, "it has looked")
    seen = len(watcher.figures)
    assert [each.at_s for each in watcher.figures] == sorted(each.at_s for each in watcher.figures)
    assert len(watcher.figures) == seen


def test_what_does_not_settle_is_not_waited_for_for_ever() -> None:
    until_level(os.getpid(), descriptors=1e6, rss_mb=1e6, timeout_s=1e6)
    for level in ({"descriptors": 0, "rss_mb": 1e6}, {"descriptors": 1e6, "rss_mb": 0}):
        until_level(os.getpid(), **level, timeout_s=0.2)


def test_a_gap_in_a_timeline_shows() -> None:
    timeline = Timeline([1.0, 1.1, 4.1, 4.2], [5.0, 6.0, 7.0, 100.0])
    assert timeline.longest_gap_s() == pytest.approx(3.0)
    assert timeline.between(1.05, 4.15).took_ms == [6.0, 7.0]
    assert timeline.percentile(100) == 100.0
    assert timeline.per_second(2.0) == 2.0
