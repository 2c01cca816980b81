"""Coarser points are exact where they hold sums, and never invent a value."""

import math

import numpy as np
import pytest

from ffstream.history.points import COUNTS, FIGURES, VALUES, Points, packed_kind

LAYERS = 2


def second(number: int, *, figure: float = math.nan, layer_seconds: float = 0.0, **counts: float) -> Points:
    figures = np.full((LAYERS, len(FIGURES)), figure)
    values = {"accepted": 10.0 * number}
    return Points.one(number, {"seconds": 1.0, "layer_seconds": layer_seconds, **counts}, values, figures)


def joined(*points: Points) -> Points:
    first, *later = points
    for each in later:
        first = first.followed_by(each)
    return first


def count(points: Points, name: str) -> list[float]:
    return [float(value) for value in points.counts_NC[:, COUNTS.index(name)]]


def test_counts_of_coarser_points_are_sums() -> None:
    errors = [3.0, 0.0, 5.0, 1.0, 2.0]
    fine = joined(*(second(number, errors=each) for number, each in enumerate(errors, 8)))  # 8 9 | 10 11 | 12
    coarse = fine.coarser(2)
    assert coarse.numbers_N.tolist() == [4, 5, 6]
    assert count(coarse, "errors") == [3.0, 6.0, 2.0]
    assert count(coarse, "seconds") == [2.0, 2.0, 1.0]
    assert count(fine.coarser(100), "errors") == [sum(errors)]


def test_values_of_coarser_points_are_those_at_the_end() -> None:
    coarse = joined(second(8), second(9), second(10)).coarser(2)
    assert coarse.values_NV[:, VALUES.index("accepted")].tolist() == [90.0, 100.0]
    assert np.isnan(coarse.values_NV[:, VALUES.index("live_error")]).all()


def test_figures_are_means_over_the_seconds_in_which_they_were_known() -> None:
    known = [second(0), second(1, figure=4.0, layer_seconds=1.0), second(2, figure=1.0, layer_seconds=2.0)]
    figures = joined(*known, second(3)).coarser(4).figures_NLF
    assert figures == pytest.approx(np.full((1, LAYERS, len(FIGURES)), (4.0 + 2 * 1.0) / 3))
    assert np.isnan(joined(second(0), second(1)).coarser(2).figures_NLF).all(), "never 0"


@pytest.mark.parametrize("growing", [2, 3, 7])
def test_a_point_that_grows_equals_the_points_that_are_joined_at_once(growing: int) -> None:
    generator = np.random.default_rng(growing)
    seconds = [
        second(number, figure=float(figure), layer_seconds=float(weight), errors=float(figure))
        for number, (figure, weight) in enumerate(generator.random((growing, 2)))
    ]
    step_by_step = seconds[0].coarser(growing)
    for each in seconds[1:]:
        step_by_step = step_by_step.followed_by(each.coarser(growing)).coarser(1)
    at_once = joined(*seconds).coarser(growing)
    np.testing.assert_array_equal(step_by_step.numbers_N, at_once.numbers_N)
    np.testing.assert_allclose(step_by_step.counts_NC, at_once.counts_NC)
    np.testing.assert_allclose(step_by_step.figures_NLF, at_once.figures_NLF, rtol=1e-6)


def test_packed_points_are_restored() -> None:
    points = joined(second(5, figure=1.5, layer_seconds=1.0, errors=2.0), second(7))
    packed = points.pack()
    assert packed.dtype == packed_kind(LAYERS)
    stored = np.frombuffer(b"".join(row.tobytes() for row in packed), packed_kind(LAYERS))
    again = Points.unpack(stored)
    np.testing.assert_array_equal(points.numbers_N, again.numbers_N)
    np.testing.assert_array_equal(points.counts_NC, again.counts_NC)
    np.testing.assert_array_equal(points.values_NV, again.values_NV)
    np.testing.assert_array_equal(points.figures_NLF, again.figures_NLF)
