"""All kinds of clients for a few seconds. Only a longer run (`tools/soak`) shows whether something grows."""

import pytest

from tests.harness.load import cluster, soak

SMALL = ("network.widths=[64,64]", "network.replay_buffer=1000", "checkpoint.every_s=1")


def test_no_promise_is_broken_while_all_kinds_of_clients_run() -> None:
    result = soak.run(8.0, settings=SMALL, warm_samples=2048, gap_max_s=60.0)  # a loaded machine may pause for long
    assert [each for each in result["broken"] if " grew from " not in each] == []
    assert result["accepted"] == result["learned"] == result["accounted"] > 2048
    assert result["kills"] > 0
    assert result["malformed"] > 0
    assert result["producers"] > 4, "each kind, and one that was killed and started again"
    assert result["predictions"] > 0
    assert result["scrapes"] > 0


@pytest.mark.timeout(600)
def test_the_memory_of_every_process_of_a_cluster_is_read() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    result = cluster.run(1_000, settings=("network.preset=fast", *SMALL), warm_samples=500, times=10)
    assert result["samples"] >= 1_500
    assert {"daemon", "keeper", "actor 0", "actor 1", "ray"} <= result["mb_after"].keys()
    assert min(result["mb_after"].values()) > 0
    assert "stages were replaced meanwhile" not in result["broken"]


def test_each_process_that_grows_is_named() -> None:
    readings = [{"daemon": 400.0, "actor 0": 300.0 + 2 * at} for at in range(40)]
    daemon, actor = cluster.compare_all(readings)
    assert (daemon.name, daemon.flat) == ("daemon", True)
    assert (actor.name, actor.flat) == ("actor 0", False)
