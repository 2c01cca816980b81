"""Gauges are absent from a scrape until their value is known."""

import math

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ffstream.metrics import Gauge, Metrics


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """A family's samples in a scrape, by the values of their labels."""
    families = {
        family.name: family for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
    }
    return {tuple(each.labels.values()): each.value for each in families[f"ffstream_{name}"].samples}


def test_no_gauge_has_a_value_before_it_is_known() -> None:
    metrics = Metrics()
    gauges = [name for name, each in vars(metrics).items() if isinstance(each, Gauge)]
    assert len(gauges) > 20
    scraped = generate_latest(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(scraped)}
    for described in (getattr(metrics, name).describe()[0] for name in gauges):
        assert families[described.name].type == described.type, "it is announced"
        assert families[described.name].samples == []


def test_a_gauge_shows_what_it_was_set_to() -> None:
    metrics = Metrics()
    metrics.clients.set(3)
    metrics.clients.set(0)
    metrics.loss.labels("0").set(0.5)
    metrics.loss.labels("1").set(0.25)
    assert samples(metrics, "clients") == {(): 0.0}, "zero is a value"
    assert samples(metrics, "layer_loss") == {("0",): 0.5, ("1",): 0.25}


def test_a_gauge_is_absent_again_when_its_value_is_no_longer_known() -> None:
    metrics = Metrics()
    value: float | None = 1.0
    metrics.applied_seq.set_function(lambda: value)
    assert samples(metrics, "applied_seq") == {(): 1.0}
    value = None
    assert samples(metrics, "applied_seq") == {}
    metrics.loss.labels("0").set(math.nan)
    assert samples(metrics, "layer_loss") == {}


def test_a_counter_that_something_else_keeps_is_read_at_each_scrape() -> None:
    metrics = Metrics()
    paused_s = 0.0
    metrics.paused_seconds.set_function(lambda: paused_s)
    paused_s = 2.5
    scraped = generate_latest(metrics.registry).decode()
    assert "# TYPE ffstream_learning_paused_seconds_total counter" in scraped
    assert "\nffstream_learning_paused_seconds_total 2.5\n" in scraped


def test_a_scrape_shows_the_process_and_no_series_of_when_a_metric_was_made() -> None:
    scraped = generate_latest(Metrics().registry).decode()
    names = {line.split()[2] for line in scraped.splitlines() if line.startswith("# TYPE ")}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_gc_collections_total"} <= names
    assert "_created" not in scraped


def test_a_gauge_without_its_labels_is_an_error() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="layer_loss has the labels"):
        metrics.loss.set(1.0)
    with pytest.raises(ValueError, match="clients has the labels"):
        metrics.clients.labels("a")
