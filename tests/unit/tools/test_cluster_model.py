"""The model of stages on several machines, by hand and at its limits."""

import math
from dataclasses import replace
from itertools import combinations

import pytest

from tools.benchmarks.cluster import model
from tools.benchmarks.cluster.model import Cluster, Costs, Layer, Layout, Network

FREE = Costs(hop_s=0, hop_s_per_byte=0, merge_s_per_byte=0, journal_samples_per_s=math.inf, feed_s=0)
FAST = Cluster(nodes=4, link_bytes_per_s=math.inf, latency_s=0)


def network(*seconds: float, activity: float = 1e6, state: float = 1e8, weights: float = 0.0) -> Network:
    return Network(tuple(Layer(each, activity, state, weights) for each in seconds), batch=100, input_bytes=1e5)


def on(nodes: int, cluster: Cluster = FAST) -> Cluster:
    return replace(cluster, nodes=nodes)


@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0, 1.0), (5.0, 1.0, 2.0, 3.0, 1.0, 1.0), (0.1, 9.0, 0.1)])
def test_layers_are_divided_as_evenly_as_they_can_be(seconds: tuple[float, ...]) -> None:
    for stages in range(1, len(seconds) + 1):
        sizes = model.divide(seconds, stages)
        assert (len(sizes), sum(sizes)) == (stages, len(seconds))
        every = [
            max(sum(seconds[a:b]) for a, b in zip((0, *cuts), (*cuts, len(seconds)), strict=True))
            for cuts in combinations(range(1, len(seconds)), stages - 1)
        ]
        starts = [sum(sizes[:n]) for n in range(stages)]
        slowest = max(sum(seconds[a : a + size]) for a, size in zip(starts, sizes, strict=True))
        assert slowest == pytest.approx(min(every))
    with pytest.raises(ValueError, match="expected 1 to"):
        model.divide(seconds, len(seconds) + 1)


def test_one_node_learns_one_layer_after_another() -> None:
    found = model.forecast(network(0.1, 0.3), Layout(1, (2,)), FREE, on(1))
    assert found.samples_per_s == pytest.approx(100 / 0.4)
    assert found.shares["compute"] == pytest.approx(1)
    assert found.limit == "compute"


def test_equal_stages_without_costs_are_as_many_times_as_fast() -> None:
    shape = network(*[0.1] * 8)
    alone = model.forecast(shape, model.pipeline(shape, 1), FREE, on(1)).samples_per_s
    for nodes in (2, 4, 8):
        for layout in (model.pipeline(shape, nodes), model.replicas(shape, nodes)):
            assert model.forecast(shape, layout, FREE, on(nodes)).samples_per_s == pytest.approx(nodes * alone)


def test_the_slowest_stage_sets_the_pace_and_the_others_wait() -> None:
    """Stages of 0.3 and 0.1 s: the second waits for two thirds of the time."""
    found = model.forecast(network(0.3, 0.1), Layout(1, (1, 1)), FREE, on(2))
    assert found.samples_per_s == pytest.approx(100 / 0.3)
    assert found.shares["bubble"] == pytest.approx(0.1 / 0.3)
    assert found.shares["compute"] == pytest.approx(0.2 / 0.3)


def test_more_nodes_than_layers_are_a_bubble() -> None:
    shape = network(0.1, 0.1)
    found = model.forecast(shape, model.pipeline(shape, 8), FREE, on(8))
    assert found.samples_per_s == pytest.approx(100 / 0.1)
    assert found.shares["bubble"] == pytest.approx(6 / 8)
    assert found.limit == "bubble"


def test_an_empty_pipeline_is_filled_once() -> None:
    """Three stages of 0.1 s; before each 2 ms of latency, and 1 ms for images or 10 ms for 1 MB at 100 MB/s."""
    cluster = replace(on(3), link_bytes_per_s=1e8, latency_s=0.002)
    found = model.forecast(network(0.1, 0.1, 0.1), Layout(1, (1, 1, 1)), FREE, cluster)
    assert found.fill_s == pytest.approx(0.3 + 0.001 + 2 * 0.01 + 3 * 0.002)
    assert found.seconds(1) == found.fill_s
    assert found.seconds(11) - found.seconds(1) == pytest.approx(10 * 0.1)
    assert 100 * 10**6 / found.seconds(10**6) == pytest.approx(found.samples_per_s, rel=1e-4)


