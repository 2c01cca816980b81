"""What was measured for the model, in measured.json, and the networks of the model made from it.

`tools/bench cluster --measured FILE` writes it, from one run on one machine. It is valid if and only if `Measured`
reads it. A test holds the model against its `rates`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from tools.benchmarks.cluster.model import Cluster, Costs, Forecast, Layer, Layout, Network, forecast

FILE = Path(__file__).with_name("measured.json")
TINY = "784-10"  # learns so fast that the feeder is what takes time
WIDTHS = {TINY: (10,), "784-512-512": (512,) * 2, "784-2000x4": (2000,) * 4, "784-512x16": (512,) * 16}
INPUTS = 784


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerTime(_Record):
    """One layer on one processor, which learns microbatches of one size."""

    inputs: int
    units: int
    batch: int
    seconds: float
    activity_bytes: float
    state_bytes: float
    weight_bytes: float


class HopCosts(_Record):
    """Processor time of a microbatch at one end of a hop."""

    seconds: float
    seconds_per_byte: float


class Rate(_Record):
    """Samples a second of an engine. `processors`: how many the daemon and all stages got, on average."""

    network: str
    batch: int
    engine: Literal["threads", "ray"]
    encrypted: bool
    stages: tuple[int, ...]
    replicas: int
    processors: float
    samples_per_s: float


class Measured(_Record):
    """One run. Hops are encrypted between machines, and plain on loopback, where the rates are measured."""

    origin: dict[str, Any]
    encrypted_hop: HopCosts
    plain_hop: HopCosts
    merge_s_per_byte: float
    journal_samples_per_s: float
    feed_s_per_sample: float
    layers: tuple[LayerTime, ...]
    rates: tuple[Rate, ...]

    def costs(self, batch: int, *, encrypted: bool = True) -> Costs:
        """The costs of a microbatch of this size."""
        hop = self.encrypted_hop if encrypted else self.plain_hop
        return Costs(
            hop_s=hop.seconds,
            hop_s_per_byte=hop.seconds_per_byte,
            merge_s_per_byte=self.merge_s_per_byte,
            journal_samples_per_s=self.journal_samples_per_s,
            feed_s=self.feed_s_per_sample * batch,
        )

    def network(self, name: str, batch: int) -> Network:
        """The network as the model sees it. Raises ValueError for a layer that was not measured."""
        widths = (INPUTS, *WIDTHS[name])
        layers = [self._layer(inputs, units, batch) for inputs, units in pairwise(widths)]
        return Network(tuple(layers), batch, INPUTS * batch)  # the daemon sends uint8 images

    def predicted(self, rate: Rate) -> Forecast:
        """What the model says about a rate that was measured."""
        costs, stages = self.costs(rate.batch, encrypted=rate.encrypted), len(rate.stages) * rate.replicas
        if rate.engine == "threads":
            costs = replace(costs, hop_s=0.0, hop_s_per_byte=0.0)
        cluster = Cluster(stages, link_bytes_per_s=math.inf, latency_s=0.0, processors=rate.processors)
        layout = Layout(rate.replicas, rate.stages)
        return forecast(self.network(rate.network, rate.batch), layout, costs, cluster)

    def _layer(self, inputs: int, units: int, batch: int) -> Layer:
        found = [each for each in self.layers if (each.inputs, each.units) == (inputs, units)]
        if not found:
            raise ValueError(f"no layer {inputs}-{units} was measured")
        return Layer(
            seconds=line([(each.batch, each.seconds) for each in found], batch),
            activity_bytes=found[0].activity_bytes / found[0].batch * batch,
            state_bytes=found[0].state_bytes,
            weight_bytes=found[0].weight_bytes,
        )


def line(points: Sequence[tuple[float, float]], at: float) -> float:
    """y at x, on the straight line of least squares through (x, y): one update, and work for each sample.

    One point, or a line below 0 at x = 0, which noise makes: proportional to x.
    """
    mean_x, mean_y = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else mean_y / mean_x
    fixed = mean_y - slope * mean_x
    if fixed < 0:
        slope, fixed = sum(x * y for x, y in points) / sum(x * x for x, _ in points), 0.0
    return fixed + slope * at


def recipe_of(name: str, batch: int) -> Recipe:
    """The preset `fast` in the shape of a network: what is measured."""
    return make_recipe("fast", widths=WIDTHS[name], batch_size=batch, warmup_samples=0)


def load(path: Path = FILE) -> Measured:
    """Raises ValueError if the file does not fit."""
    return Measured.model_validate_json(path.read_text(encoding="utf-8"))


def save(measured: Measured, path: Path = FILE) -> None:
    """Writes the file."""
    path.write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
