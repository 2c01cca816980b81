"""The text of /metrics equals that of prometheus_client."""

import gc
import math
from collections.abc import Iterator

import pytest
from prometheus_client import Counter, Gauge, Histogram, Info, generate_latest

from ffstream.metrics import Metrics
from ffstream.server.exposition import Exposition


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """Otherwise python_gc_* may differ between two texts."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("value", [0.0, 3.0, -1.5, 1e300, 123456789.25, math.inf, -math.inf, math.nan])
def test_it_is_what_the_library_writes_also_when_values_change(value: float) -> None:
    metrics = Metrics()
    registry = metrics.registry
    exposition = Exposition(registry)
    assert exposition.text() == generate_latest(registry), "before anything is known"
    gauge = Gauge("of_a_test", "Has \\ and\na second line.", ["a", "b"], registry=registry)
    counter = Counter("also_of_a_test_total", "A counter.", ["reason"], registry=registry)
    histogram = Histogram("seconds_of_a_test", "A histogram.", registry=registry, buckets=(0.1, 1))
    Info("about_a_test", "An info.", registry=registry).info({"version": "1 2 3"})
    gauge.labels('quoted "text" \\', "two\nlines").set(7)
    metrics.layer_margin.labels("0").set(7)
    metrics.layer_restarts.labels("0").inc()
    for _ in range(2):  # a second time from what it remembers
        assert exposition.text() == generate_latest(registry)
        gauge.labels('quoted "text" \\', "two\nlines").set(value)
        gauge.labels("another", "one").set(value)
        counter.labels("x").inc(abs(value))
        histogram.observe(value)
        metrics.layer_margin.labels("0").set(value)
        metrics.goodness.labels("0", "positive").set(value)
