"""`ffstream replay`: a producer that streams a dataset."""

import signal
import threading
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self, get_args

import click
from rich.markup import escape
from rich.progress import Progress, TaskID

from ffstream.cli import options
from ffstream.cli.compatibility import check_labels, fitted, shifted, suspicions
from ffstream.cli.datasets import load_dataset
from ffstream.cli.output import print_json, progress_bar
from ffstream.cli.resuming import SPAN, Batches, Place, fingerprint, make_whole, place
from ffstream.client import Control, CurveKeys, Producer
from ffstream.client.delivery import Rejected
from ffstream.data import DRIFTS, Order, UInt8Array, batches
from ffstream.errors import DeadlineExceeded, FFStreamError, Reason, RequestRefused, Unauthorized
from ffstream.wire.messages import DEFAULT_CONTROL, DEFAULT_LEARN

_PATIENCE_S = 60.0  # a daemon that restarts is back by then
_LAST_FLUSH_S = 5.0  # after Ctrl-C
_LOOK_S = 0.1  # between two looks at whether Ctrl-C was pressed
_POLL_S = 1.0
_INTERRUPTED = 130


class Interrupt:
    """While entered, Ctrl-C sets `raised`; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.raised = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._raise)
        return self

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)


class ErrorWatch:
    """Asks the daemon each second how well it predicts what it is about to learn, if `wanted`. Thread `ff-watch`."""

    def __init__(self, endpoint: str, keys: CurveKeys | None, *, wanted: bool) -> None:
        self.text = ""
        self._wanted = wanted
        self._endpoint = endpoint
        self._keys = keys
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ff-watch", daemon=True)

    def __enter__(self) -> Self:
        if self._wanted:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._wanted:
            self._thread.join(2 * _POLL_S)

    def _run(self) -> None:
        with Control(self._endpoint, keys=self._keys) as control:
            while not self._ended.wait(_POLL_S):
                try:
                    status = control.status(_POLL_S)
                    error, window = status["prequential_error"], status["prequential_window_samples"]
                    self.text = "" if error is None else f"prequential error {error:.2%} of the last {window:,}"
                except RequestRefused as refusal:
                    if refusal.remote_code == Unauthorized.code:
                        return  # a producer's key need not open the control socket
                    self.text = ""
                except FFStreamError:
                    self.text = ""  # a bar without a figure is still a bar


class Replay:
    """Sends batches through a producer, at a rate if there is one."""

    def __init__(self, producer: Producer, interrupt: Interrupt, rate: float | None, span: int | None = None) -> None:
        self._producer = producer
        self._full_since: float | None = None
        self._span = span  # messages from the lowest unanswered one to the newest, at most
        self._interrupt = interrupt
        self._rate = rate
        self.started = time.monotonic()

    def run(self, stream: Batches, bar: Progress, task: TaskID, watch: ErrorWatch) -> None:
        """Returns when everything is answered, or soon after Ctrl-C. Raises DeadlineExceeded."""
        counts = self._producer.counts
        self.started = time.monotonic()
        for images, labels in stream:
            self._await_turn(counts.sent)
            while not self._interrupt.raised:
                is_sent = self._send(images, labels)
                self._show(bar, task, watch)
                if is_sent:
                    break
            if self._interrupt.raised:
                break
        self._producer.flush(_LAST_FLUSH_S if self._interrupt.raised else _PATIENCE_S)
        bar.update(task, completed=counts.acked)

    def _show(self, bar: Progress, task: TaskID, watch: ErrorWatch) -> None:
        acked = self._producer.counts.acked
        rate = acked / max(time.monotonic() - self.started, 1e-9)
        waiting = self._producer.waiting
        text = watch.text if waiting is None else f"waiting: {waiting.message} ({waiting.code})"
        bar.update(task, completed=acked, rate=f"{rate:,.0f}/s", error=escape(text))

    def _await_turn(self, sent: int) -> None:
        """Turns are counted from the start, so that lateness does not add up. Reads answers meanwhile."""
        due = self.started + (sent / self._rate if self._rate else 0.0)
        while not self._interrupt.raised and (left_s := due - time.monotonic()) > 0:
            if self._producer.unanswered:
                with suppress(DeadlineExceeded):
                    self._producer.flush(min(left_s, _LOOK_S))
            else:
                time.sleep(min(left_s, _LOOK_S))

    def _send(self, images: UInt8Array, labels: UInt8Array) -> bool:
        """False if the window stays full for a moment. Raises DeadlineExceeded if it does for long."""
        try:
            if self._span and self._producer.next_n - self._producer.answered_n > self._span:
                self._producer.flush(_LOOK_S)
            self._producer.send(images, labels, _LOOK_S)
        except DeadlineExceeded:
            self._full_since = self._full_since or time.monotonic()
            if time.monotonic() - self._full_since >= _PATIENCE_S:
                raise
            return False
        self._full_since = None
        return True


@click.command()
@options.dataset
@options.data_folder
@click.option("--to", "endpoint", metavar="URL", default=DEFAULT_LEARN, show_default=True, help="Learn socket.")
@click.option("--rate", type=click.FloatRange(min=0), help="Samples a second; 0 or absent: as fast as it goes.")
@click.option("--limit", type=click.IntRange(min=1), help="Samples over all passes.")
@click.option("--passes", type=click.IntRange(min=1), default=1, show_default=True, help="Times through the data.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides the shuffles and the drift."
)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples in a message.")
@click.option(
    "--client",
    metavar="NAME",
    help="Name under which the daemon remembers what was sent: the same command again goes on where it ended, "
    "however it ended. Without it, every replay is a new one.",
)
@click.option("--restart", is_flag=True, help="With --client: begin again with the first sample.")
@click.option("--order", type=click.Choice(get_args(Order)), default="shuffled", show_default=True)
@options.label_offset
@click.option(
    "--drift",
    type=click.Choice(list(DRIFTS)),
    help="Changes the concept at --drift-at. label_permutation: every class gets the label of another one.",
)
@click.option(
    "--drift-at", metavar="N", type=click.IntRange(min=0), help="Samples of the stream before --drift begins."
)
@click.option(
    "--control",
    "control_endpoint",
    metavar="URL",
    default=DEFAULT_CONTROL,
    show_default=True,
    help="Control socket, asked for the error that the progress bar shows.",
)
@options.as_json
@options.keys
@click.pass_context
def replay(
    context: click.Context,
    dataset: str,
    data: Path | None,
    endpoint: str,
    rate: float | None,
    limit: int | None,
    passes: int,
    seed: int,
    batch: int,
    client: str | None,
    restart: bool,
    order: Order,
    label_offset: int,
    drift: str | None,
    drift_at: int | None,
    control_endpoint: str,
    as_json: bool,
    keys: CurveKeys | None,
) -> None:
    """Stream a training split to a daemon.

    The whole data set is checked before the first sample is sent. In the JSON line, `duplicates` are samples that
    were sent again because no answer had come; none is learned twice. `resumed` are samples that an earlier replay
    under the same --client had sent; `sent` does not count them. Exit code 0 means that every sample sent is acked.
    """
    if (drift is None) != (drift_at is None):
        raise click.UsageError("--drift and --drift-at belong together")
    if restart and client is None:
        raise click.UsageError("--restart begins a named replay again: it needs --client")
    train = shifted(load_dataset(dataset, data, quiet=as_json).train, label_offset)
    classes = max(2, int(train.labels.max()) + 1)
    change = None if drift is None else DRIFTS[drift](drift_at, classes=classes, seed=seed)
    total = min(passes * len(train), limit or passes * len(train))
    with Producer(endpoint, client=client, on_waiting=_tell, keys=keys) as asking:
        train = fitted(train, asking.welcome)
        check_labels(train, asking.welcome, label_offset)
        daemon_next = asking.daemon_next
    stream = partial(batches, train, batch, passes=passes, seed=seed, limit=limit, order=order, drift=change)
    warnings = suspicions(train, label_offset)
    if drift_at is not None and drift_at >= total:
        warnings.append(f"--drift-at {drift_at:,} is behind the last of {total:,} samples: nothing drifts")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    start: Place | None = None
    if client is not None:
        decides = {"batch": batch, "seed": seed, "order": order, "drift": drift, "drift_at": drift_at}
        start = place(client, daemon_next, fingerprint(train, decides), restart=restart)
    position = start.position if start else 0
    resumed = min(total, position * batch)
    if client is not None and start is not None and position:
        click.echo(f"resuming {client}: {resumed:,} of {total:,} samples were sent before", err=True)
        make_whole(endpoint, client, keys, start, stream(skip=max(0, position - SPAN)))
    refused: list[Rejected] = []
    late: DeadlineExceeded | None = None
    wanted: dict[str, Any] = {"start_at": start.n, "window_messages": SPAN} if start else {}
    wanted |= {"client": client, "on_rejected": refused.append, "on_waiting": _tell, "keys": keys}
    with (
        closing(Producer(endpoint, **wanted)) as producer,
        Interrupt() as interrupt,
        progress_bar("rate", "error", quiet=as_json) as bar,
        ErrorWatch(control_endpoint, keys, wanted=not bar.disable) as watch,
    ):
        task = bar.add_task(f"replaying {dataset}", total=total - resumed, rate="", error="")
        run = Replay(producer, interrupt, rate, SPAN if start else None)
        try:
            run.run(stream(skip=position), bar, task, watch)
        except DeadlineExceeded as error:
            late = error
        seconds = time.monotonic() - run.started
        result = {**_result(producer, seconds), "resumed": resumed}
    _report(result, refused, as_json)
    if late is not None:
        raise late
    if interrupt.raised:
        if client is not None:
            click.echo("the same command goes on from there; --restart begins again", err=True)
        context.exit(_INTERRUPTED)
    if result["acked"] < result["sent"]:
        context.exit(1)


def _tell(reason: Reason) -> None:
    """Prints a new reason to wait on stderr, once: the bar shows the one of the moment."""
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


def _report(result: dict[str, Any], refused: list[Rejected], as_json: bool) -> None:
    if refused:
        first = refused[0]
        click.echo(f"{result['rejected']} samples were refused, first: {first.message} [{first.code}]", err=True)
        if first.hint:
            click.echo(f"hint: {first.hint}", err=True)
    if as_json:
        print_json(result)
    else:
        click.echo(
            "{acked:,} of {sent:,} samples acked in {seconds:.1f} s, {samples_per_second:,.0f}/s; "
            "{duplicates:,} sent again, {rejected:,} rejected".format(**result)
        )
