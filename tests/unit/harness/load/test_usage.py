"""Growth of memory, descriptors, threads and disk space is reported, and nothing else is."""

import os
from pathlib import Path

import pytest

from tests.harness.load import flood, soak
from tests.harness.load.report import growth
from tests.harness.load.timeline import Timeline
from tests.harness.load.usage import (
    Tolerance,
    Usage,
    UsageSampler,
    compare,
    compare_series,
    read_usage,
    wait_for_usage,
)
from tests.support import wait_until

TOLERANCE = Tolerance(10.0, 0.1, "a test")
LEVEL = 450.0


def series(*, growth_each: float, count: int = 200, warm_up: float = 100.0) -> list[float]:
    """Rises to a level in the first tenth, then oscillates, and grows by `growth_each` from value to value."""
    warm = count // 10
    return [
        LEVEL - warm_up * max(0, warm - at) / warm + 3 * (-1) ** at + growth_each * max(0, at - warm)
        for at in range(count)
    ]


def test_a_level_series_is_flat_despite_its_warm_up() -> None:
    comparison = compare_series("memory", series(growth_each=0), TOLERANCE)
    assert comparison.flat
    assert growth([comparison]) == []
    assert comparison.before == pytest.approx(LEVEL, abs=3)


def test_a_growing_series_is_reported() -> None:
    comparison = compare_series("memory", series(growth_each=0.5), TOLERANCE)
    assert not comparison.flat
    (message,) = growth([comparison])
    assert message.startswith("memory grew from 4")


def test_a_shrinking_series_is_flat() -> None:
    assert compare_series("memory", series(growth_each=-0.5), TOLERANCE).flat


def test_a_single_peak_is_flat() -> None:
    values = series(growth_each=0)
    values[-5] = 10 * LEVEL
    assert compare_series("memory", values, TOLERANCE).flat


def test_a_series_that_is_too_short_is_an_error() -> None:
    with pytest.raises(ValueError, match="run longer"):
        compare_series("memory", [1.0] * 9, TOLERANCE)


@pytest.mark.parametrize(
    ("before", "after", "flat"), [(50, 60, True), (50, 60.1, False), (200, 220, True), (200, 221, False)]
)
def test_the_larger_of_the_absolute_and_relative_tolerance_counts(before: float, after: float, flat: bool) -> None:
    assert compare("memory", before, after, TOLERANCE).flat is flat


@pytest.mark.parametrize("name", soak.TOLERANCES)
def test_a_soak_reports_each_kind_of_growth(name: str) -> None:
    level = Usage(0.0, 450.0, 30, 20, 70.0)
    values = [level._replace(at_s=float(at), **{name: getattr(level, name) + at}) for at in range(100)]
    assert [comparison.name for comparison in soak.compare_all(values) if not comparison.flat] == [name]
    assert all(comparison.flat for comparison in soak.compare_all([level] * 100))


@pytest.mark.parametrize(("name", "leaked"), [("rss_mb", 100.0), ("descriptors", 139), ("threads", 1000)])
def test_a_flood_reports_each_kind_of_growth(name: str, leaked: float) -> None:
    before = Usage(0.0, 450.0, 27, 29, 70.0)
    after = before._replace(**{name: getattr(before, name) + leaked})
    assert len(growth(flood.compare_usage(before, after))) == 1
    assert growth(flood.compare_usage(before, before)) == []


def test_usage_includes_memory_descriptors_threads_and_disk_space(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    before = read_usage(os.getpid(), tmp_path)
    (tmp_path / "folder" / "file").write_bytes(os.urandom(1 << 20))
    held = b"x" * (64 << 20)
    with (tmp_path / "folder" / "file").open("rb"):
        after = read_usage(os.getpid(), tmp_path)
    assert after.disk_mb - before.disk_mb == pytest.approx(1.05, abs=0.2)
    assert after.rss_mb - before.rss_mb > len(held) / 2e6
    assert after.descriptors >= before.descriptors + 1
    assert before.threads >= 1


def test_a_sampler_reads_until_its_block_ends() -> None:
    with UsageSampler(os.getpid(), every_s=0.001) as sampler:
        wait_until(lambda: len(sampler.values) >= 3, 10, "three readings")
    count = len(sampler.values)
    assert [each.at_s for each in sampler.values] == sorted(each.at_s for each in sampler.values)
    assert len(sampler.values) == count


def test_waiting_for_lower_usage_ends_at_the_deadline() -> None:
    wait_for_usage(os.getpid(), descriptors=1e6, rss_mb=1e6, timeout_s=1e6)
    for level in ({"descriptors": 0, "rss_mb": 1e6}, {"descriptors": 1e6, "rss_mb": 0}):
        wait_for_usage(os.getpid(), **level, timeout_s=0.2)


def test_a_timeline_reports_its_longest_gap() -> None:
    timeline = Timeline([1.0, 1.1, 4.1, 4.2], [5.0, 6.0, 7.0, 100.0])
    assert timeline.longest_gap_s() == pytest.approx(3.0)
    assert timeline.between(1.05, 4.15).took_ms == [6.0, 7.0]
    assert timeline.percentile(100) == 100.0
    assert timeline.per_second(2.0) == 2.0
