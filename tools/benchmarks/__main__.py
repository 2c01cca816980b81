"""`tools/bench`: one command for each measurement."""

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click
import numpy as np
import torch

from ffstream.cli.options import DEFAULT_WINDOW
from ffstream.data import load, load_text
from ffstream.data.text import CORPUS
from ffstream.errors import FFStreamError
from ffstream.ff.presets import PRESETS
from ffstream.ff.presets import recipe as make_recipe
from tools.benchmarks import (
    checkpoint,
    combinations,
    compare,
    device,
    dreams,
    drift,
    hardware,
    ingest,
    learn,
    phases,
    predict,
    questions,
    recovery,
    recurrent,
    results,
    security,
    serial,
    viewers,
)
from tools.benchmarks.accuracy import figures as accuracy
from tools.benchmarks.accuracy.learners import splits_of
from tools.benchmarks.accuracy.through_daemon import SETTINGS as PROOF_SETTINGS
from tools.benchmarks.accuracy.tuning import settings_of
from tools.benchmarks.cluster import forecast
from tools.benchmarks.cluster import measured as cluster_measured
from tools.benchmarks.report import Report

_NO_INFLUENCE = ("runs", "plot", "measured")  # options that only name files
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
_rounds = click.option("--rounds", default=3, show_default=True, help="Number of repetitions.")


@click.group()
def main() -> None:
    """Measure ffstream; each figure beside a peer that is measured in the same run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGTERM, _exit)  # so that daemons and folders are cleaned up


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _report(seeds: Sequence[int] = (0,), settings: Sequence[str] = (), device: str | None = None) -> Report:
    """The report of the command that is running. `settings` are those of the daemon, besides those from `--set`.

    The default seed is the one that makes weights and samples in all measurements.
    """
    options = dict(click.get_current_context().params)
    as_json = options.pop("as_json")
    for option in _NO_INFLUENCE:
        options.pop(option, None)
    command = shlex.join(influential(sys.argv[1:]))
    # Recorded rows are committed, and a path of this machine means nothing on another.
    given = {name: "DIR" if _is_path(value) else value for name, value in options.items()}
    for path in filter(_is_path, options.values()):
        command = command.replace(shlex.quote(str(path)), "DIR")
    if settings:
        given["daemon"] = list(settings)
    return Report(as_json, f"tools/bench {command}", given, seeds, device)


def _is_path(value: object) -> bool:
    """Whether an option names a place on this machine. A data set may be named by its place, too."""
    return isinstance(value, Path) or (isinstance(value, str) and "/" in value and Path(value).exists())


def influential(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments of the command line on which figures depend."""
    rest = iter(arguments)
    for argument in rest:
        name, separator, _ = argument.removeprefix("--").partition("=")
        if name in _NO_INFLUENCE:
            if not separator:
                next(rest, None)
        elif argument != "--json":
            yield argument


_data = click.option("--data", type=click.Path(exists=True, path_type=Path), help="Where the data set is.")
_dataset = click.option(
    "--dataset", default="embedded", show_default=True, help="Name of the data set, or its folder."
)
_validation = click.option(
    "--validation", is_flag=True, help="Hold out the last part of the training split, not the test split."
)
_settings = click.option("--set", "settings", multiple=True, help="An option of the daemon, as in `ffstream serve`.")


@main.command("learn")
@_json
@_rounds
def learn_command(as_json: bool, rounds: int) -> None:
    """Learning speed, beside the serial reference, matrix products, the label-in-pixels method, backpropagation."""
    learn.run(_report(), rounds)


