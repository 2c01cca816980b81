"""The metrics of layers. What a layer measures is tested in tests/unit/ff."""

from ffstream.ff.network import Network
from ffstream.metrics import Metrics
from ffstream.pipeline.stage_gauges import LayerGauges
from tests.unit.pipeline.run import RECIPE


def test_restarts_are_counted_from_the_start_of_the_process_on() -> None:
    """A layer knows how often it has started over since the beginning of the stream, also after a recovery."""
    figures, metrics = Network(RECIPE).layers[0].figures(), Metrics()
    gauges = LayerGauges([0], metrics)

    def counted() -> float | None:
        return metrics.registry.get_sample_value("ffstream_layer_restarts_total", {"layer": "0"})

    assert counted() == 0, "an increase can be seen from the first scrape on"
    for restarts, expected in [(5, 0), (5, 0), (6, 1), (8, 3)]:
        gauges.set({0: figures._replace(restarts=restarts)}, 1, 1)
        assert counted() == expected
    LayerGauges([0], metrics).set({0: figures._replace(restarts=5)}, 1, 1)
    assert counted() == 3, "a rollback makes new gauges, and the counter does not fall"
