"""`ffstream serve`: the daemon in the foreground.

`endpoints.json` in the state folder says where the daemon with that `pid` listens. It is whole whenever it is there;
it is there while the daemon serves, and after a kill until the next start.
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
from typing import TYPE_CHECKING

import click
import sdnotify

from ffstream.cli import options
from ffstream.cli.streams import queue_output, write_if_taken
from ffstream.errors import StartBlocked, Unavailable
from ffstream.util.durable import fsync

if TYPE_CHECKING:
    from ffstream.daemon.daemon import Daemon

log = logging.getLogger(__name__)

ENDPOINTS = "endpoints.json"
_STDERR = 2
_START_MAX_US = 300_000_000  # what deploy/ffstream@.service gives a start
_FORCED = b"second signal: exit at once; nothing acked is lost\n"


@click.command()
@options.config_file
@options.state_folder
@options.settings
@click.option(
    "--standby", is_flag=True, help="Wait while another daemon has the state folder, and take over when it ends."
)
@click.option(
    "--existing",
    is_flag=True,
    envvar="FFSTREAM_EXISTING",
    show_envvar=True,
    help="Refuse to create a new state: a folder that is missing or holds no journal is an error. For every start but"
    " the first, so that a disk that is not mounted is not taken for a first start.",
)
@click.option(
    "--from",
    "start_from",
    metavar="WEIGHTS",
    type=click.Path(path_type=Path),
    help="Begin a new stream from these weights: a file that `ffstream export` wrote, a checkpoint's folder or a"
    " state folder. Only the weights are taken. Ignored once the stream exists, so a restart needs no other options.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The log goes to stderr, one line an event. Lines are dropped and counted while nobody reads it.",
)
def serve(
    file: Path | None,
    state: Path | None,
    settings: Iterable[str],
    standby: bool,
    existing: bool,
    start_from: Path | None,
    log_level: str,
) -> None:
    """Run the daemon in the foreground.

    SIGTERM and Ctrl-C stop it in order: learn what is queued, checkpoint, exit code 0. A second one exits at once.
    SIGHUP reads the clients' keys again and stops nothing, also when a terminal closes.

    \b
    Exit codes:
      0   stopped on request
      1   failed: the log says why; a restart recovers to the last sample acked
      2   a wrong option, key file or permission: a restart does not help
      75  cannot start now, but may later with the same options: the port or the state folder is in use,
          an address is not there yet, a disk is missing, full or read-only, no descriptors are left
    """
    # As PID 1 it would be deaf until it serves. Nothing is begun yet, and what a finalizer raises would be lost.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # its default ends the process, which passes for a stop
    os.umask(0o077)  # what it makes is for its user alone, sockets too
    output = queue_output()
    gc.disable()  # a fifth of the start. The daemon enables it.
    from ffstream.config import load
    from ffstream.daemon import preflight

    config = load(file, options.with_state(settings, state))
    preflight.check(config)  # before seconds of imports
    from ffstream.daemon.daemon import Daemon

    logging.basicConfig(
        stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    daemon = Daemon(config, existing=existing, start_from=start_from)
    daemon.metrics.output_dropped.set_function(lambda: sum(stream.dropped for stream in output))
    _handle_signals(daemon)
    _run(daemon, config.state / ENDPOINTS, standby=standby)


def _handle_signals(daemon: "Daemon") -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, exit_at_once)
        signal.signal(signal.SIGINT, exit_at_once)
        daemon.request_stop()

    def exit_at_once(number: int, frame: FrameType | None) -> None:
        write_if_taken(_STDERR, _FORCED)
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, lambda number, frame: daemon.request_reload())


class _ServiceManager:
    """systemd, if it is there: see sd_notify(3)."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        self._watchdog_us = os.environ.get("WATCHDOG_USEC")  # within which it wants to hear that all is well

    def hears_that_it_stands_by(self) -> None:
        self._notifier.notify("READY=1\nSTATUS=stands by for another daemon\nWATCHDOG=1")

    def hears_that_it_starts(self) -> None:
        """It may have been ready, standing by; what comes now takes as long as any start."""
        if self._watchdog_us:
            self._notifier.notify(f"STATUS=starts\nWATCHDOG=1\nWATCHDOG_USEC={_START_MAX_US}")

    def hears_that_it_serves(self) -> None:
        limit = f"\nWATCHDOG_USEC={self._watchdog_us}" if self._watchdog_us else ""
        self._notifier.notify(f"READY=1\nSTATUS=serves{limit}")

    def hears_that_all_is_well(self) -> None:
        self._notifier.notify("WATCHDOG=1")

    def hears_that_it_stops(self) -> None:
        self._notifier.notify("STOPPING=1")


def _run(daemon: "Daemon", endpoints: Path, *, standby: bool) -> None:
    service_manager = _ServiceManager()
    try:
        if standby and not daemon.stand_by(service_manager.hears_that_it_stands_by):
            return
        service_manager.hears_that_it_starts()
        daemon.start()
    except Unavailable as error:  # no room on the disk, for example
        raise StartBlocked(error.message, hint=error.hint) from error
    try:
        listens = daemon.status()["endpoints"]
        try:
            _write_whole(endpoints, json.dumps({"pid": os.getpid(), **listens}) + "\n")
        except OSError as error:  # no room: it predicts all the same, and says what is short
            log.warning("not written path=%s error=%s", endpoints, error.strerror)
        click.echo(
            "ffstream listens: learn {learn}  predict {predict}  control {control}  page http://{http}/".format(
                **listens
            )
        )
        service_manager.hears_that_it_serves()
        daemon.wait(service_manager.hears_that_all_is_well)
    finally:
        service_manager.hears_that_it_stops()
        with suppress(OSError):  # a file system that became read-only
            endpoints.unlink(missing_ok=True)  # before the lock is released: later it may be another daemon's
        daemon.stop()


def _write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    fsync(part)  # or power loss may leave the name, and nothing in the file
    part.replace(path)
