"""The command `tools/crash`."""

import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ffstream.errors import FFStreamError
from ffstream.ff.presets import PRESETS
from tests.harness.crashing import power, presets, trace
from tests.harness.crashing.cluster_killing import ClusterKillResult, ClusterKillRun
from tests.harness.crashing.fork_server import ForkServer
from tests.harness.crashing.killing import KillResult, KillRun
from tests.harness.crashing.stream import Stream
from tests.harness.daemon import DaemonFailed

screen = Console(stderr=True)
Report = Callable[[str], None]


@click.command()
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True, help="Number of kills (SIGKILL).")
@click.option(
    "--power-losses",
    type=click.IntRange(0),
    help="Number of power losses; needs strace.  [default: kills / 10, at least 8]",
)
@click.option(
    "--engine",
    type=click.Choice(["threads", "ray"]),
    default="threads",
    show_default=True,
    help="Where stages run. With ray, processes of a cluster on this machine are killed, too.",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="A small network with the parts of this preset.")
@click.option("--seed", default=1, show_default=True, help="Random seed of the stream and of the kills.")
@click.option("--set", "settings", multiple=True, help="An option of the daemons, as in `ffstream serve`.")
@click.option("--json", "as_json", is_flag=True, help="Show no progress and print one line of JSON at the end.")
def main(
    kills: int,
    power_losses: int | None,
    engine: str,
    preset: str | None,
    seed: int,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Kill a daemon again and again, simulate power loss, and check that no promise was broken.

    A producer sends numbered samples. The daemon is killed at failpoints and at random times, also during start and
    recovery, and is started again on the same state. At the end every acked sample must have been learned once and in
    order: `lost` and `twice` count samples on which the acks, the journal and the last checkpoint disagree.
    `weights_equal` says whether every tensor and counter of the last checkpoint is bit-equal to that of a run without
    kills. The network has two small dense layers; with --preset it has the parts and phases of that preset, and where
    samples may have no label, a quarter of them has none.

    For power loss, the tool records what a daemon does to its state folder. For points of this recording it creates
    folders as a disk may hold them after power loss: data that was not fsynced is absent, torn, there as length only,
    or complete.

    With --engine ray the victims are drawn among the daemon, an actor (killed, or stopped for a while), the keeper,
    the raylet and the head (`gcs`) of a cluster on this machine. Learning must go on by itself; `recovery_s` says how
    long it took until a microbatch was learned again. While a daemon serves, samples must be acked and predictions
    answered: `acks_gap_s` and `predictions_gap_s` are the longest times without. The run without kills learns on
    threads. `left` names processes and files that are still there at the end. Power loss is not simulated, because
    what is written to disk does not depend on where stages run.

    Not covered: disks that acknowledge an fsync without doing it, bit rot, a sector that is lost while its neighbour
    is written, and file systems that reorder the names in one folder; failpoints that the run did not reach; several
    producers, `partial = flush` and `overflow = skip`, where equal weights are not promised, and
    `sleep_when_quiet_s`, where the clock decides when to sleep (tests/fault/test_sleep.py covers it). The power
    losses come between the system calls of one recorded run, in which SQLite checkpoints its WAL early.

    Exit code 1: a promise is broken, or something failed. The folders are then kept and their path is printed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so the daemons are stopped
    if engine == "ray" and power_losses:
        raise click.UsageError("--power-losses needs --engine threads")
    losses = (max(8, kills // 10) if engine == "threads" else 0) if power_losses is None else power_losses
    stream = presets.small_stream(preset, seed) if preset else Stream(seed)
    stream = replace(stream, settings=(*stream.settings, *settings))
    folder = Path(tempfile.mkdtemp(prefix="ffstream-crash-"))
    start = time.monotonic()
    result: dict[str, Any] = dict.fromkeys(("kills", "acked", "lost", "twice", "weights_equal", "seconds"))
    progress = Progress(
        TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=screen, disable=as_json,
    )  # fmt: skip
    try:
        task = progress.add_task("starting", total=kills + losses)

        def report(what: str) -> None:
            progress.update(task, advance=1, description=what)

        with progress:
            if engine == "ray":
                crash_cluster(folder, kills, stream, result, report)
            else:
                with ForkServer() as forks:
                    crash(folder, kills, losses, stream, forks, result, report)
    except (FFStreamError, DaemonFailed, trace.TraceError) as error:
        result["failure"] = str(error)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        screen.print("tools/crash: interrupted; its daemons are stopped")
        sys.exit(130)
    good = all_promises_kept(result)
    result["seconds"] = round(time.monotonic() - start, 1)
    if good:
        shutil.rmtree(folder)
    else:
        result["folder"] = str(folder)
    if as_json:
        print(json.dumps(result))
    else:
        show(result, good=good)
    sys.exit(0 if good else 1)


def all_promises_kept(result: dict[str, Any]) -> bool:
    """Whether the run succeeded and no promise is broken."""
    if any(result.get(each) for each in ("failure", "not_durable", "without_acks", "unanswered", "left")):
        return False
    return bool(result["lost"] == 0 and result["twice"] == 0 and result["weights_equal"] and result["in_order"])


def crash(
    folder: Path,
    kills: int,
    losses: int,
    stream: Stream,
    forks: ForkServer,
    result: dict[str, Any],
    report: Report,
) -> None:
    """Runs the kills and the power losses, and fills `result`."""
    start = time.monotonic()
    add_kills(KillRun(folder, stream, forks).run(kills, report), result)
    result["kill_seconds"] = round(time.monotonic() - start, 1)
    unavailable = trace.unavailable(folder)
    result["power_losses"] = None if unavailable else 0
    if unavailable:
        result["power_note"] = f"power loss was not tested: {unavailable}"
        return
    if not losses:
        return
    start = time.monotonic()
    recording = power.record(folder, stream)
    result["not_durable"] = list(power.missing_when_only_fsynced(folder, recording))
    points = power.choose_points(recording, losses, random.Random(stream.seed))
    for loss in power.lose_power(folder, recording, points, forks, report):
        result["power_losses"] += 1
        result["lost"] += loss.audit.lost
        result["twice"] += loss.audit.twice
        result["weights_equal"] &= not loss.different
        result["in_order"] &= loss.audit.in_order
        if loss.broken:
            result.setdefault("power_broken", []).append([loss.point, loss.kept, loss.different])
    result["power_seconds"] = round(time.monotonic() - start, 1)


def crash_cluster(folder: Path, kills: int, stream: Stream, result: dict[str, Any], report: Report) -> None:
    """Kills processes of clusters, and fills `result`."""
    with (
        tempfile.TemporaryDirectory(prefix="ffc-") as temporary,
        ForkServer(environment={"TMPDIR": temporary}) as forks,
    ):  # its name is short, because it is part of the addresses of Ray's sockets
        killed = ClusterKillRun(folder, Path(temporary), stream, forks).run(kills, report)
    result |= outcome(killed, killed.by_victim) | {
        "by_victim": dict(sorted(killed.by_victim.items())),
        "recovery_s": killed.recovery(),
        "acks_gap_s": round(killed.acks_gap_s, 3),
        "without_acks": killed.without_acks,
        "predictions": killed.predictions,
        "predictions_gap_s": round(killed.predictions_gap_s, 3),
        "unanswered": killed.unanswered,
        "left": killed.left,
    }


def outcome(killed: KillResult | ClusterKillResult, kills: Counter[str]) -> dict[str, Any]:
    """What both kinds of runs find."""
    return {
        "kills": kills.total(),
        "acked": killed.audit.acked,
        "lost": killed.audit.lost,
        "twice": killed.audit.twice,
        "weights_equal": not killed.different,
        "in_order": killed.audit.in_order,
        "different": killed.different,
        "resent": killed.resent,
    }


def add_kills(killed: KillResult, result: dict[str, Any]) -> None:
    """Adds the outcome of the kills to the result."""
    result |= outcome(killed, killed.by_failpoint) | {
        "before_first_checkpoint": killed.before_first_checkpoint,
        "by_failpoint": dict(sorted(killed.by_failpoint.items())),
        "not_reached": killed.not_reached,
        "starts": dict(killed.starts),
    }


def show(result: dict[str, Any], *, good: bool) -> None:
    """Prints the result for people."""
    if "failure" in result:
        screen.print(f"tools/crash: {result['failure']}\nThe folders are kept in {result['folder']}.", markup=False)
        return
    recovery = result.get("recovery_s", {})
    for place, times in result.get("by_failpoint", result.get("by_victim", {})).items():
        again = f": learning again after {recovery[place]} s" if place in recovery else ""
        screen.print(f"  {times:6}  {place}{again}", highlight=False)
    for failpoint, why in result.get("not_reached", {}).items():
        screen.print(f"       –  {failpoint}: {why}", highlight=False)
    losses = result.get("power_losses")
    equal = "bit-equal to" if result["weights_equal"] else "DIFFERENT from"
    lines = [
        f"{result['kills']} kills and {losses or 'no'} power losses in {result['seconds']:.0f} s: "
        f"{result['acked']:,} samples acked, {result['lost']} lost, {result['twice']} learned or stored twice.",
        f"Weights are {equal} those of a run without kills.",
        result.get("power_note", ""),
        *(f"Not durable {each}." for each in result.get("not_durable", [])),
        *(f"Left behind: {each}." for each in result.get("left", [])),
        *(f"No prediction: {each}." for each in result.get("unanswered", [])),
        *(f"No ack while learning was interrupted: {each}." for each in result.get("without_acks", [])),
        "" if good else f"A promise is broken. The folders are kept in {result['folder']}.",
    ]
    screen.print("\n".join(filter(None, lines)), markup=False, highlight=False)


if __name__ == "__main__":
    main(prog_name="tools/crash")
