import pytest

from ffstream.server.backlog import BacklogLimit


@pytest.mark.parametrize(
    ("limit", "leftover", "resumes_at"), [(1, 0, 0), (4, 0, 3), (100, 0, 89), (5_000_000, 0, 4_499_999)]
)
def test_the_backlog_is_full_from_the_limit_until_a_tenth_is_learned(
    limit: int, leftover: int, resumes_at: int
) -> None:
    backlog = BacklogLimit(limit, leftover)
    assert not backlog.is_full(limit - 1)
    assert backlog.is_full(limit + 50)
    assert backlog.is_full(resumes_at + 1)
    assert not backlog.is_full(resumes_at)
    assert not backlog.is_full(limit - 1)
    assert backlog.is_full(limit)


def test_samples_that_fill_no_microbatch_do_not_keep_the_backlog_full() -> None:
    """63 samples do not fill a microbatch of 64 and may wait indefinitely."""
    backlog = BacklogLimit(64, leftover=63)
    assert backlog.is_full(64)
    assert not backlog.is_full(63)


def test_credit_shrinks_to_one_before_the_backlog_is_full() -> None:
    backlog = BacklogLimit(100_000)
    credits = [backlog.credit(waiting, 1024) for waiting in range(100_000)]
    assert credits[0] == credits[90_000] == 1024
    assert credits[-1] == 1
    assert sorted(credits, reverse=True) == credits
    assert credits[95_000] == 512


def test_credit_never_exceeds_the_samples_that_fit() -> None:
    backlog = BacklogLimit(10)
    assert [backlog.credit(waiting, 64) for waiting in range(10)] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert BacklogLimit(1).credit(0, 64) == 1
