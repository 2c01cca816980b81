from hypothesis import given
from hypothesis import strategies as st

from ffstream.pipeline.phases import PhaseSchedule


def phases(schedule: PhaseSchedule, count: int) -> list[str]:
    given: list[str] = []
    for _ in range(count):
        given.append(schedule.phase)
        schedule.advance()
    return given


def test_without_phases_all_is_interleaved() -> None:
    schedule = PhaseSchedule()
    assert not schedule.separate
    assert phases(schedule, 5) == ["interleaved"] * 5


@given(wake=st.integers(1, 6), sleep=st.integers(0, 6), rounds=st.integers(1, 4))
def test_wake_then_sleep_by_counts(wake: int, sleep: int, rounds: int) -> None:
    schedule = PhaseSchedule(wake, sleep)
    assert schedule.separate
    assert phases(schedule, rounds * (wake + sleep)) == (["wake"] * wake + ["sleep"] * sleep) * rounds


@given(wake=st.integers(1, 6), sleep=st.integers(0, 6), before=st.integers(0, 20))
def test_resumed_from_its_position(wake: int, sleep: int, before: int) -> None:
    schedule = PhaseSchedule(wake, sleep)
    phases(schedule, before)
    resumed = PhaseSchedule(wake, sleep, schedule.position)
    assert phases(resumed, 20) == phases(schedule, 20)
