"""`ffstream serve` in a process that dies at a failpoint, by its own hand. The product knows nothing of this.

    python -m tests.harness.crashing.victim serve …          one life
    python -m tests.harness.crashing.victim                  many lives: a fork server

Importing torch takes seconds, a fork milliseconds. The server has imported everything and has no other thread and no
socket; each life is a fork of it, with a memory of its own. It reads one JSON object a line: an order to start a life
({"arguments": …, "log": …} and the fields of `Death`), or null, which says that the life has ended and asks for
its exit code. When its standard input ends, it ends the life it has.

FFSTREAM_VICTIM, a JSON object, has the fields of `Death` for one life.
"""

import json
import os
import signal
import sqlite3
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

VARIABLE = "FFSTREAM_VICTIM"


@dataclass(frozen=True)
class Death:
    """Kills this process when `failpoint` is passed for the `passing`-th time; None: nothing does."""

    failpoint: str | None = None
    passing: int = 1
    wal_pages: int = 0  # SQLite folds its log into the file after so many; 0: when the product says

    def prepare(self) -> None:
        """From now on."""
        from ffstream.journal import schema
        from ffstream.util import failpoints

        if self.failpoint is not None:
            passings = count(1)

            def watcher(reached: str) -> None:
                if reached == self.failpoint and next(passings) >= self.passing:
                    os.kill(os.getpid(), signal.SIGKILL)

            failpoints.watch(watcher)
        if self.wal_pages:
            connect = schema.connect

            def connect_and_fold_early(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
                connection = connect(path, read_only=read_only)
                if not read_only:
                    connection.execute(f"PRAGMA wal_autocheckpoint = {self.wal_pages}")
                return connection

            schema.connect = connect_and_fold_early


def serve(arguments: list[str]) -> None:
    """The product's own command line. Raises SystemExit."""
    from ffstream.cli import main

    main(arguments, prog_name="ffstream")


def fork_server() -> None:
    """Returns in the children too, after what they were for: so they end as any process does."""
    import torch

    import ffstream.daemon.daemon  # noqa: F401 - what takes long
    from ffstream.ff import kernels

    torch.set_num_threads(1)
    kernels.prepare()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise SystemExit(f"{threads} threads: a fork of this would lack all but one of them")
    child = 0
    _say({"pid": os.getpid()})
    for line in sys.stdin:
        order = json.loads(line)
        if order is None:
            _say({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})
            child = 0
            continue
        child = os.fork()
        if child == 0:
            _live(order)
            return
        _say({"pid": child})
    if child:
        os.kill(child, signal.SIGKILL)


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def _live(order: dict[str, Any]) -> None:
    log = os.open(order.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stands_for in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, stands_for)
    arguments = order.pop("arguments")
    Death(**order).prepare()
    serve(arguments)


if __name__ == "__main__":
    if sys.argv[1:]:
        Death(**json.loads(os.environ.get(VARIABLE, "{}"))).prepare()
        serve(sys.argv[1:])
    else:
        fork_server()
