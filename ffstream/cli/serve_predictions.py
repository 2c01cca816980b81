"""`ffstream serve-predictions`: a process that answers queries with the newest snapshot of a daemon elsewhere."""

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ffstream.cli import options
from ffstream.cli.log_format import LogFormat
from ffstream.cli.serve import ServiceManager, handle_signals, log_format_option, log_level_option, prepare_process
from ffstream.errors import ConfigError, StartBlocked, Unavailable

if TYPE_CHECKING:
    from ffstream.client import CurveKeys
    from ffstream.config import Config
    from ffstream.daemon.replica import Replica

_LISTEN = "tcp://127.0.0.1:5768"
_HTTP = "127.0.0.1:8767"
_SECTIONS = ("limits", "security", "http", "shutdown")
_OPTIONS = ("network.parts", "pipeline.stall_timeout_s")
_NOT_HERE = ("security.learn_clients", "security.control_clients", "security.follow_clients")
# It has no such sockets, so they must not be in the way of its own.
_UNUSED = ("listen.learn=tcp://127.0.0.1:*", "listen.control=tcp://127.0.0.1:*")


@click.command(
    name="serve-predictions",
    epilog=options.example(
        "ffstream serve-predictions --follow tcp://learner:5759",
        "ffstream serve-predictions --follow tcp://learner:5759 --listen tcp://127.0.0.1:5778 --http 127.0.0.1:8777"
        " --max-staleness 10",
    ),
)
@click.option("--follow", metavar="URL", required=True, help="Control socket of the daemon whose weights predict.")
@click.option("--listen", metavar="URL", default=_LISTEN, show_default=True, help="Endpoint for queries.")
@click.option(
    "--http", metavar="HOST:PORT", default=_HTTP, show_default=True, help="Health checks, metrics and /status."
)
@click.option(
    "--every",
    "every_s",
    metavar="SECONDS",
    type=options.SECONDS,
    default=0.1,
    show_default=True,
    help="Ask for a newer snapshot at most once in that time.",
)
@click.option(
    "--max-staleness",
    "max_staleness_s",
    metavar="SECONDS",
    type=options.SECONDS,
    default=0.0,
    show_default=True,
    help="/readyz answers 503 while the weights may be staler than that; predictions go on. 0: never.",
)
@click.option(
    "--set",
    "settings",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    shell_complete=options.complete_setting,
    help="Sets one option of [limits], [security], [http] or [shutdown], as for `ffstream serve`;"
    " security.server_key and security.predict_clients are for its own socket.",
)
@log_level_option
@log_format_option
@click.pass_context
@options.keys
def serve_predictions(
    context: click.Context,
    follow: str,
    listen: str,
    http: str,
    every_s: float,
    max_staleness_s: float,
    settings: Iterable[str],
    log_level: str,
    log_format: LogFormat,
    keys: "CurveKeys | None",
) -> None:
    """Answer queries with the newest weights of a daemon elsewhere.

    It speaks the predict protocol and gives the answers of the daemon, with the version and seq of its snapshot. It
    keeps nothing on disk. When the daemon is gone it predicts on with the last weights and says so; it follows the
    daemon again by itself. `--key` is a key that the daemon has in security.follow_clients (or control_clients), and
    `--server-key` the public key of the daemon.

    Environment variables FFSTREAM_SECTION__KEY set the same options as --set. Signals and exit codes are those of
    `ffstream serve`.
    """
    output = prepare_process(context, log_level, log_format)
    config = _load(listen, http, settings)
    from ffstream.daemon.replica import Replica

    replica = Replica(config, follow, keys=keys, every_s=every_s, max_staleness_s=max_staleness_s)
    replica.metrics.output_dropped.set_function(lambda: sum(stream.dropped for stream in output))
    is_json = log_format == "json"
    handle_signals(replica, as_json=is_json)
    _run(replica, quiet=is_json)


def _load(listen: str, http: str, settings: Iterable[str]) -> "Config":
    """The options of a replica. Raises ConfigError, also for one that has no effect here."""
    from ffstream.config import load
    from ffstream.util.option_sources import option_of

    for setting in settings:
        name = setting.partition("=")[0].strip()
        if name in _NOT_HERE or not _is_used(name):
            raise ConfigError(
                f"--set {name} has no effect on a replica",
                hint=f"it has the options of [{'], ['.join(_SECTIONS)}], {' and '.join(_OPTIONS)};"
                " its network is that of the daemon",
            )
    own = (f"listen.predict={json.dumps(listen)}", f"listen.http={json.dumps(http)}")
    # Of a daemon on the same machine, the environment may set options that are not for a replica.
    environment = {variable: text for variable, text in os.environ.items() if _is_used(option_of(variable))}
    return load(None, [*_UNUSED, *own, *settings], environment=environment)


def _is_used(name: str) -> bool:
    return name.partition(".")[0] in _SECTIONS or name in _OPTIONS


def _run(replica: "Replica", *, quiet: bool) -> None:
    service_manager = ServiceManager()
    try:
        service_manager.starting()
        if not replica.start(service_manager.healthy):
            replica.stop()
            return
    except Unavailable as error:
        raise StartBlocked(error.message, hint=error.hint) from error
    try:
        if not quiet:
            click.echo(f"ffstream replica listens: predict {replica.endpoint}  http {replica.http.address}")
        service_manager.serving()
        replica.wait(service_manager.healthy)
    finally:
        service_manager.stopping()
        replica.stop()
