"""`ffstream serve` in a process that kills itself at a failpoint. The package contains nothing for this purpose.

    python -m tests.harness.crashing.instrumented serve …     one daemon
    python -m tests.harness.crashing.instrumented             a fork server: one daemon after another

Importing torch takes seconds, a fork takes milliseconds. The fork server has imported everything and has one thread
and no socket; each daemon is a fork of it. It reads one JSON object a line. An order to start a daemon holds
`arguments`, `log` and the fields of `Instrumentation`; the answer holds its `pid`. A `null` asks for the `code` with
which the daemon ended, and waits for the end. When standard input ends, the fork server kills the daemon that still
runs, and ends. What a killed daemon leaves running becomes a child of the fork server, where it can be found.

In the first form the environment variable FFSTREAM_INSTRUMENTATION, a JSON object, holds the fields of
`Instrumentation`.
"""

import ctypes
import json
import os
import signal
import sqlite3
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

VARIABLE = "FFSTREAM_INSTRUMENTATION"
_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h


@dataclass(frozen=True)
class Instrumentation:
    """What differs from an ordinary daemon: where it kills itself, and how often SQLite checkpoints its WAL."""

    failpoint: str | None = None  # None: it does not kill itself
    occurrence: int = 1  # it kills itself when it reaches the failpoint for this time, counted from 1
    wal_pages: int = 0  # SQLite copies the WAL into the database after so many pages; 0: as the package says

    def install(self) -> None:
        """Takes effect from now on, in this process."""
        if self.failpoint is not None:
            self._kill_at(self.failpoint)
        if self.wal_pages:
            self._checkpoint_wal_early()

    def _kill_at(self, failpoint: str) -> None:
        from ffstream.util import failpoints

        occurrences = count(1)

        def watcher(reached: str) -> None:
            if reached == failpoint and next(occurrences) >= self.occurrence:
                os.kill(os.getpid(), signal.SIGKILL)

        failpoints.watch(watcher)

    def _checkpoint_wal_early(self) -> None:
        from ffstream.journal import database

        connect = database.connect

        def connect_with_pragma(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
            connection = connect(path, read_only=read_only)
            if not read_only:
                connection.execute(f"PRAGMA wal_autocheckpoint = {self.wal_pages}")
            return connection

        database.connect = connect_with_pragma


def serve(arguments: list[str]) -> None:
    """The command line of the package. Raises SystemExit."""
    from ffstream.cli import main

    main(arguments, prog_name="ffstream")


def fork_server() -> None:
    """Starts a daemon per order. Returns in the forked processes too, so that they end as any process does."""
    import torch

    import ffstream.daemon.daemon  # noqa: F401 - imported here, so that no fork has to
    from ffstream.ff import kernels

    torch.set_num_threads(1)
    kernels.prepare()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise SystemExit(f"the fork server has {threads} threads; a fork would have only one of them")
    ended: dict[int, int] = {}  # the status of each child, by pid
    signal.signal(signal.SIGCHLD, lambda *_: _reap(ended))
    child = 0
    _answer({"pid": os.getpid()})
    for line in sys.stdin:
        order = json.loads(line)
        if order is None:
            _answer({"code": os.waitstatus_to_exitcode(_wait(child, ended))})
            child = 0
            continue
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run_daemon(order)
            return
        _answer({"pid": child})
    if child:
        os.kill(child, signal.SIGKILL)


def _reap(ended: dict[int, int]) -> None:
    """Waits for every child that has ended, as init does: other processes must not find it as a zombie."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]


def _wait(child: int, ended: dict[int, int]) -> int:
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:  # the signal handler was first
        return ended.pop(child)


def _answer(fields: dict[str, Any]) -> None:
    print(json.dumps(fields), flush=True)


def _run_daemon(order: dict[str, Any]) -> None:
    log = os.open(order.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    arguments = order.pop("arguments")
    Instrumentation(**order).install()
    serve(arguments)


if __name__ == "__main__":
    if sys.argv[1:]:
        Instrumentation(**json.loads(os.environ.get(VARIABLE, "{}"))).install()
        serve(sys.argv[1:])
    else:
        fork_server()
