"""`ffstream replay`: a producer that streams a data set."""

import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from ffstream.cli import options
from ffstream.cli.compatibility import check_labels, fitted, shifted, suspicions
from ffstream.cli.datasets import load_split
from ffstream.cli.output import print_json, progress_bar
from ffstream.cli.resuming import SPAN, Place, fill_gaps, fingerprint, place
from ffstream.cli.streaming import ErrorPoller, Interrupt, Sender
from ffstream.client import CurveKeys, Producer
from ffstream.client.delivery import Rejected
from ffstream.data import DRIFTS, Order, Split, SplitName, batches
from ffstream.errors import DeadlineExceeded, Reason
from ffstream.wire.messages import DEFAULT_CONTROL, DEFAULT_LEARN

_INTERRUPTED = 130  # exit code after Ctrl-C


@click.command(
    epilog=options.example(
        "ffstream replay embedded", "ffstream replay mnist --to tcp://trainer:5757 --rate 500 --client tuesday"
    )
)
@options.dataset
@options.data_folder
@options.split("train")
@click.option("--to", "endpoint", metavar="URL", default=DEFAULT_LEARN, show_default=True, help="Learn socket.")
@click.option("--rate", type=click.FloatRange(min=0), help="Samples a second. Default, or 0: as fast as possible.")
@click.option("--limit", type=click.IntRange(min=1), help="Number of samples over all passes.")
@click.option("--passes", type=click.IntRange(min=1), default=1, show_default=True, help="Passes over the data.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Random seed of the shuffles and the drift.",
)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples in a message.")
@click.option(
    "--client",
    metavar="NAME",
    help="Name under which the daemon remembers what was sent. The same command continues where an earlier replay "
    "with this name has stopped. Default: a new name.",
)
@click.option("--restart", is_flag=True, help="With --client: begin again with the first sample.")
@click.option(
    "--order",
    type=click.Choice(get_args(Order)),
    help="Order of the samples. Default: shuffled; with --as text as_is, the order of the text.",
)
@options.as_text
@options.label_offset
@click.option(
    "--drift",
    type=click.Choice(list(DRIFTS)),
    help="Change the concept at --drift-at. label_permutation: every class gets the label of another one.",
)
@click.option(
    "--drift-at", metavar="N", type=click.IntRange(min=0), help="Number of samples in the stream before --drift."
)
@click.option(
    "--label-fraction",
    metavar="F",
    type=click.FloatRange(0, 1),
    default=1.0,
    help="Share of the samples that are sent with their label; the others are sent without one. Default: 1.",
)
@click.option(
    "--control",
    "control_endpoint",
    metavar="URL",
    default=DEFAULT_CONTROL,
    show_default=True,
    help="Control socket, used to show the prequential error.",
)
@options.as_json
@options.keys
@click.pass_context
def replay(
    context: click.Context,
    dataset: str,
    data: Path | None,
    split: SplitName,
    endpoint: str,
    rate: float | None,
    limit: int | None,
    passes: int,
    seed: int,
    batch: int,
    client: str | None,
    restart: bool,
    order: Order | None,
    window: int | None,
    label_offset: int,
    drift: str | None,
    drift_at: int | None,
    label_fraction: float,
    control_endpoint: str,
    as_json: bool,
    keys: CurveKeys | None,
) -> None:
    """Stream the training split of a data set to a daemon, shuffled, or a text in its order.

    NAME is a data set that is downloaded (mnist, fashion-mnist, kmnist, qmnist, emnist-balanced, emnist-digits, …,
    cifar-10) or part of the package (embedded). DIR or FILE is a folder or an archive (zip, tar, tar.gz) with IDX
    files, with images by class (train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png), or with CIFAR-10's binary
    files.

    The whole data set is checked before the first sample is sent. In the JSON line, `duplicates` are samples that
    were sent again because their answer was overdue; none is learned twice. `resumed` are samples that an earlier
    replay with the same --client has sent; `sent` does not count them. Exit code 0 means that all samples sent are
    acked.
    """
    if (drift is None) != (drift_at is None):
        raise click.UsageError("--drift and --drift-at must be given together")
    if restart and client is None:
        raise click.UsageError("--restart needs --client")
    train = shifted(load_split(dataset, data, split, window, quiet=as_json), label_offset)
    order = order or ("shuffled" if window is None else "as_is")
    classes = max(2, int(train.labels.max()) + 1)
    change = None if drift is None else DRIFTS[drift](drift_at, classes=classes, seed=seed)
    total = min(passes * len(train), limit or passes * len(train))
    with Producer(endpoint, client=client, on_waiting=_print_reason, keys=keys) as producer:
        train = fitted(train, producer.welcome)
        check_labels(train, producer.welcome, label_offset, label_fraction)
        daemon_next = producer.daemon_next
    _print_warnings(train, label_offset, drift_at, total)
    order_options: dict[str, Any] = {"passes": passes, "seed": seed, "limit": limit, "order": order}
    stream = partial(batches, train, batch, **order_options, drift=change, label_fraction=label_fraction)
    start: Place | None = None
    if client is not None:
        identity: dict[str, Any] = {
            "batch": batch,
            "seed": seed,
            "order": order,
            "drift": drift,
            "drift_at": drift_at,
        }
        if label_fraction < 1:  # a stream with all labels is identified as before this option existed
            identity["label_fraction"] = label_fraction
        start = place(client, daemon_next, fingerprint(train, identity), restart=restart)
    position = start.position if start else 0
    resumed = min(total, position * batch)
    if client is not None and start is not None and position:
        click.echo(f"resuming {client}: {resumed:,} of {total:,} samples were sent before", err=True)
        fill_gaps(endpoint, client, keys, start, stream(skip=max(0, position - SPAN)))
    rejected: list[Rejected] = []
    late: DeadlineExceeded | None = None
    arguments: dict[str, Any] = {"start_at": start.n, "window_messages": SPAN} if start else {}
    arguments |= {"client": client, "on_rejected": rejected.append, "on_waiting": _print_reason, "keys": keys}
    with (
        closing(Producer(endpoint, **arguments)) as producer,
        Interrupt() as interrupt,
        progress_bar("rate", "error", quiet=as_json) as bar,
        ErrorPoller(control_endpoint, keys, enabled=not bar.disable) as error,
    ):
        task = bar.add_task(f"replaying {dataset}", total=total - resumed, rate="", error="")
        sender = Sender(producer, interrupt, rate, SPAN if start else None)
        try:
            sender.run(stream(skip=position), bar, task, error)
        except DeadlineExceeded as deadline:
            late = deadline
        seconds = time.monotonic() - sender.started
        result = {**_result(producer, seconds), "resumed": resumed}
    _report(result, rejected, as_json)
    if late is not None:
        raise late
    if interrupt.raised:
        if client is not None:
            click.echo("run the same command to continue; --restart begins again", err=True)
        context.exit(_INTERRUPTED)
    if result["acked"] < result["sent"]:
        context.exit(1)


