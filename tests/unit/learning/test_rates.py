from types import SimpleNamespace

import pytest

from ffstream.learning.rates import Rates


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("ffstream.learning.rates.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def add(rates: Rates, clock: SimpleNamespace, learned: float, after_s: float = 1.0) -> None:
    clock.now += after_s
    rates.add(clock.now, {"learned": learned})


def test_a_rate_is_unknown_before_the_second_reading(clock: SimpleNamespace) -> None:
    rates = Rates()
    assert rates.per_second("learned") is None
    add(rates, clock, 7)
    assert rates.per_second("learned") is None
    add(rates, clock, 7)
    assert rates.per_second("learned") == 0.0, "now it is known that nothing is learned"


def test_a_rate_is_that_of_the_last_five_seconds(clock: SimpleNamespace) -> None:
    rates = Rates()
    for learned in (0, 1_000_000, 1_000_000, 1_000_100, 1_000_200, 1_000_300, 1_000_500):
        add(rates, clock, learned)
    assert rates.per_second("learned") == 100.0
    add(rates, clock, 1_002_500, after_s=6.0)
    assert rates.per_second("learned") == pytest.approx(2500 / 10)


def test_an_old_rate_is_not_known_any_more(clock: SimpleNamespace) -> None:
    rates = Rates()
    for learned in (0, 10):
        add(rates, clock, learned)
    clock.now += 4.0
    assert rates.per_second("learned") == 10.0
    clock.now += 2.0
    assert rates.per_second("learned") is None
