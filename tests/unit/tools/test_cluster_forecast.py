"""The table of stages on several machines, from measurements that this file makes up."""

from pathlib import Path

import pytest

from tools.benchmarks.cluster import forecast, measured
from tools.benchmarks.cluster.measured import INPUTS, WIDTHS, HopCosts, LayerTime, Measured

GIGABIT = 1e9 / 8


def layer(inputs: int, units: int, batch: int) -> LayerTime:
    """10 ns for each weight and update, 10 ps for each weight and sample: a slow processor."""
    return LayerTime(
        inputs=inputs,
        units=units,
        batch=batch,
        seconds=inputs * units * (1e-8 + 1e-11 * batch),
        activity_bytes=4 * units * batch,
        state_bytes=16 * inputs * units,
        weight_bytes=4 * inputs * units,
    )


@pytest.fixture
def given() -> Measured:
    shapes = [(784, 512), (512, 512), (784, 2000), (2000, 2000)]
    return Measured(
        origin={},
        encrypted_hop=HopCosts(seconds=1e-4, seconds_per_byte=1e-9),
        plain_hop=HopCosts(seconds=1e-4, seconds_per_byte=3e-10),
        merge_s_per_byte=3e-10,
        journal_samples_per_s=200_000,
        feed_s_per_sample=4e-6,
        layers=tuple(layer(*shape, batch) for shape in shapes for batch in (256, 1024)),
        rates=(),
    )


def test_a_line_through_two_sizes_gives_any_other(given: Measured) -> None:
    for name in forecast.NETWORKS.values():
        for batch in (64, 256, 512, 1024):
            network = given.network(name, batch)
            widths = (INPUTS, *WIDTHS[name])
            for index, each in enumerate(network.layers):
                expected = layer(widths[index], widths[index + 1], batch)
                assert each.seconds == pytest.approx(expected.seconds)
                assert (each.activity_bytes, each.state_bytes) == (expected.activity_bytes, expected.state_bytes)


def test_a_line_is_never_below_zero() -> None:
    assert measured.line([(256, 1.0), (1024, 8.0)], 0) == 0
    assert measured.line([(256, 1.0)], 512) == 2.0
    assert measured.line([(100, 2.0), (200, 3.0)], 300) == pytest.approx(4.0)


def test_a_layer_that_was_not_measured_is_an_error(given: Measured) -> None:
    few = given.model_copy(update={"layers": given.layers[:2]})
    with pytest.raises(ValueError, match="no layer 784-2000 was measured"):
        few.network("784-2000x4", 256)


def test_what_is_written_is_read(given: Measured, tmp_path: Path) -> None:
    measured.save(given, tmp_path / "measured.json")
    assert measured.load(tmp_path / "measured.json") == given


def test_the_table_has_each_layout_at_each_speed(given: Measured) -> None:
    lines = forecast.table(given).splitlines()
    rows = [line for line in lines if line.startswith("| 784")]
    assert len(rows) == len(forecast.NETWORKS) * len(forecast.LAYOUTS) * len(forecast.LINKS)
    assert all(line.count("|") == len(forecast.NODES) + 2 for line in rows)
    said = "\n".join(line for line in lines if line.startswith("- "))
    assert (
        "784-2000x4, pipeline, 10, 100 Gb/s: unequal or missing stages (a layer is not divided) from 8 nodes" in said
    )
    assert "784-2000x4, replicas, 1 Gb/s: merging from 2 nodes" in said


def test_each_limit_appears_where_it_must(given: Measured) -> None:
    def limit(network: str, layout: str, nodes: int, link: float) -> str:
        return forecast.forecast(given, network, layout, nodes, link, 256).limit

    assert limit("784-512x16", "pipeline", 64, GIGABIT * 100) == "bubble"
    assert limit("784-2000x4", "replicas", 64, GIGABIT) == "merge"
    free = given.model_copy(update={"merge_s_per_byte": 0.0, "feed_s_per_sample": 0.0, "journal_samples_per_s": 3e3})
    found = forecast.forecast(free, "784-2000x4", "replicas", 64, GIGABIT * 1e6, 256)
    assert (found.limit, found.samples_per_s) == ("journal", 3e3)
    with pytest.raises(ValueError, match="ring: expected one of pipeline, replicas, best"):
        limit("784-2000x4", "ring", 4, GIGABIT)


def test_the_picture_is_drawn(given: Measured, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    forecast.draw(tmp_path / "forecast.png", given)
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
