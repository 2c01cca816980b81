"""Commands that use a daemon's control socket: status, pause, resume, rollback, drain, stop."""

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from ffstream.cli import options, states, view
from ffstream.cli.output import console, prequential_error, print_json
from ffstream.client import Control, CurveKeys


@click.command(
    epilog=options.example("ffstream status", "ffstream status --at tcp://trainer:5759 --wait-idle 60 --json")
)
@options.control_endpoint
@click.option(
    "--wait-idle",
    "idle_s",
    metavar="SECONDS",
    type=options.SECONDS,
    help="Wait until every sample acked so far is learned; fail after that long.",
)
@options.timeout(10.0)
@options.as_json
@options.keys
def status(endpoint: str, idle_s: float | None, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Show what the daemon is doing."""
    with Control(endpoint, keys=keys) as control:
        result = control.status(timeout_s)  # first, to fail early if there is no daemon
        if idle_s is not None:
            result = control.wait_idle(idle_s)
    if as_json:
        print_json(result)
    else:
        interrupted = view.interruption(result)
        warnings = [] if interrupted is None else [Text(interrupted, "yellow")]
        console().print(*warnings, _facts(result), _stages(result["stages"]), *view.places_of(result["stages"]))


def _facts(result: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    snapshot = result["snapshot"]
    rows = {
        "state": ("paused until `ffstream resume`" if result["state"] == "paused" else str(result["state"]))
        + f", phase {result['phase']}"
        + (f", rejects samples: {result['refusing']}" if result["refusing"] else ""),
        "network": f"images of shape {result['image_shape']}, labels 0 to {result['labels'] - 1}",
        "samples": f"{result['accepted']:,} accepted, {result['learned']:,} learned, {result['backlog']:,} waiting"
        + (f", {result['skipped']:,} skipped" if result["skipped"] else ""),
        "prequential error": prequential_error(result),
        "snapshot": f"{snapshot['age_s']:.1f} s old, learned up to {snapshot['seq']:,}",
        "checkpoint": f"at {result['checkpoint_seq']:,}" if result["checkpoint_seq"] else "none yet",
        "rollback": _reach(result),
    } | result["endpoints"]
    rows |= {f"warning: {name}": text for name, text in result.get("warnings", {}).items()}
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _reach(result: dict[str, Any]) -> str:
    """How far back a rollback can go."""
    oldest, relearn = result["rollback_from"], result["relearn_from"]
    if oldest is None:
        return "not possible yet"
    since = f"{oldest:,} on ({states.duration(result['rollback_age_s'])} of running time ago)"
    if relearn == oldest:
        return f"to any sample from {since}"
    exact = f"with --skip to any checkpoint from {since}"
    return exact if relearn is None else f"to any sample from {relearn:,} on; {exact}"


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


def request(
    command: str,
    endpoint: str,
    timeout_s: float,
    keys: CurveKeys | None,
    *,
    arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Sends a command to the daemon and returns its result. Raises FFStreamError."""
    with Control(endpoint, keys=keys) as control:
        return control.request(command, arguments, timeout_s)


def request_long(command: str, endpoint: str, timeout_s: float, keys: CurveKeys | None) -> dict[str, Any]:
    """As `request`. The daemon enforces the timeout, because its error has more details; the client waits longer."""
    return request(command, endpoint, timeout_s + 5.0, keys, arguments={"timeout_s": timeout_s})


def report(result: dict[str, Any], as_json: bool, sentence: str) -> None:
    """Prints the result as JSON, or as a sentence with its values."""
    if as_json:
        print_json(result)
    else:
        click.echo(sentence.format(**result))


@click.command(epilog=options.example("ffstream pause"))
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def pause(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Pause learning until `ffstream resume`, also across restarts. Samples are still acked and queries answered."""
    report(request("pause", endpoint, timeout_s, keys), as_json, "learning is paused until `ffstream resume`")


@click.command(epilog=options.example("ffstream resume"))
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def resume(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Resume learning."""
    report(request("resume", endpoint, timeout_s, keys), as_json, "learning is resumed")


@click.command(epilog=options.example("ffstream rollback --to 120000 --skip"))
@options.control_endpoint
@click.option(
    "--to",
    metavar="SEQ",
    type=click.IntRange(0, 2**63 - 1),
    required=True,
    help="The last sample that stays learned.",
)
@click.option("--relearn", "later", flag_value="relearn", default=True, help="Learn later samples again (default).")
@click.option("--skip", "later", flag_value="skip", help="Never learn the later samples that are acked by now.")
@options.timeout(60.0)
@options.as_json
@options.keys
def rollback(endpoint: str, to: int, later: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Roll learning back to sample SEQ while the daemon runs.

    Learning continues from the newest checkpoint at or below SEQ and learns the samples up to SEQ again. That
    checkpoint is used for predictions at once. The samples after SEQ that are acked by now are learned again or
    skipped. Samples sent later are learned in any case. Samples that an earlier rollback skipped stay skipped.

    A rollback can go back to any sample since the oldest of the newest checkpoints (`checkpoint.keep`), because the
    journal contains the samples after it. Beyond that it can go back only to the exact sample of an older checkpoint
    (`checkpoint.ladder_s`), and only with --skip. `ffstream status` shows the limits, `ffstream checkpoint list` the
    checkpoints.
    """
    result = request("rollback", endpoint, timeout_s, keys, arguments={"to": to, "later": later})
    sentence = "rolled back to sample {to:,}, from checkpoint {checkpoint:,}; "
    after = "samples {first:,} to {last:,} are {later}" if result["last"] > to else "there are no samples after it"
    report(result, as_json, sentence + after)


@click.command(epilog=options.example("ffstream drain --timeout 600"))
@options.control_endpoint
@options.timeout(60.0)
@options.as_json
@options.keys
def drain(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Reject new samples, learn all acked ones, stop the daemon."""
    result = request_long("drain", endpoint, timeout_s, keys)
    report(result, as_json, "all {learned:,} samples are learned; the daemon stops")


@click.command(epilog=options.example("ffstream stop"))
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def stop(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Stop the daemon as SIGTERM does. Returns at once. Acked samples that are not learned yet stay on disk."""
    report(request("stop", endpoint, timeout_s, keys), as_json, "the daemon stops")
