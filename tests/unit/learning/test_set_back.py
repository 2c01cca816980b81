import pytest

from ffstream.learning.set_back import SetBack

NOW_S = 1_800_000_000.0


def seen(newest_s: float = NOW_S) -> SetBack:
    made = SetBack()
    made.recorded(newest_s)
    return made


@pytest.mark.parametrize("step_s", [0.0, 1.0, 86_400.0 * 365, -30.0])
def test_a_clock_that_goes_on_or_is_corrected_by_seconds_is_followed(step_s: float) -> None:
    assert not seen().waits(NOW_S + step_s, 100.0)


def test_a_clock_that_is_set_back_is_followed_after_some_minutes() -> None:
    clock = seen()
    waited = [clock.waits(NOW_S - 86_400 + at, 100.0 + at) for at in range(601)]
    assert waited == [True] * 600 + [False]
    clock.recorded(NOW_S - 86_400 + 600)
    assert not clock.waits(NOW_S - 86_400 + 601, 701.0)


def test_a_clock_that_is_right_again_is_followed_at_once_and_each_step_is_waited_for() -> None:
    clock = seen()
    for monotonic_s in (100.0, 10_000.0):
        assert clock.waits(0.0, monotonic_s)
        assert clock.waits(500.0, monotonic_s + 500)
        assert not clock.waits(NOW_S + 501, monotonic_s + 501)
        clock.recorded(NOW_S + 501)