def test_every_end_of_a_hop_costs_its_stage() -> None:
    """0.1 s of learning; the middle stage has two ends of 0.01 s and 2 MB at 0.02 s each."""
    costs = replace(FREE, hop_s=0.01, hop_s_per_byte=0.02 / 1e6)
    found = model.forecast(network(0.1, 0.1, 0.1), Layout(1, (1, 1, 1)), costs, on(3))
    assert found.period_s == pytest.approx(0.1 + 2 * 0.01 + 2 * 0.02)
    ends, megabytes = 1 + 2 + 2, 0.1 + 1 + 1 + 1 + 1
    assert found.shares["overhead"] == pytest.approx((ends * 0.01 + megabytes * 0.02) / 3 / found.period_s)


def test_a_slow_link_sets_the_pace_and_is_named() -> None:
    """1 MB of activities at 1 MB/s take a second, beside 0.1 s of learning."""
    cluster = replace(on(2), link_bytes_per_s=1e6)
    found = model.forecast(network(0.1, 0.1), Layout(1, (1, 1)), FREE, cluster)
    assert found.samples_per_s == pytest.approx(100)
    assert found.limit == "link"
    assert found.shares["link"] == pytest.approx(0.9)


def test_few_credits_and_a_long_way_set_the_pace() -> None:
    cluster = replace(on(2), latency_s=1.0, queue_depth=4)
    found = model.forecast(network(0.1, 0.1), Layout(1, (1, 1)), FREE, cluster)
    assert found.samples_per_s == pytest.approx(100 / 0.5), "four microbatches in two seconds"
    assert found.limit == "link"


def test_all_samples_leave_by_the_link_of_the_daemon() -> None:
    cluster = replace(on(64), link_bytes_per_s=1e6, merge_every=10**9)
    found = model.forecast(network(0.5), Layout(64, (1,)), FREE, cluster)
    assert found.samples_per_s == pytest.approx(100 * 1e6 / 1e5)
    assert found.limit == "link"


def test_a_merge_costs_its_transfer_and_its_average() -> None:
    """Two replicas, states of 100 MB: 200 MB at 1 GB/s, 200 MB to average at 1 ns, every 8 microbatches of 0.1 s."""
    cluster = replace(on(2), link_bytes_per_s=1e9)
    costs = replace(FREE, merge_s_per_byte=1e-9)
    found = model.forecast(network(0.1), Layout(2, (1,)), costs, cluster)
    assert found.samples_per_s == pytest.approx(2 * 8 * 100 / (8 * 0.1 + 0.2 + 0.2))
    assert found.shares["merge"] == pytest.approx(0.4 / 1.2)
    rarely = model.forecast(network(0.1), Layout(2, (1,)), costs, replace(cluster, merge_every=10**9))
    assert rarely.samples_per_s == pytest.approx(2 * 100 / 0.1)


def test_many_replicas_do_nothing_but_merge() -> None:
    cluster = replace(on(64), link_bytes_per_s=1e9)
    found = model.forecast(network(0.1), Layout(64, (1,)), FREE, cluster)
    assert found.limit == "merge"
    more = model.forecast(network(0.1), Layout(128, (1,)), FREE, on(128, cluster))
    assert more.samples_per_s < 1.1 * found.samples_per_s, "twice the replicas merge for twice as long"


def test_snapshots_take_the_link_of_their_stage_and_of_the_daemon() -> None:
    """40 MB of weights every four microbatches: 10 MB at 10 MB/s for one stage, twice that for the daemon of two."""
    costs, cluster = replace(FREE, hop_s_per_byte=1e-9), replace(on(2), link_bytes_per_s=1e7)
    alone = network(0.1, activity=0, weights=4e7)
    found = model.forecast(alone, Layout(1, (1,)), costs, on(1, cluster))
    assert found.samples_per_s == pytest.approx(100 / 1.0)
    assert found.limit == "publish"
    both = network(0.1, 0.1, activity=0, weights=4e7)
    found = model.forecast(both, Layout(1, (1, 1)), costs, cluster)
    assert found.samples_per_s == pytest.approx(100 / 2.0)
    assert found.limit == "publish"
    rarely = model.forecast(both, Layout(1, (1, 1)), costs, replace(cluster, publish_every=10**9))
    assert rarely.samples_per_s == pytest.approx(100 / 0.1, rel=0.01)
    quick = model.forecast(both, Layout(1, (1, 1)), costs, replace(cluster, link_bytes_per_s=math.inf))
    assert quick.samples_per_s == pytest.approx(100 / (0.1 + 1e-9 * 1e7), rel=0.01), "and its processor"


