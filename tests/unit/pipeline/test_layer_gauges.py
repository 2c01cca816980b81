"""The metrics of layers. What a layer measures is tested in tests/unit/ff."""

import pytest

from ffstream.ff.network import Network
from ffstream.metrics import Metrics
from ffstream.pipeline.layer_gauges import LayerGauges
from tests.unit.pipeline.run import RECIPE


def test_restarts_are_counted_from_the_start_of_the_process_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer knows how often it has started over since the beginning of the stream, also after a recovery."""
    layer, metrics = Network(RECIPE).layers[0], Metrics()
    figures = layer.figures()
    gauges = LayerGauges([layer], metrics)

    def counted() -> float | None:
        return metrics.registry.get_sample_value("ffstream_layer_restarts_total", {"layer": "0"})

    assert counted() == 0, "an increase can be seen from the first scrape on"
    for restarts, expected in [(5, 0), (5, 0), (6, 1), (8, 3)]:
        monkeypatch.setattr(layer, "figures", lambda: figures._replace(restarts=restarts))  # noqa: B023
        gauges.set(1, 1)
        assert counted() == expected
    monkeypatch.setattr(layer, "figures", lambda: figures._replace(restarts=5))
    LayerGauges([layer], metrics).set(1, 1)
    assert counted() == 3, "a rollback makes new gauges, and the counter does not fall"
