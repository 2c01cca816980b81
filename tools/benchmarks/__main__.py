"""`tools/bench`: one command a measurement."""

from pathlib import Path

import click
import torch

from ffstream.data import load
from tools.benchmarks import accuracy, checkpoint, ingest, learn, predict, recovery, security
from tools.benchmarks.report import Report

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_rounds = click.option("--rounds", default=3, show_default=True, help="Repetitions; medians are of these.")


@click.group()
def main() -> None:
    """Measure ffstream, each figure beside its peer in the same run."""
    torch.set_num_threads(1)


@main.command("learn")
@_json
@_rounds
def learn_command(as_json: bool, rounds: int) -> None:
    """Learning speed: serial reference, the machine's matrix products, the seed method, backpropagation."""
    learn.run(Report(as_json), rounds)


@main.command("accuracy")
@click.argument("dataset", default="embedded")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Folder of the data set.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--set", "settings", multiple=True, help="An option of the daemon, as in `ffstream serve`.")
@click.option("--seed-method", "updates", default=0, help="Also run the seed method for so many full-batch updates.")
@_json
def accuracy_command(
    dataset: str, data: Path | None, seeds: int, settings: tuple[str, ...], updates: int, as_json: bool
) -> None:
    """Test and prequential error of one pass through the daemon."""
    report, loaded = Report(as_json), load(dataset, data)
    accuracy.run(report, loaded, seeds, settings)
    if updates:
        accuracy.seed_method(report, loaded, updates)


@main.command("ingest")
@click.option("--long", is_flag=True, help="Also memory between sample 60,000 and 600,000.")
@_json
@_rounds
def ingest_command(long: bool, as_json: bool, rounds: int) -> None:
    """Acked and learned samples a second, from a producer in another process; the daemon's memory."""
    ingest.run(Report(as_json), rounds, long=long)


@main.command("checkpoint")
@_json
@click.option("--rounds", default=9, show_default=True, help="Pairs of spans; medians are of these.")
def checkpoint_command(as_json: bool, rounds: int) -> None:
    """Learning speed while a checkpoint of 784-2000x4 is taken and written."""
    checkpoint.run(Report(as_json), rounds)


@main.command("recovery")
@_json
@_rounds
def recovery_command(as_json: bool, rounds: int) -> None:
    """From kill -9 with 60,000 samples behind the last checkpoint to ready, and to all of them learned."""
    recovery.run(Report(as_json), rounds)


@main.command("predict")
@_json
@_rounds
def predict_command(as_json: bool, rounds: int) -> None:
    """Latency of predictions at the client, idle and while learning at full speed."""
    predict.run(Report(as_json), rounds)


@main.command("security")
@_json
@_rounds
def security_command(as_json: bool, rounds: int) -> None:
    """What encryption costs: acked samples a second with CURVE, beside the same without."""
    security.run(Report(as_json), rounds)


if __name__ == "__main__":
    main()
