"""`tools/bench`: one command for each measurement. Those of errors are in `experiments.py`."""

import sys
from dataclasses import replace
from pathlib import Path

import click
import torch

from tools.benchmarks import (
    checkpoint,
    command,
    compare,
    experiments,  # noqa: F401 - its commands belong to the group, too
    ingest,
    learn,
    predict,
    recovery,
    results,
    security,
    viewers,
)
from tools.benchmarks.cluster import forecast
from tools.benchmarks.cluster import measured as cluster_measured
from tools.benchmarks.device import figures as device

main = command.main


@main.command("learn")
@command.as_json
@command.rounds
def learn_command(as_json: bool, rounds: int) -> None:
    """Learning speed, beside the serial reference, matrix products, the label-in-pixels method, backpropagation."""
    learn.run(command.report(), rounds)


@main.command("ingest")
@click.option("--long", is_flag=True, help="Also measure memory between sample 60,000 and 600,000.")
@command.as_json
@command.rounds
def ingest_command(long: bool, as_json: bool, rounds: int) -> None:
    """Acked and learned samples per second, from a producer in another process."""
    ingest.run(command.report(settings=ingest.SETTINGS), rounds, long=long)


@main.command("checkpoint")
@command.as_json
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=9,
    show_default=True,
    help="Number of pairs: with and without a checkpoint.",
)
def checkpoint_command(as_json: bool, rounds: int) -> None:
    """Learning speed of 784-2000x4 while a checkpoint is written."""
    checkpoint.run(command.report(), rounds)


@main.command("recovery")
@command.as_json
@command.rounds
def recovery_command(as_json: bool, rounds: int) -> None:
    """Time from kill -9, with 60,000 samples after the last checkpoint, until ready and until all are learned."""
    recovery.run(command.report(settings=recovery.SETTINGS), rounds)


@main.command("predict")
@command.as_json
@command.rounds
def predict_command(as_json: bool, rounds: int) -> None:
    """Latency of predictions at the client, idle and while learning at full speed."""
    predict.run(command.report(settings=predict.SETTINGS), rounds)


@main.command("page")
@command.as_json
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of times that the page is opened, and a daemon killed.",
)
def page_command(as_json: bool, rounds: int) -> None:
    """Time until the page is painted, has figures and charts, and until it says that the daemon is lost."""
    from tools.benchmarks import page  # needs Playwright, which a machine for `tools/gpu` may lack

    page.run(command.report(settings=page.SETTINGS), rounds)


@main.command("security")
@command.as_json
@command.rounds
def security_command(as_json: bool, rounds: int) -> None:
    """Acked samples per second with encryption (CURVE), beside the same without."""
    security.run(command.report(settings=security.SETTINGS), rounds)


@main.command("viewers")
@command.as_json
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Number of pairs: with and without readers.",
)
def viewers_command(as_json: bool, rounds: int) -> None:
    """What ten readers of the live feed cost; latency of /metrics while learning; size of a history of 30 days."""
    viewers.run(command.report(settings=viewers.SETTINGS), rounds)


@main.command("cluster")
@click.option(
    "--network",
    "networks",
    multiple=True,
    type=click.Choice(["784-512-512", "784-2000x4"]),
    help="Network; default: both.",
)
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(1), help="Microbatch size; default: 256 and 1024."
)
@command.rounds
@click.option("--kills", default=3, show_default=True, help="Actors and raylets that are killed; 0: none.")
@click.option(
    "--share", default=1.0, show_default=True, help="Share of the work of each measurement, for a quick look."
)
@click.option("--measured", type=click.Path(path_type=Path), metavar="FILE", help="Write what the model needs.")
@command.as_json
def cluster_command(
    networks: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    kills: int,
    share: float,
    measured: Path | None,
    as_json: bool,
) -> None:
    """Stages in a Ray cluster of several nodes on this machine, beside threads: speed, costs, recovery.

    `tools/bench forecast` says from these costs what more machines would give.
    """
    from tools.benchmarks.cluster import figures  # needs Ray

    options = figures.Options(rounds=rounds, kills=kills, share=share, write=measured)
    options = replace(options, networks=networks or options.networks, batches=batches or options.batches)
    figures.run(command.report(), options)