@main.command("accuracy")
@click.option("--preset", default="stream", show_default=True, help="The recipe.")
@_dataset
@_data
@click.option("--passes", default=1, show_default=True, help="Passes over the training split.")
@click.option("--samples", default=0, help="End a run after about this number of samples, not after whole passes.")
@click.option("--seeds", default=3, show_default=True, help="Number of runs, with seeds 0, 1, 2, …")
@_validation
@_settings
@click.option("--label-fraction", type=click.FloatRange(0, 1), default=1.0, help="Share of samples with a label.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder of runs. What was begun there continues.")
@click.option("--every", default=0, help="Samples between two points of a run; default: a twelfth of a pass.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw learning curves into this PNG.")
@click.option("--peer/--no-peer", "with_peer", default=True, help="Also train the same shape by backpropagation.")
@click.option(
    "--through-daemon/--serial-only",
    default=None,
    help="Also send the stream of seed 0 to a daemon, which must end with the same weights. Default: with one "
    "pass over the training split.",
)
@click.option("--tune-peer", default=0, help="Choose settings of the peer by this number of trials, and do no more.")
@click.option(
    "--overlay-method",
    "updates",
    default=0,
    help="Also train with the label-in-pixels method, this number of full-batch updates.",
)
@_json
def accuracy_command(
    preset: str,
    dataset: str,
    data: Path | None,
    passes: int,
    samples: int,
    seeds: int,
    validation: bool,
    settings: tuple[str, ...],
    label_fraction: float,
    runs: Path | None,
    every: int,
    plot: Path | None,
    with_peer: bool,
    through_daemon: bool | None,
    tune_peer: int,
    updates: int,
    as_json: bool,
) -> None:
    """Error on held-out data, and before learning, of a preset and of its peer."""
    one_pass = passes == 1 and not samples
    if through_daemon and not one_pass:
        raise click.UsageError("--through-daemon needs one pass")
    proves = one_pass and not validation if through_daemon is None else through_daemon
    gpu = torch.cuda.get_device_name() if "pipeline.device=cuda" in settings else None
    report = _report(range(seeds), PROOF_SETTINGS if proves else (), gpu)
    options = accuracy.Options(
        preset=preset,
        settings=settings,
        passes=passes,
        samples=samples,
        seeds=seeds,
        validation=validation,
        every=every,
        runs=runs,
        plot=plot,
        through_daemon=proves,
        label_fraction=label_fraction,
    )
    try:
        loaded = load(dataset, data)
        if tune_peer:
            click.echo(accuracy.tune_peer(report, loaded, options, tune_peer))
            return
        peer = settings_of(preset) if with_peer else None
        accuracy.run(report, loaded, replace(options, peer=peer))
        if updates:
            accuracy.overlay_method(report, loaded, updates)
    except (accuracy.Failed, FFStreamError) as error:
        raise click.ClickException(str(error)) from error


@main.command("drift")
@click.argument("dataset", default="embedded")
@_data
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(drift.DRIFTS)), help="Kind of drift; default: all."
)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="stream", show_default=True, help="The recipe.")
@click.option("--seeds", default=3, show_default=True, help="Number of streams, with seeds 0, 1, 2, …")
@_json
def drift_command(
    dataset: str, data: Path | None, kinds: tuple[str, ...], preset: str, seeds: int, as_json: bool
) -> None:
    """Samples after a change of the concept until the error is below 10 %, beside a fresh learner."""
    drift.run(_report(range(seeds)), load(dataset, data), list(kinds or drift.DRIFTS), make_recipe(preset), seeds)


