"""`tools/crash`: the command."""

import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ffstream.errors import FFStreamError
from tests.harness.crashing import power, trace
from tests.harness.crashing.killing import Killed, Killing
from tests.harness.crashing.lives import ForkServer
from tests.harness.daemon_process import DaemonFailed

screen = Console(stderr=True)
Tell = Callable[[str], None]


@click.command()
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True, help="kill -9, so many times.")
@click.option(
    "--power-losses",
    type=click.IntRange(0),
    help="Power losses, where strace can run.  [default: kills / 10, 8 at least]",
)
@click.option("--seed", default=1, show_default=True, help="Of the stream and of chance.")
@click.option("--json", "as_json", is_flag=True, help="No picture; one line of JSON in the end.")
def main(kills: int, power_losses: int | None, seed: int, as_json: bool) -> None:
    """Kill a daemon again and again, take its power away, and prove what it promised.

    A producer sends numbered samples; the daemon dies at failpoints and at random times, during start
    and recovery too, and starts again on the same state. In the end every acked sample must have been learned once
    and in order: `lost` and `twice` count samples that the acks, the journal and the last state do not agree on,
    `weights_equal` says that every tensor and count of the last checkpoint is equal, bit for bit, to that of a run
    that nobody killed.

    For power loss, what a daemon did to its folder is recorded, and folders are made as a disk may hold them at
    points of that record: what was not flushed is absent, torn, there as length only, or whole.

    What this cannot show: disks that acknowledge a flush and do not do it, rot, a sector that is lost while its
    neighbour is written, file systems that reorder the names in one folder; other failpoints than were met; several
    producers, a GPU, `partial = flush` and `overflow = skip`, where equal weights are not promised. The power
    losses come between system calls of one recorded run, with SQLite's log folded early.

    Exit code 1: a promise is broken, or something failed; the folders stay, and their place is printed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemons are ended all the same
    losses = max(8, kills // 10) if power_losses is None else power_losses
    folder = Path(tempfile.mkdtemp(prefix="ffstream-crash-"))
    start = time.monotonic()
    result: dict[str, Any] = dict.fromkeys(("kills", "acked", "lost", "twice", "weights_equal", "seconds"))
    progress = Progress(
        TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=screen, disable=as_json,
    )  # fmt: skip
    try:
        with progress, ForkServer() as forks:
            task = progress.add_task("starting", total=kills + losses)
            crash(
                folder,
                kills,
                losses,
                seed,
                forks,
                result,
                lambda what: progress.update(task, advance=1, description=what),
            )
    except (FFStreamError, DaemonFailed, trace.TraceUnclear) as error:
        result["failure"] = str(error)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        screen.print("tools/crash: interrupted; its daemons are ended")
        sys.exit(130)
    good = holds(result)
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


def holds(result: dict[str, Any]) -> bool:
    """Whether every promise was kept."""
    kept = result["lost"] == 0 and result["twice"] == 0 and result["weights_equal"] and result["in_order"]
    return bool("failure" not in result and kept and not result.get("unsafe"))


def crash(
    folder: Path, kills: int, losses: int, seed: int, forks: ForkServer, result: dict[str, Any], tell: Tell
) -> None:
    """Everything; fills `result`."""
    start = time.monotonic()
    killed = Killing(folder, seed, forks).run(kills, tell)
    report(killed, result)
    result["kill_seconds"] = round(time.monotonic() - start, 1)
    why_not = trace.why_not(folder)
    result["power_losses"] = None if why_not else 0
    if why_not:
        result["power_note"] = f"power loss was not tried: {why_not}"
        return
    if not losses:
        return
    start = time.monotonic()
    recording = power.record(folder, seed)
    result["unsafe"] = list(power.unsafe(folder, recording))
    points = power.points(recording, losses, random.Random(seed))
    for lost in power.lose_power(folder, recording, points, forks, tell):
        result["power_losses"] += 1
        result["lost"] += lost.account.lost
        result["twice"] += lost.account.twice
        result["weights_equal"] &= not lost.different
        result["in_order"] &= lost.account.in_order
        if lost.broken:
            result.setdefault("power_broken", []).append([lost.point, lost.kept, lost.different])
    result["power_seconds"] = round(time.monotonic() - start, 1)


def report(killed: Killed, result: dict[str, Any]) -> None:
    """What the kills led to."""
    account = killed.account
    result |= {
        "kills": killed.by_failpoint.total(),
        "acked": account.acked,
        "lost": account.lost,
        "twice": account.twice,
        "weights_equal": not killed.different,
        "in_order": account.in_order,
        "different": killed.different,
        "resent": killed.resent,
        "before_first_checkpoint": killed.before_first_checkpoint,
        "by_failpoint": dict(sorted(killed.by_failpoint.items())),
        "passed_over": killed.passed_over,
        "starts": dict(killed.starts),
    }


def show(result: dict[str, Any], *, good: bool) -> None:
    """The result in words."""
    if "failure" in result:
        screen.print(f"tools/crash: {result['failure']}\nEverything is in {result['folder']}.", markup=False)
        return
    for failpoint, times in result["by_failpoint"].items():
        screen.print(f"  {times:6}  {failpoint}", highlight=False)
    for failpoint, why in result["passed_over"].items():
        screen.print(f"       –  {failpoint}: {why}", highlight=False)
    lines = [
        f"{result['kills']} kills and {result['power_losses'] or 'no'} power losses in {result['seconds']:.0f} s: "
        f"{result['acked']:,} samples acked, {result['lost']} lost, {result['twice']} twice.",
        f"Weights {'equal' if result['weights_equal'] else 'DIFFERENT'}, bit for bit, to those of a run without.",
        result.get("power_note", ""),
        *(f"Not safe {each}." for each in result.get("unsafe", [])),
        "" if good else f"A promise is broken. Everything is in {result['folder']}.",
    ]
    screen.print("\n".join(filter(None, lines)), markup=False, highlight=False)


if __name__ == "__main__":
    main(prog_name="tools/crash")
