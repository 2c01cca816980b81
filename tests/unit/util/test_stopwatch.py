"""A stopwatch adds up the times for which it ran."""

from ffstream.util.stopwatch import Stopwatch


def test_it_counts_only_while_it_runs_and_adds_up() -> None:
    now = 100.0
    watch = Stopwatch(lambda: now)
    watch.run(False)
    assert watch.seconds() == 0
    now += 5
    watch.run(True)
    assert watch.seconds() == 0
    now += 3
    watch.run(True)
    assert watch.seconds() == 3, "starting it again changes nothing"
    now += 1
    watch.run(False)
    now += 50
    assert watch.seconds() == 4
    watch.run(True)
    now += 2
    assert watch.seconds() == 6