@main.command("hardware")
@_dataset
@_data
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([*hardware.DEVICES, *hardware.CHANGES]),
    help="Device; default: all.",
)
@click.option("--seeds", default=3, show_default=True, help="Number of runs, with seeds 0, 1, 2, …")
@_validation
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the errors into this PNG.")
@_json
def hardware_command(
    dataset: str,
    data: Path | None,
    kinds: tuple[str, ...],
    seeds: int,
    validation: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Error after one pass on unknown devices: learned through them, or moved there; beside backpropagation."""
    chosen = kinds or (*hardware.DEVICES, *hardware.CHANGES)
    found = hardware.run(_report(range(seeds)), load(dataset, data), chosen, seeds, validation=validation)
    compared = {kind: errors for kind, errors in found.items() if kind in hardware.DEVICES}
    if not as_json:
        click.echo(hardware.table(compared))
    if plot is not None:
        hardware.draw(plot, compared, "validation" if validation else "test")


@main.command("questions")
@click.argument("names", nargs=-1, type=click.Choice(list(questions.QUESTIONS)))
@_json
def questions_command(names: tuple[str, ...], as_json: bool) -> None:
    """The experiments about the reference article's open questions at a small size; default: all."""
    questions.run(_report(), names or tuple(questions.QUESTIONS))


@main.command("phases")
@click.argument("lengths", nargs=-1, type=click.IntRange(1))
@_dataset
@_data
@click.option("--passes", default=10.0, show_default=True, help="Passes over the training split, at most.")
@click.option("--seeds", default=1, show_default=True, help="Number of runs, with seeds 0, 1, 2, …")
@_validation
@_settings
@_json
def phases_command(
    lengths: tuple[int, ...],
    dataset: str,
    data: Path | None,
    passes: float,
    seeds: int,
    validation: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Error of the preset wake-sleep at the end of phases of LENGTHS microbatches."""
    phases.run(
        _report(range(seeds)),
        load(dataset, data),
        lengths=lengths or (16, 64, 256, 1024),
        seeds=seeds,
        passes=passes,
        validation=validation,
        settings=settings,
    )


@main.command("dreams")
@_dataset
@_data
@click.option("--only", default="", help="Only cases whose name contains this, for example sleep/store.")
@click.option("--passes", default=10.0, show_default=True, help="Passes with phases, at most; the others have one.")
@click.option("--seeds", default=3, show_default=True, help="Number of runs, with seeds 0, 1, 2, …")
@click.option("--first-seed", default=0, show_default=True, help="The first of the seeds.")
@_validation
@_settings
@_json
def dreams_command(
    dataset: str,
    data: Path | None,
    only: str,
    passes: float,
    seeds: int,
    first_seed: int,
    validation: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Error with negatives that the network dreams, beside controls; what it generates, judged by another network."""
    chosen = range(first_seed, first_seed + seeds)
    dreams.run(
        _report(chosen),
        load(dataset, data),
        only=only,
        seeds=chosen,
        passes=passes,
        validation=validation,
        settings=settings,
    )


@main.command("combinations")
@click.argument("dataset", default="embedded")
@_data
@click.option("--only", default="", help="Only combinations whose name contains this, for example groups/ or /gelu.")
@_json
def combinations_command(dataset: str, data: Path | None, only: str, as_json: bool) -> None:
    """Test error after one pass for combinations of label scheme, goodness and activation."""
    chosen = [each for each in combinations.combinations() if only in each.name]
    combinations.run(_report((0,)), load(dataset, data), chosen)


@main.command("deprivation")
@click.option("--length", default=64, show_default=True, help="Microbatches in a phase.")
@click.option("--microbatches", default=16_000, show_default=True, help="Wake microbatches without sleep.")
@click.option("--recovery", default=1024, show_default=True, help="Microbatches in each sleep phase after that.")
@_dataset
@_data
@click.option("--passes", default=5.0, show_default=True, help="Passes in phases before that.")
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@_validation
@_settings
@_json
def deprivation_command(
    length: int,
    microbatches: int,
    recovery: int,
    dataset: str,
    data: Path | None,
    passes: float,
    seed: int,
    validation: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Error of the preset wake-sleep without sleep, and after two sleep phases that follow."""
    phases.deprivation(
        _report((seed,)),
        load(dataset, data),
        length=length,
        seed=seed,
        passes=passes,
        microbatches=microbatches,
        recovery=recovery,
        validation=validation,
        settings=settings,
    )


@main.command("serial")
@click.argument("text", default=CORPUS)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(serial.VARIANTS)),
    help="What to measure beside backprop and counts; default: the preset and fast weights with their controls.",
)
@click.option("--characters", default=0, help="Learn only so many, the last ones before the held-out text; 0: all.")
@click.option("--seeds", default=3, show_default=True, help="Number of runs, with seeds 0, 1, 2, …")
@_validation
@_json
def serial_command(
    text: str, variants: tuple[str, ...], characters: int, seeds: int, validation: bool, as_json: bool
) -> None:
    """Error and bits per character of the next symbol of a text, beside backprop and n-gram counts."""
    try:
        dataset = load_text(text, DEFAULT_WINDOW)
        splits = splits_of(dataset, validation=validation)
    except FFStreamError as error:
        raise click.ClickException(str(error)) from error
    if characters:
        train = splits.train
        splits = splits._replace(train=train[np.arange(len(train)) >= len(train) - characters])
    serial.run(_report(range(seeds)), dataset, splits, variants or serial.DEFAULT, range(seeds))


@main.command("recurrent")
@_dataset
@_data
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(recurrent.VARIANTS)),
    help="What to measure; default: all.",
)
@click.option("--passes", default=1, show_default=True, help="Passes over the training split.")
@click.option("--seeds", default=3, show_default=True, help="Number of runs, with seeds 0, 1, 2, …")
@_validation
@_json
def recurrent_command(
    dataset: str,
    data: Path | None,
    variants: tuple[str, ...],
    passes: int,
    seeds: int,
    validation: bool,
    as_json: bool,
) -> None:
    """Error of the preset recurrent: more rounds, and the same parts without top-down connections."""
    chosen = variants or tuple(recurrent.VARIANTS)
    recurrent.run(_report(range(seeds)), load(dataset, data), chosen, seeds, passes=passes, validation=validation)


@main.command("ingest")
@click.option("--long", is_flag=True, help="Also measure memory between sample 60,000 and 600,000.")
@_json
@_rounds
def ingest_command(long: bool, as_json: bool, rounds: int) -> None:
    """Acked and learned samples per second, from a producer in another process; the daemon's memory."""
    ingest.run(_report(settings=ingest.SETTINGS), rounds, long=long)


@main.command("checkpoint")
@_json
@click.option("--rounds", default=9, show_default=True, help="Number of pairs: with and without a checkpoint.")
def checkpoint_command(as_json: bool, rounds: int) -> None:
    """Learning speed of 784-2000x4 while a checkpoint is written."""
    checkpoint.run(_report(), rounds)


@main.command("recovery")
@_json
@_rounds
def recovery_command(as_json: bool, rounds: int) -> None:
    """Time from kill -9, with 60,000 samples after the last checkpoint, until ready and until all are learned."""
    recovery.run(_report(settings=recovery.SETTINGS), rounds)


@main.command("predict")
@_json
@_rounds
def predict_command(as_json: bool, rounds: int) -> None:
    """Latency of predictions at the client, idle and while learning at full speed."""
    predict.run(_report(settings=predict.SETTINGS), rounds)


@main.command("page")
@_json
@click.option(
    "--rounds", default=5, show_default=True, help="Number of times that the page is opened, and a daemon killed."
)
def page_command(as_json: bool, rounds: int) -> None:
    """Time until the page is painted, has figures and charts, and until it says that the daemon is lost."""
    from tools.benchmarks import page  # needs Playwright, which a machine for `tools/gpu` may lack

    page.run(_report(settings=page.SETTINGS), rounds)


@main.command("security")
@_json
@_rounds
def security_command(as_json: bool, rounds: int) -> None:
    """Acked samples per second with encryption (CURVE), beside the same without."""
    security.run(_report(settings=security.SETTINGS), rounds)


@main.command("viewers")
@_json
@click.option("--rounds", default=20, show_default=True, help="Number of pairs: with and without readers.")
def viewers_command(as_json: bool, rounds: int) -> None:
    """What ten readers of the live feed cost; latency of /metrics while learning; size of a history of 30 days."""
    viewers.run(_report(settings=viewers.SETTINGS), rounds)


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
@_rounds
@click.option("--kills", default=3, show_default=True, help="Actors and raylets that are killed; 0: none.")
@click.option(
    "--share", default=1.0, show_default=True, help="Share of the work of each measurement, for a quick look."
)
@click.option("--measured", type=click.Path(path_type=Path), metavar="FILE", help="Write what the model needs.")
@_json
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
    figures.run(_report(), options)


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
@_json
def device_command(dry: bool, seconds: float, limit: float, as_json: bool) -> None:
    """Learning speed on a CUDA device, with different arrangements of streams. `tools/gpu` runs this."""
    if not dry and not torch.cuda.is_available():
        raise click.ClickException("torch finds no CUDA device; --dry runs on the CPU with tiny networks")
    name = "none: a dry run on the CPU" if dry else torch.cuda.get_device_name()
    good = device.run(_report(device=name), dry=dry, seconds=seconds, limit_s=limit)
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
    try:
        new = results.parse(file.read_text(encoding="utf-8"), str(file)) if file else results.run(command)
    except results.Failed as error:
        raise click.ClickException(str(error)) from error
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
@click.option("--pairs", default=20, show_default=True, help="Number of pairs of measurements.")
@click.option("--what", default=",".join(compare.WHAT), show_default=True, help="Measurements, separated by commas.")
@click.option("--seconds", default=3.0, show_default=True, help="Approximate length of one measurement.")
@_json
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
    try:
        passed = compare.run(_report(compare.SEEDS), base, pairs=pairs, what=names, seconds=seconds)
    except compare.Failed as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