def _print_warnings(train: Split, label_offset: int, drift_at: int | None, total: int) -> None:
    warnings = suspicions(train, label_offset)
    if drift_at is not None and drift_at >= total:
        warnings.append(f"--drift-at {drift_at:,} is after the last of {total:,} samples: there is no drift")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _print_reason(reason: Reason) -> None:
    """Prints a new reason to wait on stderr. The bar shows the current one."""
    hint = f"; {reason.hint}" if reason.hint else ""
    click.echo(f"waiting: {reason.message} ({reason.code}){hint}", err=True)


def _result(producer: Producer, seconds: float) -> dict[str, Any]:
    counts = producer.counts
    return {
        "sent": counts.sent,
        "acked": counts.acked,
        "duplicates": counts.resent,
        "rejected": counts.rejected,
        "seconds": seconds,
        "samples_per_second": counts.acked / seconds,
    }


def _report(result: dict[str, Any], rejected: list[Rejected], as_json: bool) -> None:
    if rejected:
        first = rejected[0]
        click.echo(f"{result['rejected']} samples were rejected, the first: {first.message} [{first.code}]", err=True)
        if first.hint:
            click.echo(f"hint: {first.hint}", err=True)
    if as_json:
        print_json(result)
    else:
        click.echo(
            "{acked:,} of {sent:,} samples acked in {seconds:.1f} s, {samples_per_second:,.0f}/s; "
            "{duplicates:,} sent again, {rejected:,} rejected".format(**result)
        )
