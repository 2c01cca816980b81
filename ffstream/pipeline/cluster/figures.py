"""The figures of a stage as plain values, for a message."""

from typing import Any

from ffstream.ff.health import HealthFigures
from ffstream.ff.layer_monitor import LayerFigures
from ffstream.ff.objective import Balance
from ffstream.pipeline.stage_gauges import BarrierFigures


def packed(figures: BarrierFigures) -> list[Any]:
    """Lists and numbers."""
    layers = [[index, list(each)] for index, each in figures.layers.items()]  # its tuples are lists in msgpack
    return [figures.seq, layers, figures.readout_loss, figures.live_error]


def unpacked(values: list[Any]) -> BarrierFigures:
    """The reverse of `packed`."""
    seq, layers, readout_loss, live_error = values
    return BarrierFigures(seq, {index: _layer(each) for index, each in layers}, readout_loss, live_error)


def _layer(values: list[Any]) -> LayerFigures:
    figures = LayerFigures(*values)
    balance = None if figures.balance is None else Balance(*figures.balance)
    return figures._replace(health=HealthFigures(*figures.health), balance=balance)
