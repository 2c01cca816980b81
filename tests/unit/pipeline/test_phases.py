from hypothesis import given
from hypothesis import strategies as st

from ffstream.pipeline.phases import PhaseSchedule


def polarities(schedule: PhaseSchedule, count: int) -> list[str]:
    given: list[str] = []
    for _ in range(count):
        given.append(schedule.polarity)
        schedule.advance()
    return given


def test_without_phases_all_is_interleaved() -> None:
    schedule = PhaseSchedule()
    assert not schedule.separate
    assert polarities(schedule, 5) == ["interleaved"] * 5


@given(wake=st.integers(1, 6), sleep=st.integers(0, 6), rounds=st.integers(1, 4))
def test_wake_then_sleep_by_counts(wake: int, sleep: int, rounds: int) -> None:
    schedule = PhaseSchedule(wake, sleep)
    assert schedule.separate
    assert polarities(schedule, rounds * (wake + sleep)) == (["wake"] * wake + ["sleep"] * sleep) * rounds


@given(wake=st.integers(1, 6), sleep=st.integers(0, 6), before=st.integers(0, 20))
def test_resumed_from_its_position(wake: int, sleep: int, before: int) -> None:
    schedule = PhaseSchedule(wake, sleep)
    polarities(schedule, before)
    resumed = PhaseSchedule(wake, sleep, schedule.position)
    assert polarities(resumed, 20) == polarities(schedule, 20)
