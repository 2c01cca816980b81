"""The commands of `tools/bench` that measure errors: of presets, and in experiments."""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from ffstream.cli.options import DEFAULT_WINDOW
from ffstream.data import load, load_text
from ffstream.data.text import CORPUS
from ffstream.ff.presets import PRESETS
from ffstream.ff.presets import recipe as make_recipe
from ffstream.pipeline.device import choose_device
from tools.benchmarks import (
    combinations,
    command,
    dreams,
    drift,
    hardware,
    phases,
    questions,
    recurrent,
    serial,
)
from tools.benchmarks.accuracy import figures as accuracy
from tools.benchmarks.accuracy.learners import splits_of
from tools.benchmarks.accuracy.through_daemon import SETTINGS as PROOF_SETTINGS
from tools.benchmarks.accuracy.tuning import settings_of


@command.main.command("accuracy")
@click.option("--preset", default="stream", show_default=True, help="The recipe.")
@command.dataset
@command.data
@click.option("--passes", default=1, show_default=True, help="Passes over the training split.")
@click.option("--samples", default=0, help="End a run after about this number of samples, not after whole passes.")
@command.seeds
@command.validation
@command.settings
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
@command.as_json
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
    loaded = load(dataset, data)
    device = choose_device(accuracy.config_of(loaded, options, 0).pipeline.device)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    report = command.report(range(1 if tune_peer else seeds), PROOF_SETTINGS if proves else (), gpu)
    if tune_peer:
        click.echo(accuracy.tune_peer(report, loaded, options, tune_peer))
        return
    peer = settings_of(preset) if with_peer else None
    accuracy.run(report, loaded, replace(options, peer=peer))
    if updates:
        accuracy.overlay_method(report, loaded, updates, validation=validation)


@command.main.command("drift")
@click.argument("dataset", default="embedded")
@command.data
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(drift.DRIFTS)), help="Kind of drift; default: all."
)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="stream", show_default=True, help="The recipe.")
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of streams, with seeds 0, 1, 2, …"
)
@command.as_json
def drift_command(
    dataset: str, data: Path | None, kinds: tuple[str, ...], preset: str, seeds: int, as_json: bool
) -> None:
    """Samples after a change of the concept until the error is below 10 %, beside a fresh learner."""
    drift.run(
        command.report(range(seeds)), load(dataset, data), list(kinds or drift.DRIFTS), make_recipe(preset), seeds
    )


@command.main.command("hardware")
@command.dataset
@command.data
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([*hardware.DEVICES, *hardware.CHANGES]),
    help="Device; default: all.",
)
@command.seeds
@command.validation
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the errors into this PNG.")
@command.as_json
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
    found = hardware.run(command.report(range(seeds)), load(dataset, data), chosen, seeds, validation=validation)
    compared = {kind: errors for kind, errors in found.items() if kind in hardware.DEVICES}
    if not as_json:
        click.echo(hardware.table(compared))
    if plot is not None:
        hardware.draw(plot, compared, "validation" if validation else "test")


@command.main.command("questions")
@click.argument("names", nargs=-1, type=click.Choice(list(questions.QUESTIONS)))
@command.as_json
def questions_command(names: tuple[str, ...], as_json: bool) -> None:
    """The experiments about the reference article's open questions at a small size; default: all."""
    questions.run(command.report(), names or tuple(questions.QUESTIONS))


@command.main.command("phases")
@click.argument("lengths", nargs=-1, type=click.IntRange(1))
@command.dataset
@command.data
@click.option("--passes", default=10.0, show_default=True, help="Passes over the training split, at most.")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Number of runs, with seeds 0, 1, 2, …"
)
@command.validation
@command.settings
@command.as_json
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
        command.report(range(seeds)),
        load(dataset, data),
        lengths=lengths or (16, 64, 256, 1024),
        seeds=seeds,
        passes=passes,
        validation=validation,
        settings=settings,
    )


@command.main.command("dreams")
@command.dataset
@command.data
@click.option("--only", default="", help="Only cases whose name contains this, for example sleep/store.")
@click.option("--passes", default=10.0, show_default=True, help="Passes with phases, at most; the others have one.")
@command.seeds
@click.option("--first-seed", default=0, show_default=True, help="The first of the seeds.")
@command.validation
@command.settings
@command.as_json
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
        command.report(chosen),
        load(dataset, data),
        only=only,
        seeds=chosen,
        passes=passes,
        validation=validation,
        settings=settings,
    )


@command.main.command("combinations")
@click.argument("dataset", default="embedded")
@command.data
@click.option("--only", default="", help="Only combinations whose name contains this, for example groups/ or /gelu.")
@command.as_json
def combinations_command(dataset: str, data: Path | None, only: str, as_json: bool) -> None:
    """Test error after one pass for combinations of label scheme, goodness and activation."""
    chosen = [each for each in combinations.combinations() if only in each.name]
    combinations.run(command.report((0,)), load(dataset, data), chosen)


@command.main.command("deprivation")
@click.option("--length", default=64, show_default=True, help="Microbatches in a phase.")
@click.option("--microbatches", default=16_000, show_default=True, help="Wake microbatches without sleep.")
@click.option("--recovery", default=1024, show_default=True, help="Microbatches in each sleep phase after that.")
@command.dataset
@command.data
@click.option("--passes", default=5.0, show_default=True, help="Passes in phases before that.")
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@command.validation
@command.settings
@command.as_json
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
        command.report((seed,)),
        load(dataset, data),
        length=length,
        seed=seed,
        passes=passes,
        microbatches=microbatches,
        recovery=recovery,
        validation=validation,
        settings=settings,
    )


@command.main.command("serial")
@click.argument("text", default=CORPUS)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(serial.VARIANTS)),
    help="What to measure beside backprop and counts; default: the preset and fast weights with their controls.",
)
@click.option("--characters", default=0, help="Learn only so many, the last ones before the held-out text; 0: all.")
@command.seeds
@command.validation
@command.as_json
def serial_command(
    text: str, variants: tuple[str, ...], characters: int, seeds: int, validation: bool, as_json: bool
) -> None:
    """Error and bits per character of the next symbol of a text, beside backprop and n-gram counts."""
    dataset = load_text(text, DEFAULT_WINDOW)
    splits = splits_of(dataset, validation=validation)
    if characters:
        train = splits.train
        splits = splits._replace(train=train[np.arange(len(train)) >= len(train) - characters])
    serial.run(command.report(range(seeds)), dataset, splits, variants or serial.DEFAULT, range(seeds))


@command.main.command("recurrent")
@command.dataset
@command.data
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(recurrent.VARIANTS)),
    help="What to measure; default: all.",
)
@click.option("--passes", default=1, show_default=True, help="Passes over the training split.")
@command.seeds
@command.validation
@command.as_json
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
    recurrent.run(
        command.report(range(seeds)), load(dataset, data), chosen, seeds, passes=passes, validation=validation
    )
