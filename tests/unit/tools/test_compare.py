"""`tools/bench compare`: when it says that a tree is slower."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.benchmarks import compare
from tools.benchmarks.report import ROOT, Failed, Report

WITH_GIT = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository: no .git here")


def noisy(center: float, count: int = 20, spread: float = 0.1) -> list[float]:
    draw = random.Random(7)
    return [center * (1 + draw.uniform(-spread, spread)) for _ in range(count)]


@pytest.mark.parametrize("center", [1.0, 0.99, 1.2])
def test_equal_or_faster_passes_under_noise(center: float) -> None:
    verdict = compare.judge(noisy(center))
    assert verdict.low <= verdict.ratio <= verdict.high
    assert verdict.passed


def test_slower_by_more_than_the_noise_of_the_median_fails() -> None:
    verdict = compare.judge(noisy(0.9))
    assert verdict.high < 0.98
    assert not verdict.passed


def test_single_outliers_do_not_decide() -> None:
    ratios = [1.0] * 18 + [0.3, 0.4]
    assert compare.judge(ratios) == compare.Verdict(1.0, 1.0, 1.0)


def test_the_verdict_is_the_same_each_time() -> None:
    assert compare.judge(noisy(0.97)) == compare.judge(noisy(0.97))


class Sides:
    """Stands for both daemons: seconds of each side, and the order in which they were asked."""

    def __init__(self, base_s: float, this_s: float) -> None:
        self.seconds = {"base": base_s, "this": this_s}
        self.first: list[str] = []

    def __call__(
        self, trees: Mapping[str, Path], first: str, counts: Mapping[str, int]
    ) -> dict[str, dict[str, float]]:
        assert trees["this"] == ROOT
        assert trees["base"] != ROOT
        self.first.append(first)
        return {name: dict(self.seconds) for name in counts}


def compared(sides: Sides, monkeypatch: pytest.MonkeyPatch, what: list[str]) -> bool:
    monkeypatch.setattr(compare, "_measure_pair", sides)
    report = Report(True, "tools/bench compare HEAD")
    return compare.run(report, "HEAD", pairs=4, what=what, seconds=1.0)


@WITH_GIT
@pytest.mark.parametrize("what", compare.WHAT)
def test_a_ratio_above_one_means_faster_for_every_measurement(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(Sides(base_s=1.0, this_s=0.9), monkeypatch, [what])
    assert not compared(Sides(base_s=0.9, this_s=1.0), monkeypatch, [what])


@WITH_GIT
def test_the_side_that_goes_first_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = Sides(1.0, 1.0)
    compared(sides, monkeypatch, ["learning"])
    assert sides.first == ["base", "base", "this", "base", "this"]  # the first pair is not counted


@WITH_GIT
def test_a_checkout_has_the_files_of_the_commit_and_goes() -> None:
    with compare.checkout("HEAD") as folder:
        assert (folder / "ffstream" / "__init__.py").exists()
        assert not (folder / ".git").exists()
    assert not folder.exists()


@WITH_GIT
def test_an_unknown_commit_is_an_error() -> None:
    with pytest.raises(Failed, match="no-such-commit"):
        compare.run(Report(True, ""), "no-such-commit", pairs=1, what=["learning"], seconds=1.0)


def test_a_tree_that_does_not_start_is_an_error_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "ffstream").mkdir()
    (tmp_path / "ffstream" / "__init__.py").write_text("raise RuntimeError('broken tree')\n")
    trees = {"base": tmp_path, "this": tmp_path}
    with pytest.raises(Failed, match=r"(?s)could not be measured.*broken tree"):
        compare._measure_pair(trees, "base", {"learning": 1})
