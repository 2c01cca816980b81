"""`tools/bench cluster`: measures costs, rates and recovery, and keeps what the model needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.benchmarks.cluster import costs, measured, recovery
from tools.benchmarks.cluster.measured import TINY, WIDTHS, HopCosts, LayerTime, Measured, Rate
from tools.benchmarks.cluster.rates import config_of, ray_nodes, speed, started
from tools.benchmarks.report import Report, origin, today

ENGINES: tuple[Literal["threads", "ray"], ...] = ("threads", "ray")
_UPDATES = {"784-512-512": 400, "784-2000x4": 40}  # microbatches of 256 in one measurement, about
_MEGABYTE = 1e6
_MERGED = 4  # replicas


@dataclass(frozen=True)
class Options:
    """`share` of the work of each measurement, for a quick look; `write` is where the numbers go for the model."""

    networks: Sequence[str] = tuple(_UPDATES)
    batches: Sequence[int] = (256, 1024)
    rounds: int = 3
    kills: int = 3
    share: float = 1.0
    write: Path | None = None

    def times(self, count: float, least: int = 8) -> int:
        """So many repetitions, or the given share of them; a multiple of 4, after which there is a snapshot."""
        return max(least, round(count * self.share / 4) * 4)


def run(report: Report, options: Options) -> None:
    """Prints rows, and with `write` the file."""
    layers = list(_layers(report, options))
    hops = {encrypted: _hop(report, options, encrypted) for encrypted in (False, True)}
    merge = costs.merge_cost(options.networks[-1], _MERGED)
    report.add("cluster/merge", merge * _MEGABYTE * 1e3, "ms/MB", replicas=_MERGED)
    journal = costs.journal_rate(options.times(120_000, 6_400))
    report.add("cluster/journal", journal, "samples/s")
    rates = list(_rates(report, options))
    feed = _feed(options)
    report.add("cluster/feed", 1 / feed, "samples/s")
    if options.kills:
        recovery.run(report, options.kills)
    if options.write is not None:
        found = Measured(
            origin={**origin(), "measured": today(), "share": options.share},
            encrypted_hop=hops[True],
            plain_hop=hops[False],
            merge_s_per_byte=merge,
            journal_samples_per_s=journal,
            feed_s_per_sample=feed,
            layers=tuple(layers),
            rates=tuple(rates),
        )
        measured.save(found, options.write)


def _layers(report: Report, options: Options) -> Iterator[LayerTime]:
    """Layers of one shape in several networks, or several times in one, are one: the fastest, which noise spared."""
    for batch in options.batches:
        found: dict[tuple[int, int], LayerTime] = {}
        for name in options.networks:
            for each in costs.layer_times(name, batch, options.times(_UPDATES[name] * 256 / batch)):
                shape = (each.inputs, each.units)
                found[shape] = min(found.get(shape, each), each, key=lambda time: time.seconds)
        for (inputs, units), each in found.items():
            report.add(f"cluster/layer/{inputs}-{units}/{batch}", 1e3 * each.seconds, "ms")
        yield from found.values()


def _hop(report: Report, options: Options, encrypted: bool) -> HopCosts:
    found = costs.hop_costs(256, (128, 512, 2000), options.times(200), encrypted=encrypted)
    name = f"cluster/hop/{'encrypted' if encrypted else 'plain'}"
    report.add(f"{name}/fixed", 1e3 * found.seconds, "ms")
    report.add(f"{name}/per_megabyte", 1e3 * _MEGABYTE * found.seconds_per_byte, "ms")
    return found


def _feed(options: Options) -> float:
    """Processor time of the daemon for a sample that a tiny layer learns: at most what feeding takes."""
    config = config_of(TINY, 256, {})
    with started(config) as engine:
        found = speed(config, engine, options.times(800))
        return found.processors / found.samples_per_s


def _rates(report: Report, options: Options) -> Iterator[Rate]:
    """Both engines in turn, on the same processors. The actors are on two nodes, so activities are encrypted."""
    with ray_nodes(2, 8) as nodes:
        for name in options.networks:
            for batch in options.batches:
                stages = len(WIDTHS[name])
                ray = {
                    "pipeline": {"engine": "ray"},
                    "cluster": {"address": nodes.address, "placement": ["spread"] * stages},
                }
                configs = [config_of(name, batch, each) for each in ({}, ray)]
                count = options.times(_UPDATES[name] * 256 / batch)
                with started(configs[0]) as threads, started(configs[1]) as actors:
                    pairs = list(zip(configs, (threads, actors), strict=True))
                    turns = [
                        [speed(config, engine, count) for config, engine in pairs] for _ in range(options.rounds)
                    ]
                medians = [sorted(each)[len(each) // 2] for each in zip(*turns, strict=True)]
                found = [each.samples_per_s for each in medians]
                report.add(f"cluster/{name}/{batch}/ray_over_threads", found[1], "samples/s", "threads", found[0])
                more = (batch / found[1] - batch / found[0]) / stages
                report.add(f"cluster/{name}/{batch}/overhead_per_hop", 1e3 * more, "ms")
                for engine, each in zip(ENGINES, medians, strict=True):
                    yield Rate(
                        network=name,
                        batch=batch,
                        engine=engine,
                        encrypted=engine == "ray",
                        stages=(1,) * stages,
                        replicas=1,
                        processors=each.processors,
                        samples_per_s=each.samples_per_s,
                    )
