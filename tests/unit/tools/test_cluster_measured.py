"""The model against what was measured, and what it says about the machine that was measured."""

import math

from tools.benchmarks.cluster import forecast, measured

# The costs and the rates come from one run, in which both vary from moment to moment.
FACTOR = 1.6


def test_the_model_predicts_the_rates_that_were_measured() -> None:
    found = measured.load()
    assert {each.engine for each in found.rates} == {"threads", "ray"}
    off = {
        (each.network, each.batch, each.engine): found.predicted(each).samples_per_s / each.samples_per_s
        for each in found.rates
    }
    assert all(1 / FACTOR < ratio < FACTOR for ratio in off.values()), off
    middle = math.exp(sum(map(math.log, off.values())) / len(off))
    assert 1 / 1.3 < middle < 1.3, off


def test_the_model_knows_why_actors_are_slower_than_threads() -> None:
    found = measured.load()
    for each in found.rates:
        shares = found.predicted(each).shares
        assert (shares["overhead"] > 0) == (each.engine == "ray")


def test_all_that_the_forecast_needs_was_measured() -> None:
    found = measured.load()
    for network in forecast.NETWORKS.values():
        shape = found.network(network, forecast.BATCH)
        assert all(min(each.seconds, each.activity_bytes, each.weight_bytes) > 0 for each in shape.layers)
        assert all(each.state_bytes > each.weight_bytes for each in shape.layers)
