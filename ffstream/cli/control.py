"""What a daemon is told and asked over its control socket."""

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ffstream.cli import options
from ffstream.cli.output import print_json
from ffstream.client import Control, CurveKeys


@click.command()
@options.control_endpoint
@click.option(
    "--wait-idle",
    "idle_s",
    metavar="SECONDS",
    type=click.FloatRange(0, 86_400),
    help="Wait until every sample acked so far is learned; fail after that long.",
)
@options.timeout(10.0)
@options.as_json
@options.keys
def status(endpoint: str, idle_s: float | None, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Show what the daemon is doing."""
    with Control(endpoint, keys=keys) as control:
        result = control.status(timeout_s)  # first, so that a daemon that is not there is not waited for
        if idle_s is not None:
            result = control.wait_idle(idle_s)
    if as_json:
        print_json(result)
    else:
        Console().print(_facts(result), _stages(result["stages"]))


def _facts(result: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    snapshot = result["snapshot"]
    rows = {
        "state": f"{result['state']}, {result['phase']}",
        "samples": f"{result['accepted']:,} accepted, {result['learned']:,} learned, {result['backlog']:,} waiting",
        "prequential error": f"{_percent(result['prequential_error'])} of the last 10,000, "
        f"{_percent(result['prequential_error_total'])} of all",
        "snapshot": f"{snapshot['age_s']:.1f} s old, learned up to {snapshot['seq']:,}",
        "checkpoint": f"at {result['checkpoint_seq']:,}",
    } | result["endpoints"]
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.2%}"


def _stages(stages: list[dict[str, Any]]) -> Table:
    table = Table("stage", "layers", "queue", "learned up to", "skipped")
    for stage in stages:
        table.add_row(
            stage["name"],
            ", ".join(map(str, stage["layers"])),
            str(stage["queue_depth"]),
            f"{stage['last_seq']:,}",
            str(stage["skipped"]),
        )
    return table


def _request(
    command: str,
    endpoint: str,
    timeout_s: float,
    keys: CurveKeys | None,
    *,
    arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    with Control(endpoint, keys=keys) as control:
        return control.request(command, arguments, timeout_s)


def _request_long(command: str, endpoint: str, timeout_s: float, keys: CurveKeys | None) -> dict[str, Any]:
    """The daemon keeps the deadline and says what is missing; ours is a little later."""
    return _request(command, endpoint, timeout_s + 5.0, keys, arguments={"timeout_s": timeout_s})


def _report(result: dict[str, Any], as_json: bool, sentence: str) -> None:
    if as_json:
        print_json(result)
    else:
        click.echo(sentence.format(**result))


# A group, because there is more to do with checkpoints than to take one.
@click.group(invoke_without_command=True)
@options.control_endpoint
@options.timeout(60.0)
@options.as_json
@options.keys
@click.pass_context
def checkpoint(
    context: click.Context, endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None
) -> None:
    """Take a checkpoint now; returns when it is durable."""
    if context.invoked_subcommand is None:
        result = _request_long("checkpoint", endpoint, timeout_s, keys)
        _report(result, as_json, "checkpoint at sample {seq}: {bytes} bytes in {seconds:.2f} s")


@click.command()
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def pause(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Pause learning. Samples are still accepted, queries still answered."""
    _report(_request("pause", endpoint, timeout_s, keys), as_json, "learning is paused")


@click.command()
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def resume(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Resume learning."""
    _report(_request("resume", endpoint, timeout_s, keys), as_json, "learning goes on")


@click.command()
@options.control_endpoint
@options.timeout(60.0)
@options.as_json
@options.keys
def drain(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Accept no more samples, learn what is acked, then stop."""
    result = _request_long("drain", endpoint, timeout_s, keys)
    _report(result, as_json, "all {learned} samples are learned; the daemon stops")


@click.command()
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def stop(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Stop the daemon as SIGTERM does. Returns when it has begun; what is acked and not learned waits on disk."""
    _report(_request("stop", endpoint, timeout_s, keys), as_json, "the daemon stops")