@main.command("forecast")
@click.option("--batch", default=forecast.BATCH, show_default=True, help="Microbatch size.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it into this PNG.")
@click.option(
    "--measured",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    default=cluster_measured.FILE,
    help="What `tools/bench cluster --measured` wrote; default: the numbers that are kept.",
)
def forecast_command(batch: int, plot: Path | None, measured: Path) -> None:
    """What stages on 1 to 64 nodes would learn, predicted from measured costs: a table and what limits it."""
    found = cluster_measured.load(measured)
    click.echo(forecast.table(found, batch))
    if plot is not None:
        forecast.draw(plot, found, batch)


@main.command("device")
@click.option("--dry", is_flag=True, help="Run on the CPU with tiny networks, to test the benchmark itself.")
@click.option("--seconds", default=0.4, show_default=True, help="Approximate length of one measurement.")
@click.option("--limit", default=180.0, show_default=True, help="Seconds after which no further network is started.")
@command.as_json
def device_command(dry: bool, seconds: float, limit: float, as_json: bool) -> None:
    """Learning speed on a CUDA device, with different arrangements of streams. `tools/gpu` runs this."""
    if not dry and not torch.cuda.is_available():
        raise click.ClickException("torch finds no CUDA device; --dry runs on the CPU with tiny networks")
    name = "none: a dry run on the CPU" if dry else torch.cuda.get_device_name()
    good = device.run(command.report(device=name), dry=dry, seconds=seconds, limit_s=limit)
    sys.exit(0 if good else 1)


@main.command("record", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--file",
    type=click.Path(exists=True, path_type=Path),
    help="File of rows that `tools/bench` or `tools/gpu` printed.",
)
@click.argument("command", nargs=-1)
def record_command(file: Path | None, command: tuple[str, ...]) -> None:
    """Run COMMAND, store the rows that it prints with --json, and regenerate the tables.

    Example: tools/bench record tools/crash --kills 100 --json
    """
    if bool(command) == bool(file):
        raise click.UsageError("give either COMMAND or --file")
    new = results.parse(file.read_text(encoding="utf-8"), str(file)) if file else results.run(command)
    results.save(results.merge(results.load(), new))
    _write_tables()


@main.command("report")
@click.option("--write", is_flag=True, help="Write the tables into tools/README.md.")
def report_command(write: bool) -> None:
    """Generate the tables of tools/README.md from results.jsonl; without --write, print the page."""
    if write:
        _write_tables()
    else:
        click.echo(results.render(results.README.read_text(encoding="utf-8"), results.load()), nl=False)


def _write_tables() -> None:
    text = results.README.read_text(encoding="utf-8")
    results.README.write_text(results.render(text, results.load()), encoding="utf-8")


@main.command("compare")
@click.argument("base", metavar="COMMIT")
@click.option(
    "--pairs", type=click.IntRange(1), default=20, show_default=True, help="Number of pairs of measurements."
)
@click.option("--what", default=",".join(compare.WHAT), show_default=True, help="Measurements, separated by commas.")
@click.option("--seconds", default=3.0, show_default=True, help="Approximate length of one measurement.")
@command.as_json
def compare_command(base: str, pairs: int, what: str, seconds: float, as_json: bool) -> None:
    """Compare the speed of this tree with that of COMMIT; exit code 1 if it is slower.

    Each pair gives the ratio of this tree's speed to that of COMMIT. The result is the median ratio with its 95 %
    bootstrap interval. A measurement passes if the upper end of the interval is at least 0.98.
    """
    names = what.split(",")
    unknown = set(names) - set(compare.WHAT)
    if unknown:
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))}; known are {', '.join(compare.WHAT)}", param_hint="--what"
        )
    passed = compare.run(command.report(compare.SEEDS), base, pairs=pairs, what=names, seconds=seconds)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
