"""`ffstream checkpoint`: takes a checkpoint, lists and verifies those on disk."""

import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ffstream.checkpoint.inspection import Found, half_written, inspect
from ffstream.checkpoint.manifest import CHECKPOINTS, folder_of
from ffstream.cli import options, states
from ffstream.cli.control import report, request_long
from ffstream.cli.output import console, print_json
from ffstream.client import CurveKeys
from ffstream.errors import CheckpointDamaged, CheckpointIncompatible, ConfigError
from ffstream.journal.schema import JOURNAL

_SUMMARY = ("goodness", "objective", "optimizer")


@click.group(
    invoke_without_command=True,
    epilog=options.example("ffstream checkpoint", "ffstream checkpoint list --state STATE"),
)
@options.control_endpoint
@options.timeout(60.0)
@options.as_json
@options.keys
@click.pass_context
def checkpoint(
    context: click.Context, endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None
) -> None:
    """Make the daemon write a checkpoint. Returns when it is durable. The subcommands read a state folder."""
    if context.invoked_subcommand is None:
        result = request_long("checkpoint", endpoint, timeout_s, keys)
        report(result, as_json, "checkpoint at sample {seq:,}: {bytes:,} bytes in {seconds:.2f} s")


@checkpoint.command("list", epilog=options.example("ffstream checkpoint list --state STATE"))
@options.config_file
@options.state_folder
@options.as_json
@click.pass_context
def list_command(context: click.Context, file: Path | None, state: Path | None, as_json: bool) -> None:
    """List the checkpoints on disk. Reads manifests and sizes only. Exit code 1 if one is damaged."""
    folder = folder_in(states.folder(file, state))
    found, halves = list(inspect(folder, thoroughly=False)), half_written(folder)
    if as_json:
        print_json({"path": str(folder), "checkpoints": [_describe(each) for each in found], "half_written": halves})
    else:
        _show(folder, found, halves)
    _end(context, found)


@checkpoint.command(epilog=options.example("ffstream checkpoint verify 120000 --state STATE"))
@click.argument("seq", type=click.IntRange(min=0), required=False)
@options.config_file
@options.state_folder
@options.as_json
@click.pass_context
def verify(context: click.Context, seq: int | None, file: Path | None, state: Path | None, as_json: bool) -> None:
    """Verify every byte of all checkpoints, or of one. Shows from which one a daemon would start.

    Exit code 1 if one is damaged, 2 if there is no state folder, or no checkpoint SEQ in it.
    """
    folder = folder_in(states.folder(file, state))
    found = []
    for each in inspect(folder, thoroughly=True, seq=seq):
        found.append(each)
        if not as_json:
            click.echo(f"checkpoint {each.seq}: intact" if each.problem is None else _describe_problem(each.problem))
    if seq is not None and not found:
        raise missing(folder, seq)
    used = _used(found if seq is None else list(inspect(folder, thoroughly=True)))
    if as_json:
        print_json({"path": str(folder), "checkpoints": [_describe(each) for each in found], "recovery": used})
    else:
        click.echo(
            "a daemon would start " + (f"from checkpoint {used}" if used is not None else "without a checkpoint")
        )
    _end(context, found)


def folder_in(state: Path) -> Path:
    """The folder of the checkpoints in a state folder. Raises ConfigError."""
    if not any((state / name).exists() for name in (JOURNAL, CHECKPOINTS)):
        raise ConfigError(f"no state folder at {state}", hint="use --state with the state folder of a daemon")
    return state / CHECKPOINTS


def missing(folder: Path, seq: int) -> ConfigError:
    """The error about a checkpoint that does not exist."""
    if folder_of(folder, seq).name in half_written(folder):
        return ConfigError(
            f"checkpoint {seq} is incomplete", hint="it is being written, or writing it was interrupted"
        )
    existing = ", ".join(str(each.seq) for each in inspect(folder, thoroughly=False))
    return ConfigError(
        f"there is no checkpoint {seq} in {folder}",
        hint=f"there are {existing}" if existing else "there are none yet",
    )


def _used(found: list[Found]) -> int | None:
    """The newest intact checkpoint, from which recovery starts."""
    return next((each.seq for each in found if each.problem is None), None)


def _describe(found: Found) -> dict[str, Any]:
    return {
        "seq": found.seq,
        "written": found.manifest.get("written"),
        "bytes": found.bytes,
        "whole": found.problem is None,
        "problem": "" if found.problem is None else found.problem.message,
        "recipe": found.manifest.get("recipe"),
    }


def _show(folder: Path, found: list[Found], halves: list[str]) -> None:
    table = Table("learned up to", "written", "size", "state", "recipe")
    for each in found:
        table.add_row(
            f"{each.seq:,}",
            _time(each.manifest.get("written")),
            states.size(each.bytes),
            _state(each),
            _recipe(each.manifest.get("recipe", {})),
        )
    console(markup=False, highlight=False).print(table if found else f"no checkpoints in {folder}", soft_wrap=True)
    for each in found:
        if each.problem is not None:
            click.echo(_describe_problem(each.problem))
    for name in halves:
        click.echo(f"incomplete: {name}: being written, or interrupted; the next checkpoint removes it")


def _state(found: Found) -> str:
    if found.problem is None:
        return "intact"
    return "DAMAGED" if isinstance(found.problem, CheckpointDamaged) else "NEWER FORMAT"


def _describe_problem(problem: CheckpointDamaged | CheckpointIncompatible) -> str:
    return f"damaged: {problem.message}" if isinstance(problem, CheckpointDamaged) else problem.message


def _recipe(recipe: dict[str, Any]) -> str:
    """A short form that distinguishes recipes; --json prints the whole recipe."""
    layers = recipe.get("layers")
    layers = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    shape = recipe.get("image_shape")
    image = "x".join(map(str, shape)) if isinstance(shape, list) else None
    sizes = [image, *(_part(layer, "connection", "units") for layer in layers), recipe.get("labels")]
    kinds = [_part(layer, family, "kind") for family in _SUMMARY for layer in layers]
    parts = ["-".join(str(size) for size in sizes if size is not None), *dict.fromkeys(map(str, kinds))]
    return " ".join(filter(None, parts))


def _part(layer: dict[str, Any], family: str, option: str) -> Any:
    part = layer.get(family)
    return part.get(option) if isinstance(part, dict) else None


def _time(written: Any) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written))
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def _end(context: click.Context, found: list[Found]) -> None:
    hint = (
        "a daemon starts from the newest intact one and the journal, and replaces the damaged one when it passes it"
    )
    states.end(context, intact=not any(each.problem for each in found), hint=hint)