def test_one_replica_sends_the_snapshots_of_all() -> None:
    """Four replicas: 80 MB every 16 microbatches of the stream, for the daemon's link of 100 MB/s."""
    cluster = replace(on(4), link_bytes_per_s=1e8, merge_every=10**9)
    found = model.forecast(network(0.04, 0.04, weights=4e7), Layout(4, (2,)), FREE, cluster)
    assert found.samples_per_s == pytest.approx(100 / (8e7 / 16 / 1e8))
    assert found.limit == "publish"


def test_one_journal_and_one_feeder_limit_all_replicas_and_are_named() -> None:
    shape = network(0.1, state=0)
    for costs, name in (
        (replace(FREE, journal_samples_per_s=5000), "journal"),
        (replace(FREE, feed_s=0.02), "feeder"),
    ):
        found = model.forecast(shape, Layout(64, (1,)), costs, on(64))
        assert found.samples_per_s == pytest.approx(5000)
        assert found.limit == name
        assert found.shares[name] == pytest.approx(1 - 5000 / 64_000)


def test_stages_that_share_processors_are_no_faster_than_these() -> None:
    found = model.forecast(network(0.1, 0.1, 0.1, 0.1), Layout(1, (1,) * 4), FREE, replace(on(4), processors=2))
    assert found.samples_per_s == pytest.approx(100 / 0.2)
    assert found.shares["processors"] == pytest.approx(0.5)
    assert found.period_s == pytest.approx(0.2)


COSTS = Costs(hop_s=1e-4, hop_s_per_byte=1e-9, merge_s_per_byte=3e-10, journal_samples_per_s=2e5, feed_s=1e-3)


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("link", [1e8, 1e9, 1e10])
def test_the_shares_of_the_time_add_up(nodes: int, link: float) -> None:
    shape, cluster = network(0.02, 0.05, 0.03, 0.05, weights=1e7), replace(on(nodes), link_bytes_per_s=link)
    for layout in (model.pipeline(shape, nodes), model.replicas(shape, nodes)):
        shares = model.forecast(shape, layout, COSTS, cluster).shares
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) > -1e-12
        assert shares.keys() == {"compute", *model.LOSSES}


def test_better_machines_are_never_slower() -> None:
    shape = network(0.02, 0.05, 0.03, 0.05, weights=1e7)
    layouts = [model.pipeline(shape, 4), model.replicas(shape, 4), Layout(2, (2, 2))]
    cluster = replace(on(4), link_bytes_per_s=1e9, latency_s=1e-4)
    better = [
        (COSTS, replace(cluster, link_bytes_per_s=1e10)),
        (COSTS, replace(cluster, latency_s=0)),
        (COSTS, replace(cluster, queue_depth=8)),
        (COSTS, replace(cluster, merge_every=16)),
        (COSTS, replace(cluster, publish_every=16)),
        *(
            (replace(COSTS, **{name: 0}), cluster)
            for name in ("hop_s", "hop_s_per_byte", "merge_s_per_byte", "feed_s")
        ),
        (replace(COSTS, journal_samples_per_s=1e6), cluster),
    ]
    for layout in layouts:
        rate = model.forecast(shape, layout, COSTS, cluster).samples_per_s
        for costs, other in better:
            assert model.forecast(shape, layout, costs, other).samples_per_s >= rate


def test_the_best_layout_is_at_least_as_fast_as_any_and_never_loses_by_more_nodes() -> None:
    shape, last = network(0.02, 0.05, 0.03, 0.05), 0.0
    for nodes in range(1, 33):
        cluster = replace(on(nodes), link_bytes_per_s=1e9)
        found = model.best(shape, COSTS, cluster)
        for layout in (model.pipeline(shape, nodes), model.replicas(shape, nodes)):
            assert found.samples_per_s >= model.forecast(shape, layout, COSTS, cluster).samples_per_s
        assert found.samples_per_s >= last * (1 - 1e-12)
        last = found.samples_per_s


def test_a_layout_that_does_not_fit_is_an_error() -> None:
    for layout in (Layout(3, (1, 1)), Layout(1, (1,))):
        with pytest.raises(ValueError, match="does not fit 4 nodes and 2 layers"):
            model.forecast(network(0.1, 0.1), layout, FREE, on(4))
