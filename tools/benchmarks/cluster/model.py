"""How many samples a second stages on K nodes learn: formulas without measurements.

A node has one processor for its stage. A pipeline of S stages holds the layers in order; R replicas are R pipelines,
which learn disjoint microbatches and merge their states after every m microbatches each. For stage i of a pipeline:

    T_i = c_i + o_i                                 processor time of a microbatch
    c_i = Σ c_l over its layers l                   learning
    o_i = h·(ends) + b·(bytes in + bytes out)       receiving and handing on; the last stage hands nothing on
    p_i = w_i / P                                   bytes of its weights for snapshots, one in P microbatches
    N_i = max(bytes in, bytes out + p_i) / link     the link, both ways at once, beside the processor
    W_i = (bytes in / link + 2·latency) / q         at most q microbatches are on their way (credits)
    G_i = 2·(R − 1)·s_i / link + 2·latency + g·R·s_i         a merge: R − 1 states of s_i bytes to one node, which
                                                    averages R, and the average back; 0 with one replica

A stage that waits for nothing else takes max(T_i + b·p_i, N_i, W_i) a microbatch. The slowest stage sets the pace:

    cycle = max_i(m·max(T_i + b·p_i, N_i, W_i) + G_i)        m microbatches and a merge
    rate  = min(R·m·B / cycle, J, B/f, link·B/bytes, R·link·B/Σp_i)      B samples a microbatch

J: samples a second that one journal commits. f: time of the daemon to feed a microbatch. The last two are the link of
the daemon, which sends every sample to the first stages and receives the snapshots. One replica sends these. P counts
its microbatches: `learning.publish_every`, which counts those of the stream, is P·R.

Filling: the first microbatch is through after Σ_i(T_i + bytes in/link + latency), so n of them take that plus n − 1
periods. A stream pays it once, and after each failure: no merge and no barrier empties a pipeline.

What the time of the nodes goes to adds up to 1. `compute` is useful. `overhead`: o_i. `bubble`: nodes that wait
because stages are unequal, or are fewer than nodes. `merge`, `link`, `publish`, `processors`: what the cycle would be
shorter by without them, one after the other. `journal`, `feeder`, and `link` and `publish` of the daemon: what the
rate would be higher by without these limits.

The model leaves out: a slow node among equal ones, other traffic, that a layer may be faster in a larger cache, and
what merging does to accuracy. `processors` is a limit only where stages share a machine, as in the measurements; then
the daemon shares it, too: it takes f, and the other ends of its hops.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple


@dataclass(frozen=True)
class Layer:
    """What a layer costs for one microbatch."""

    seconds: float  # c_l, on one processor
    activity_bytes: float  # that it hands on
    state_bytes: float  # that replicas merge
    weight_bytes: float  # of a snapshot


@dataclass(frozen=True)
class Network:
    """Layers in order, and the microbatch that they learn."""

    layers: tuple[Layer, ...]
    batch: int
    input_bytes: float  # of a microbatch, for the first layer


@dataclass(frozen=True)
class Costs:
    """Measured costs that do not depend on the network."""

    hop_s: float  # h: of a microbatch at one end of a hop
    hop_s_per_byte: float  # b: the same for each byte at one end
    merge_s_per_byte: float  # g: of averaging, for each byte of each replica
    journal_samples_per_s: float  # J
    feed_s: float  # f: of the daemon for a microbatch


@dataclass(frozen=True)
class Cluster:
    """Nodes and what is between them."""

    nodes: int  # K
    link_bytes_per_s: float
    latency_s: float = 50e-6
    queue_depth: int = 4  # q
    merge_every: int = 8  # m
    publish_every: int = 4  # P
    processors: float = math.inf  # of all nodes together, where they share a machine


class Layout(NamedTuple):
    """How the nodes are used."""

    replicas: int  # R
    sizes: tuple[int, ...]  # layers in each stage


@dataclass(frozen=True)
class Forecast:
    """What a layout gives."""

    layout: Layout
    samples_per_s: float
    shares: dict[str, float]  # what the nodes' time goes to; sums to 1
    period_s: float  # between two microbatches of a replica, merges left out
    fill_s: float  # until the first microbatch is through
    cap: str | None  # what of the daemon keeps the rate below that of the stages

    @property
    def limit(self) -> str:
        """`cap`, or what takes the largest share of the time, or `compute` where that has at least half."""
        if self.cap is not None:
            return self.cap
        return "compute" if self.shares["compute"] >= 0.5 else max(LOSSES, key=lambda name: self.shares[name])

    def seconds(self, microbatches: int) -> float:
        """Time of one replica for so many microbatches from an empty pipeline, merges left out."""
        return self.fill_s + (microbatches - 1) * self.period_s


LOSSES = ("overhead", "bubble", "processors", "link", "publish", "merge", "journal", "feeder")


@cache
def divide(seconds: tuple[float, ...], stages: int) -> tuple[int, ...]:
    """Layers in each stage, in order, so that the slowest stage is as fast as it can be.

    >>> divide((3.0, 1.0, 1.0, 1.0), 2)
    (1, 3)
    """
    if not 1 <= stages <= len(seconds):
        raise ValueError(f"{stages} stages from {len(seconds)} layers: expected 1 to {len(seconds)}")
    sums = [0.0]
    for each in seconds:
        sums.append(sums[-1] + each)
    # best[n]: slowest stage and cuts of the first n layers in so many stages
    best: dict[int, tuple[float, tuple[int, ...]]] = {n: (sums[n], (n,)) for n in range(1, len(sums))}
    for count in range(2, stages + 1):
        best = {
            n: min((max(best[cut][0], sums[n] - sums[cut]), (*best[cut][1], n)) for cut in range(count - 1, n))
            for n in range(count, len(sums))
        }
    cuts = (0, *best[len(seconds)][1])
    return tuple(after - before for before, after in pairwise(cuts))


def pipeline(network: Network, nodes: int) -> Layout:
    """One pipeline, with as many stages as nodes or layers allow."""
    stages = min(nodes, len(network.layers))
    return Layout(1, divide(tuple(layer.seconds for layer in network.layers), stages))


def replicas(network: Network, nodes: int) -> Layout:
    """A replica with all layers on each node."""
    return Layout(nodes, (len(network.layers),))


def best(network: Network, costs: Costs, cluster: Cluster) -> Forecast:
    """The layout that learns fastest; the fewest replicas among equals."""
    return max(
        (forecast(network, each, costs, cluster) for each in _layouts(network, cluster.nodes)),
        key=lambda found: found.samples_per_s,
    )


def _layouts(network: Network, nodes: int) -> Iterator[Layout]:
    for count in range(1, nodes + 1):
        for stages in range(1, min(nodes // count, len(network.layers)) + 1):
            yield Layout(count, pipeline(network, stages).sizes)


class _Stage(NamedTuple):
    """Seconds for a microbatch; `merge` for a merge."""

    compute: float
    overhead: float
    wait: float  # for activities, if the processor does not take longer
    publish: float  # of the processor
    published: float  # for activities and weights, as `wait`
    merge: float
    arrival: float  # from the stage before

    @property
    def busy(self) -> float:
        return self.compute + self.overhead

    @property
    def learning(self) -> float:
        """Without snapshots."""
        return max(self.busy, self.wait)

    @property
    def period(self) -> float:
        return max(self.busy + self.publish, self.wait, self.published)


def forecast(network: Network, layout: Layout, costs: Costs, cluster: Cluster) -> Forecast:
    """The rate of a layout and what limits it. Raises ValueError if the layout needs more nodes or other layers."""
    if layout.replicas * len(layout.sizes) > cluster.nodes or sum(layout.sizes) != len(network.layers):
        raise ValueError(f"{layout} does not fit {cluster.nodes} nodes and {len(network.layers)} layers")
    stages = list(_stages(network, layout, costs, cluster))
    every, count = cluster.merge_every, layout.replicas
    busy = max(stage.busy for stage in stages) * every
    merging = max(stage.busy * every + stage.merge for stage in stages)
    sending = max(stage.learning * every + stage.merge for stage in stages)
    alone = max(stage.period * every + stage.merge for stage in stages)
    work = sum((stage.busy + stage.publish) * every + stage.merge for stage in stages) * count
    work = (work + _daemon_s(network, costs, cluster) * every * count) / cluster.processors
    cycle = max(alone, work)
    learned = count * every * network.batch / cycle
    caps = _caps(network, count, costs, cluster)
    rate = min(learned, *caps.values())
    nodes = cluster.nodes / count  # of a replica
    compute = sum(stage.compute for stage in stages) * every / nodes
    overhead = sum(stage.overhead for stage in stages) * every / nodes
    parts = {
        "compute": compute,
        "overhead": overhead,
        "bubble": busy - compute - overhead,
        "merge": merging - busy,
        "link": sending - merging,
        "publish": alone - sending,
        "processors": cycle - alone,
    }
    shares = {name: parts.get(name, 0.0) / cycle * rate / learned for name in ("compute", *LOSSES)}
    cap = min(caps, key=lambda name: caps[name]) if rate < learned else None
    if cap is not None:
        shares[cap] += 1 - rate / learned
    period = max(*(stage.period for stage in stages), work / every if work > alone else 0.0)
    fill = sum(stage.busy + stage.arrival for stage in stages)
    return Forecast(layout, rate, shares, period, fill, cap)


def _daemon_s(network: Network, costs: Costs, cluster: Cluster) -> float:
    """Processor time of the daemon for a microbatch: it feeds and sends it, and receives snapshots."""
    snapshot = sum(layer.weight_bytes for layer in network.layers) / cluster.publish_every
    return costs.feed_s + costs.hop_s + costs.hop_s_per_byte * (network.input_bytes + snapshot)


def _caps(network: Network, count: int, costs: Costs, cluster: Cluster) -> dict[str, float]:
    """Samples a second that the daemon allows."""
    snapshot = sum(layer.weight_bytes for layer in network.layers) / cluster.publish_every / count
    seconds = {
        "journal": network.batch / costs.journal_samples_per_s,
        "feeder": costs.feed_s,
        "link": network.input_bytes / cluster.link_bytes_per_s,
        "publish": snapshot / cluster.link_bytes_per_s,
    }
    return {name: network.batch / each if each else math.inf for name, each in seconds.items()}


def _stages(network: Network, layout: Layout, costs: Costs, cluster: Cluster) -> Iterator[_Stage]:
    link, count = cluster.link_bytes_per_s, layout.replicas
    rest, incoming = list(network.layers), network.input_bytes
    for size in layout.sizes:
        own, rest = rest[:size], rest[size:]
        outgoing = own[-1].activity_bytes if rest else 0.0
        state = sum(layer.state_bytes for layer in own)
        weights = sum(layer.weight_bytes for layer in own) / cluster.publish_every
        transfer = incoming / link
        yield _Stage(
            compute=sum(layer.seconds for layer in own),
            overhead=costs.hop_s * (2 if rest else 1) + costs.hop_s_per_byte * (incoming + outgoing),
            wait=max(transfer, outgoing / link, (transfer + 2 * cluster.latency_s) / cluster.queue_depth),
            publish=costs.hop_s_per_byte * weights,
            published=(outgoing + weights) / link,
            merge=_merge_s(state, count, costs, cluster) if count > 1 else 0.0,
            arrival=transfer + cluster.latency_s,
        )
        incoming = outgoing


def _merge_s(state_bytes: float, count: int, costs: Costs, cluster: Cluster) -> float:
    moved = 2 * (count - 1) * state_bytes / cluster.link_bytes_per_s
    return moved + 2 * cluster.latency_s + costs.merge_s_per_byte * count * state_bytes
