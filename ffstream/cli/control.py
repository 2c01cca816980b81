"""What a daemon is told and asked over its control socket."""

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ffstream.cli import options, states
from ffstream.cli.output import prequential_error, print_json
from ffstream.client import Control, CurveKeys


@click.command()
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
        "state": f"{result['state']}, {result['phase']}"
        + (f", refuses samples: {result['refusing']}" if result["refusing"] else ""),
        "network": f"images of shape {result['image_shape']}, labels 0 to {result['labels'] - 1}",
        "samples": f"{result['accepted']:,} accepted, {result['learned']:,} learned, {result['backlog']:,} waiting"
        + (f", {result['skipped']:,} skipped" if result["skipped"] else ""),
        "prequential error": prequential_error(result),
        "snapshot": f"{snapshot['age_s']:.1f} s old, learned up to {snapshot['seq']:,}",
        "checkpoint": f"at {result['checkpoint_seq']:,}",
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
        return "nowhere yet"
    ago = f"{oldest:,}, {states.duration(result['rollback_age_s'])} of running ago"
    if relearn == oldest:
        return f"to any sample from {ago}, on"
    exact = f"with --skip to a checkpoint from {ago}, on"
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
    """Asks the daemon; its result. Raises FFStreamError."""
    with Control(endpoint, keys=keys) as control:
        return control.request(command, arguments, timeout_s)


def request_long(command: str, endpoint: str, timeout_s: float, keys: CurveKeys | None) -> dict[str, Any]:
    """The daemon keeps the deadline and says what is missing; ours is a little later."""
    return request(command, endpoint, timeout_s + 5.0, keys, arguments={"timeout_s": timeout_s})


def report(result: dict[str, Any], as_json: bool, sentence: str) -> None:
    """The result as JSON, or as a sentence that its figures fill."""
    if as_json:
        print_json(result)
    else:
        click.echo(sentence.format(**result))


@click.command()
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def pause(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Pause learning until `ffstream resume`, also after a restart. Samples are still accepted, queries answered."""
    report(request("pause", endpoint, timeout_s, keys), as_json, "learning is paused until: ffstream resume")


@click.command()
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def resume(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Resume learning."""
    report(request("resume", endpoint, timeout_s, keys), as_json, "learning goes on")


@click.command()
@options.control_endpoint
@click.option(
    "--to", metavar="SEQ", type=click.IntRange(0, 2**63 - 1), required=True, help="Last sample to have been learned."
)
@click.option("--relearn", "later", flag_value="relearn", default=True, help="Learn later samples again (default).")
@click.option("--skip", "later", flag_value="skip", help="Never learn the later samples that are acked by now.")
@options.timeout(60.0)
@options.as_json
@options.keys
def rollback(endpoint: str, to: int, later: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Take learning back to sample SEQ while the daemon serves.

    Learning begins at the newest checkpoint at or below SEQ and learns from there to SEQ again; predictions come from
    that checkpoint at once. What happens to the samples after SEQ is yours to choose; samples sent from now on are
    learned in any case. What an earlier --skip skipped stays skipped.

    How far back it reaches: to any sample from the oldest of the newest checkpoints (`checkpoint.keep`) on, because
    the journal holds what came after it. Beyond that, only to exactly the sample of an older checkpoint
    (`checkpoint.ladder_s`), and only with --skip. `ffstream status` shows the limits, `ffstream checkpoint list` the
    checkpoints.
    """
    result = request("rollback", endpoint, timeout_s, keys, arguments={"to": to, "later": later})
    sentence = "learning is back at sample {to}, from checkpoint {checkpoint}; "
    after = "samples {first} to {last} are {later}" if result["last"] > to else "no sample came after it"
    report(result, as_json, sentence + after)


@click.command()
@options.control_endpoint
@options.timeout(60.0)
@options.as_json
@options.keys
def drain(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Accept no more samples, learn what is acked, then stop."""
    result = request_long("drain", endpoint, timeout_s, keys)
    report(result, as_json, "all {learned} samples are learned; the daemon stops")


@click.command()
@options.control_endpoint
@options.timeout(10.0)
@options.as_json
@options.keys
def stop(endpoint: str, timeout_s: float, as_json: bool, keys: CurveKeys | None) -> None:
    """Stop the daemon as SIGTERM does. Returns when it has begun; what is acked and not learned waits on disk."""
    report(request("stop", endpoint, timeout_s, keys), as_json, "the daemon stops")
