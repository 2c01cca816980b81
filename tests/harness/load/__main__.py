"""The command `tools/soak`, with the subcommands `flood`, `clients` and `cluster`."""

import signal
import sys
from typing import Any

import click

from tests.harness.load import clients, cluster, flood, soak
from tests.harness.load.report import publish

_json = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else on stdout.")
_settings = click.option(
    "--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="Set an option of the daemon."
)


@click.group(invoke_without_command=True)
@click.option("--minutes", type=click.FloatRange(min=0.2), default=5.0, show_default=True, help="Length of the run.")
@_settings
@_json
@click.pass_context
def main(context: click.Context, minutes: float, settings: tuple[str, ...], as_json: bool) -> None:
    """Run all kinds of clients at the same time against one daemon.

    Producers connect and leave or are killed, some clients do not read their answers, and malformed messages come in
    bursts. Prints what the daemon used after warm-up and at the end. Exit code 1: a promise is broken, or the
    daemon's memory, descriptors, threads or disk space grew.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so the daemon is stopped
    if context.invoked_subcommand is None:
        _finish("soak", soak.run(minutes * 60, settings=settings), as_json=as_json)


@main.command("flood")
@click.option("--messages", type=click.IntRange(min=1000), default=200_000, show_default=True, help="How many.")
@_settings
@_json
def flood_command(messages: int, settings: tuple[str, ...], as_json: bool) -> None:
    """Send malformed messages of all kinds to all sockets while well-behaved clients continue."""
    _finish("flood", flood.run(messages, settings=settings), as_json=as_json)


@main.command("clients")
@click.option("--clients", "count", type=click.IntRange(min=1), default=200, show_default=True, help="At a time.")
@click.option("--rounds", type=click.IntRange(min=2), default=3, show_default=True, help="Each with new clients.")
@_settings
@_json
def clients_command(count: int, rounds: int, settings: tuple[str, ...], as_json: bool) -> None:
    """Connect very many clients at the same time, round after round."""
    _finish("clients", clients.run(count, rounds, settings=settings), as_json=as_json)


@main.command("cluster")
@click.option("--samples", type=click.IntRange(min=1000), default=200_000, show_default=True, help="After warm-up.")
@_settings
@_json
def cluster_command(samples: int, settings: tuple[str, ...], as_json: bool) -> None:
    """Learn in a Ray cluster on this machine, and read the memory of each process: daemon, keeper, the actor of each
    stage, spare actors, and the rest of Ray together. Exit code 1: one of them grew."""
    _finish("cluster", cluster.run(samples, settings=settings), as_json=as_json)


def _finish(title: str, result: dict[str, Any], *, as_json: bool) -> None:
    publish(title, result, as_json=as_json)
    sys.exit(1 if result["broken"] else 0)


if __name__ == "__main__":
    main()
