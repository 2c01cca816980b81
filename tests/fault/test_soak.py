"""Everybody at once, for a few seconds: the promises hold. Whether something grows shows only in a longer run."""

from tests.harness.load import soak

SMALL = ("network.widths=[64,64]", "network.replay_buffer=1000", "checkpoint.every_s=1")


def test_everybody_at_once() -> None:
    result = soak.run(8.0, settings=SMALL, warm_samples=2048, gap_max_s=60.0)  # five seconds: on a quiet machine
    assert [each for each in result["broken"] if " grew from " not in each] == []
    assert result["accepted"] == result["learned"] == result["accounted"] > 2048
    assert result["kills"] > 0
    assert result["malformed"] > 0
    assert result["producers"] > 10
    assert result["predictions"] > 10
    assert result["scrapes"] > 0
