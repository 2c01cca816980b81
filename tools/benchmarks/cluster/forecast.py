"""What the model says about 1 to 64 nodes: a table, its reading in words, and a picture."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.benchmarks.cluster import model
from tools.benchmarks.cluster.measured import Measured
from tools.benchmarks.cluster.model import Cluster, Forecast

NODES = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = {"wide": "784-2000x4", "deep": "784-512x16"}
LINKS = {"1": 1e9 / 8, "10": 10e9 / 8, "100": 100e9 / 8}  # Gb/s: bytes a second
LAYOUTS = ("pipeline", "replicas", "best")
BATCH = 256
_WORDS = {
    "overhead": "receiving and handing on",
    "bubble": "unequal or missing stages (a layer is not divided)",
    "link": "the link",
    "publish": "snapshots on their way to the daemon",
    "merge": "merging",
    "journal": "the journal's one writer",
    "feeder": "the daemon, which feeds all replicas",
    "processors": "shared processors",
}


def forecast(
    measured: Measured, network: str, layout: str, nodes: int, link_bytes_per_s: float, batch: int
) -> Forecast:
    """One cell of the table. Raises ValueError for an unknown layout."""
    shape, costs = measured.network(network, batch), measured.costs(batch)
    cluster = Cluster(nodes, link_bytes_per_s)
    if layout == "best":
        return model.best(shape, costs, cluster)
    if layout not in LAYOUTS:
        raise ValueError(f"{layout}: expected one of {', '.join(LAYOUTS)}")
    chosen = model.pipeline(shape, nodes) if layout == "pipeline" else model.replicas(shape, nodes)
    return model.forecast(shape, chosen, costs, cluster)


def rows(measured: Measured, batch: int = BATCH) -> Iterator[tuple[str, str, str, dict[int, Forecast]]]:
    """Network, layout, link, and what each number of nodes gives."""
    for network in NETWORKS.values():
        for layout in LAYOUTS:
            for link, speed in LINKS.items():
                found = {nodes: forecast(measured, network, layout, nodes, speed, batch) for nodes in NODES}
                yield network, layout, link, found


def table(measured: Measured, batch: int = BATCH) -> str:
    """Markdown: samples a second, and what limits them where learning has less than half of the nodes' time."""
    lines = [f"| network, layout, Gb/s | {' | '.join(map(str, NODES))} |", "|---" * (1 + len(NODES)) + "|"]
    lines += [
        f"| {network}, {layout}, {link} | {' | '.join(map(_cell, found.values()))} |"
        for network, layout, link, found in rows(measured, batch)
    ]
    origin = f"Costs: commit `{measured.origin.get('commit')}`, {measured.origin.get('measured')}. What limits:"
    return "\n".join([*lines, "", origin, "", *(f"- {each}" for each in reading(measured, batch))])


def _cell(found: Forecast) -> str:
    limit = "" if found.limit == "compute" else f" {found.limit}"
    shape = (
        ""
        if found.layout.replicas == 1 or len(found.layout.sizes) == 1
        else (f" ({found.layout.replicas}×{len(found.layout.sizes)})")
    )
    return f"{float(f'{found.samples_per_s:.3g}'):,.0f}{shape}{limit}"


def reading(measured: Measured, batch: int = BATCH) -> Iterator[str]:
    """Where each limit begins, in words. Links for which that is the same are together."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for network, layout, link, found in rows(measured, batch):
        begins: dict[str, int] = {}
        for nodes, each in found.items():
            begins.setdefault(each.limit, nodes)
        begins.pop("compute", None)
        limits = ", ".join(f"{_WORDS[limit]} from {nodes} nodes" for limit, nodes in begins.items())
        said.setdefault((network, layout, limits or "none"), []).append(link)
    for (network, layout, limits), links in said.items():
        yield f"{network}, {layout}, {', '.join(links)} Gb/s: {limits}"


def draw(path: Path, measured: Measured, batch: int = BATCH) -> None:
    """Writes a PNG. Raises ImportError where matplotlib is missing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Predicted from measurements on one machine; microbatches of {batch}")
    styles: Mapping[str, str] = {"1": ":", "10": "--", "100": "-"}
    for axes, (kind, network) in zip(figure.subplots(1, len(NETWORKS)), NETWORKS.items(), strict=True):
        for name, layout, link, found in rows(measured, batch):
            if name == network:
                rates = [each.samples_per_s for each in found.values()]
                color = f"C{LAYOUTS.index(layout)}"
                axes.plot(NODES, rates, styles[link], color=color, marker=".", label=f"{layout}, {link} Gb/s")
        axes.axhline(measured.journal_samples_per_s, color="black", linewidth=0.8, label="one journal")
        axes.set(title=f"{kind}: {network}", xlabel="nodes", ylabel="samples/s", xscale="log", yscale="log")
        axes.set_xticks(NODES, map(str, NODES))
        axes.grid(visible=True, which="both", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, format="png", dpi=120)
