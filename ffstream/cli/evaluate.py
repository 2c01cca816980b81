"""`ffstream evaluate`: measures error and latency on a split, as a client sees them."""

import time
from pathlib import Path

import click
import numpy as np

from ffstream.cli import options
from ffstream.cli.compatibility import fitted, shifted
from ffstream.cli.datasets import load_split
from ffstream.cli.output import print_json, progress_bar
from ffstream.client import CurveKeys, Predictor
from ffstream.data import Split, SplitName
from ffstream.wire.messages import DEFAULT_PREDICT


@click.command(epilog=options.example("ffstream evaluate embedded --limit 500"))
@options.dataset
@options.data_folder
@options.split("test")
@click.option("--at", "endpoint", metavar="URL", default=DEFAULT_PREDICT, show_default=True, help="Predict socket.")
@click.option("--limit", type=click.IntRange(min=1), help="Number of images. Default: the whole split.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Images in a query. Latencies are those of queries: use 1 to measure single images.",
)
@options.label_offset
@options.timeout(10.0)
@options.as_json
@options.keys
def evaluate(
    dataset: str,
    data: Path | None,
    split: SplitName,
    endpoint: str,
    limit: int | None,
    batch: int,
    label_offset: int,
    timeout_s: float,
    as_json: bool,
    keys: CurveKeys | None,
) -> None:
    """Measure a daemon's error and latency on a split. Sends one query after the other.

    `ffstream replay --help` says what NAME, DIR and FILE may be.
    """
    test = shifted(load_split(dataset, data, split, quiet=as_json), label_offset)
    n = min(len(test), limit or len(test))
    with Predictor(endpoint, keys=keys) as predictor:
        welcome = predictor.hello(timeout_s)
        test = fitted(test, welcome)
        _warn_about_labels(test, welcome.labels)
        wrong, seconds = _ask(predictor, test, n, batch, timeout_s, quiet=as_json)
    p50_ms, p99_ms = (float(np.percentile(seconds, which)) * 1e3 for which in (50, 99))
    if as_json:
        print_json({"n": n, "error": wrong / n, "p50_ms": p50_ms, "p99_ms": p99_ms, "batch": batch})
    else:
        images = "1 image" if batch == 1 else f"{batch:,} images"
        latency = f"p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms"
        click.echo(f"error {wrong / n:.2%} of {n:,} images; a query of {images} takes {latency}")


def _ask(
    predictor: Predictor, test: Split, n: int, batch: int, timeout_s: float, *, quiet: bool
) -> tuple[int, list[float]]:
    """The number of wrong labels, and the duration of each query in seconds."""
    wrong = 0
    seconds = []
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("evaluating", total=n)
        for first in range(0, n, batch):
            window = slice(first, min(first + batch, n))
            start = time.perf_counter()
            answer = predictor.predict(test.images[window], timeout_s)
            seconds.append(time.perf_counter() - start)
            wrong += int((answer.labels != test.labels[window]).sum())
            bar.update(task, completed=window.stop)
    return wrong, seconds


def _warn_about_labels(test: Split, known: int) -> None:
    low, high = int(test.labels.min()), int(test.labels.max())
    if high >= known:
        click.echo(
            f"warning: the labels are {low} to {high}, the daemon knows 0 to {known - 1}: others count as errors. "
            "Use the --label-offset of the replay?",
            err=True,
        )
