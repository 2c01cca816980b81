"""What the commands of `tools/bench` have in common: their group, their report, and options that several have."""

import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

from ffstream.errors import FFStreamError
from tools.benchmarks.report import Failed, Report

_NO_INFLUENCE = ("runs", "plot", "measured")  # options that only name files
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
rounds = click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Number of repetitions.")


class _Commands(click.Group):
    """Reports errors of a data set, an option or a measurement as messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (FFStreamError, Failed) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
def main() -> None:
    """Measure ffstream; each figure beside a peer that is measured in the same run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGTERM, _exit)  # so that daemons and folders are cleaned up


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def report(seeds: Sequence[int] = (0,), settings: Sequence[str] = (), device: str | None = None) -> Report:
    """The report of the command that is running. `settings` are those of the daemon, besides those from `--set`.

    The default seed is the one that makes weights and samples in all measurements.
    """
    options = dict(click.get_current_context().params)
    as_json = options.pop("as_json")
    for option in _NO_INFLUENCE:
        options.pop(option, None)
    # Recorded rows are committed, and a path of this machine means nothing on another.
    command = shlex.join(_without_paths(influential(sys.argv[1:])))
    given = {name: "DIR" if _is_path(value) else value for name, value in options.items()}
    if settings:
        given["daemon"] = list(settings)
    return Report(as_json, f"tools/bench {command}", given, seeds, device)


def _without_paths(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments with `DIR` in place of the folder of a data set, and of any path that is there."""
    for before, argument in pairwise(("", *arguments)):
        option, equals, value = argument.partition("=")
        if before == "--data" or _is_path(argument):
            yield "DIR"
        elif equals and (option == "--data" or _is_path(value)):
            yield f"{option}=DIR"
        else:
            yield argument


def _is_path(value: object) -> bool:
    """Whether an option names a place on this machine. A data set may be named by its place, too."""
    return isinstance(value, Path) or (isinstance(value, str) and "/" in value and Path(value).exists())


def influential(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments of the command line on which figures depend."""
    rest = iter(arguments)
    for argument in rest:
        name, separator, _ = argument.partition("=")
        if name in {f"--{option}" for option in _NO_INFLUENCE}:
            if not separator:
                next(rest, None)
        elif argument != "--json":
            yield argument


data = click.option("--data", type=click.Path(exists=True, path_type=Path), help="Where the data set is.")
dataset = click.option(
    "--dataset", default="embedded", show_default=True, help="Name of the data set, or its folder."
)
seeds = click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of runs, with seeds 0, 1, 2, …"
)
validation = click.option(
    "--validation", is_flag=True, help="Hold out the last part of the training split, not the test split."
)
settings = click.option("--set", "settings", multiple=True, help="An option of the daemon, as in `ffstream serve`.")
