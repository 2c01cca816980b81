"""`ffstream evaluate`: measures error and latency on a split, as a client sees them."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from ffstream.cli import options
from ffstream.cli.compatibility import check_labels, fitted, shifted
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
@options.as_text
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
    window: int | None,
    label_offset: int,
    timeout_s: float,
    as_json: bool,
    keys: CurveKeys | None,
) -> None:
    """Measure a daemon's error and latency on a split. Sends one query after the other.

    `ffstream replay --help` says what NAME, DIR and FILE may be. With --as text it also measures bits per character:
    the mean of -log2 p, where p is the probability of the right symbol, the softmax of the daemon's scores.
    """
    test = shifted(load_split(dataset, data, split, window, quiet=as_json), label_offset)
    n = min(len(test), limit or len(test))
    with Predictor(endpoint, keys=keys) as predictor:
        welcome = predictor.hello(timeout_s)
        test = fitted(test, welcome)
        if window is None:
            _warn_about_labels(test, welcome.labels)
        else:
            check_labels(test, welcome, label_offset)
        answers = _ask(predictor, test, n, batch, timeout_s, quiet=as_json)
    result: dict[str, Any] = {"n": n, "error": answers.wrong / n}
    if window is not None:
        result["bits_per_character"] = answers.bits / n
    p50_ms, p99_ms = (float(np.percentile(answers.seconds, which)) * 1e3 for which in (50, 99))
    if as_json:
        print_json(result | {"p50_ms": p50_ms, "p99_ms": p99_ms, "batch": batch})
        return
    images = "1 image" if batch == 1 else f"{batch:,} images"
    latency = f"p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms"
    bits = "" if window is None else f", {result['bits_per_character']:.3f} bits per character"
    click.echo(f"error {result['error']:.2%} of {n:,} images{bits}; a query of {images} takes {latency}")


@dataclass
class _Answers:
    """The number of wrong labels, Σ -log2 p over the right ones, and the duration of each query in seconds."""

    wrong: int = 0
    bits: float = 0.0
    seconds: list[float] = field(default_factory=list)


def _ask(predictor: Predictor, test: Split, n: int, batch: int, timeout_s: float, *, quiet: bool) -> _Answers:
    answers = _Answers()
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("evaluating", total=n)
        for first in range(0, n, batch):
            window = slice(first, min(first + batch, n))
            start = time.perf_counter()
            answer = predictor.predict(test.images[window], timeout_s)
            answers.seconds.append(time.perf_counter() - start)
            answers.wrong += int((answer.labels != test.labels[window]).sum())
            answers.bits += _bits(answer.goodness, test.labels[window])
            bar.update(task, completed=window.stop)
    return answers


def _bits(scores_BL: npt.NDArray[np.float32], labels_B: npt.NDArray[np.uint8]) -> float:
    """Σ -log2 softmax(scores)[label]; infinite if a label has no score."""
    if labels_B.max() >= scores_BL.shape[1]:
        return math.inf
    own_B = scores_BL[np.arange(len(labels_B)), labels_B].astype(np.float64)
    return float((np.logaddexp.reduce(scores_BL.astype(np.float64), 1) - own_B).sum() / math.log(2))


def _warn_about_labels(test: Split, known: int) -> None:
    low, high = int(test.labels.min()), int(test.labels.max())
    if high >= known:
        click.echo(
            f"warning: the labels are {low} to {high}, the daemon knows 0 to {known - 1}: others count as errors. "
            "Use the --label-offset of the replay?",
            err=True,
        )
