"""`ffstream serve`: the daemon in the foreground.

`endpoints.json` in the state folder says where the daemon with that `pid` listens. It exists while the daemon serves,
and after a kill until the next start. It is renamed into place, so it is always complete.
"""

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

import click
import sdnotify

from ffstream.cli import options
from ffstream.cli.group import SHOW_ERROR
from ffstream.cli.log_format import LOG_FORMATS, LogFormat, json_line, log_error
from ffstream.cli.log_format import configure as configure_log
from ffstream.cli.standard_streams import QueuedStream, queue_output, write_if_taken
from ffstream.errors import StartBlocked, Unavailable
from ffstream.util.durable import fsync

if TYPE_CHECKING:
    from ffstream.daemon.daemon import Daemon

log = logging.getLogger(__name__)

ENDPOINTS = "endpoints.json"
_STDERR = 2
_START_MAX_US = 300_000_000  # TimeoutStartSec in deploy/ffstream@.service
_FORCED = "second signal: exit at once; nothing acked is lost"


log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="FFSTREAM_LOG_LEVEL",
    show_envvar=True,
    help="The log goes to stderr, one line for each event. Lines are dropped and counted while nothing reads it.",
)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="text",
    show_default=True,
    envvar="FFSTREAM_LOG_FORMAT",
    show_envvar=True,
    help="json: each line is one JSON object, and nothing is written to stdout. `jq` and log collectors read it.",
)


class Served(Protocol):
    """What runs in the foreground until a signal: a daemon or a prediction replica."""

    def request_stop(self) -> None:
        """Sets a flag, and returns."""

    def request_reload(self) -> None:
        """Sets a flag to read the clients' keys again, and returns."""


@click.command(
    epilog=options.example(
        "ffstream serve --state STATE", "ffstream serve --config ffstream.toml --set network.preset=conv"
    )
)
@options.config_file
@options.state_folder
@options.settings
@click.option(
    "--standby", is_flag=True, help="Wait while another daemon uses the state folder, and take over when it ends."
)
@click.option(
    "--existing",
    is_flag=True,
    envvar="FFSTREAM_EXISTING",
    show_envvar=True,
    help="Never create a new state: it is an error if the folder is missing or has no journal. Use this for every"
    " start except the first, so that a disk that is not mounted does not look like a first start.",
)
@click.option(
    "--from",
    "start_from",
    metavar="WEIGHTS",
    type=click.Path(path_type=Path),
    help="Start a new stream from these weights: a file that `ffstream export` wrote, the folder of a checkpoint, or"
    " a state folder. Only the weights are taken. Ignored once the stream exists, so restarts can keep the option.",
)
@log_level_option
@log_format_option
@click.pass_context
def serve(
    context: click.Context,
    file: Path | None,
    state: Path | None,
    settings: Iterable[str],
    standby: bool,
    existing: bool,
    start_from: Path | None,
    log_level: str,
    log_format: LogFormat,
) -> None:
    """Run the daemon in the foreground.

    SIGTERM and Ctrl-C shut it down: it learns what is queued, writes a checkpoint and exits with code 0. A second
    signal ends it at once. SIGHUP reads the clients' keys again; it does not stop the daemon, also when a terminal
    closes.

    \b
    Exit codes:
      0   stopped on request
      1   failed; the log says why. A restart recovers all acked samples
      2   an option, key file or permission is wrong; a restart does not help
      75  cannot start now, but a later start with the same options may succeed: the port or the state
          folder is in use, an address does not exist yet, a disk is missing, full or read-only, or no
          file descriptors are left
    """
    output = prepare_process(context, log_level, log_format)
    gc.disable()  # it would take a fifth of the start; the daemon enables it
    from ffstream.config import load
    from ffstream.daemon import preflight

    config = load(file, options.with_state(settings, state))
    preflight.check(config)  # before imports that take seconds
    from ffstream.daemon.daemon import Daemon

    daemon = Daemon(config, existing=existing, start_from=start_from)
    daemon.metrics.output_dropped.set_function(lambda: sum(stream.dropped for stream in output))
    is_json = log_format == "json"
    handle_signals(daemon, as_json=is_json)
    _run(daemon, config.state / ENDPOINTS, standby=standby, quiet=is_json)


def prepare_process(context: click.Context, log_level: str, log_format: LogFormat) -> list[QueuedStream]:
    """Signals, rights of new files, output and log of a process that serves. Returns its output streams."""
    # PID 1 ignores signals without a handler. Nothing has started yet, so there is nothing to shut down.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # the default action would end the process
    os.umask(0o077)  # files and sockets are for this user only
    is_json = log_format == "json"
    output = queue_output(_dropped_line) if is_json else queue_output()
    configure_log(log_format, log_level, sys.stderr)
    if is_json:
        context.meta[SHOW_ERROR] = log_error
    return output


def _dropped_line(count: int) -> str:
    return json_line("warning", "lines dropped", count=count)


def handle_signals(served: Served, *, as_json: bool) -> None:
    """The first SIGTERM or SIGINT stops it, a second one ends the process at once; SIGHUP reads the keys again."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, exit_at_once)
        signal.signal(signal.SIGINT, exit_at_once)
        served.request_stop()

    def exit_at_once(number: int, frame: FrameType | None) -> None:
        write_if_taken(_STDERR, (json_line("warning", _FORCED) if as_json else f"{_FORCED}\n").encode())
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, lambda number, frame: served.request_reload())


class ServiceManager:
    """Notifies systemd, if the daemon was started by it: see sd_notify(3)."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        self._watchdog_us = os.environ.get("WATCHDOG_USEC")  # longest time between two notifications

    def standing_by(self) -> None:
        self._notifier.notify("READY=1\nSTATUS=standing by for another daemon\nWATCHDOG=1")

    def starting(self) -> None:
        """A standby was already ready. The start now takes as long as any other start."""
        if self._watchdog_us:
            self._notifier.notify(f"STATUS=starting\nWATCHDOG=1\nWATCHDOG_USEC={_START_MAX_US}")

    def serving(self) -> None:
        limit = f"\nWATCHDOG_USEC={self._watchdog_us}" if self._watchdog_us else ""
        self._notifier.notify(f"READY=1\nSTATUS=serving{limit}")

    def healthy(self) -> None:
        self._notifier.notify("WATCHDOG=1")

    def stopping(self) -> None:
        self._notifier.notify("STOPPING=1")


def _run(daemon: "Daemon", endpoints: Path, *, standby: bool, quiet: bool) -> None:
    service_manager = ServiceManager()
    try:
        if standby and not daemon.stand_by(service_manager.standing_by):
            return
        service_manager.starting()
        daemon.start()
    except Unavailable as error:  # for example, the disk is full
        raise StartBlocked(error.message, hint=error.hint) from error
    try:
        listens = daemon.reports.status()["endpoints"]
        try:
            _write(endpoints, json.dumps({"pid": os.getpid(), **listens}) + "\n")
        except OSError as error:  # the disk is full: predictions still work
            log.warning("cannot be written path=%s error=%s", endpoints, error.strerror)
        if not quiet:  # the log says it, too
            click.echo(
                "ffstream listens: learn {learn}  predict {predict}  control {control}  page http://{http}/".format(
                    **listens
                )
            )
        service_manager.serving()
        daemon.wait(service_manager.healthy)
    finally:
        service_manager.stopping()
        with suppress(OSError):  # the file system may have become read-only
            endpoints.unlink(
                missing_ok=True
            )  # while this daemon has the lock: later another daemon may have written it
        daemon.stop()


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    fsync(part)  # otherwise power loss may leave an empty file
    part.replace(path)
