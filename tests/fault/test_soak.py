"""All kinds of clients for a few seconds. Only a longer run (`tools/soak`) shows whether something grows."""

from tests.harness.load import soak

SMALL = ("network.widths=[64,64]", "network.replay_buffer=1000", "checkpoint.every_s=1")


def test_no_promise_is_broken_while_all_kinds_of_clients_run() -> None:
    result = soak.run(8.0, settings=SMALL, warm_samples=2048, gap_max_s=60.0)  # a loaded machine may pause for long
    assert [each for each in result["broken"] if " grew from " not in each] == []
    assert result["accepted"] == result["learned"] == result["accounted"] > 2048
    assert result["kills"] > 0
    assert result["malformed"] > 0
    assert result["producers"] > 10
    assert result["predictions"] > 10
    assert result["scrapes"] > 0
