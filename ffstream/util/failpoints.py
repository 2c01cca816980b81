"""Failpoints: named places just before and just after each step that a promise depends on.

Code calls `reached(name)` there, which does nothing by default. A test installs a function with `watch` to kill the
process at a failpoint and see what it leaves behind.
"""

from collections.abc import Callable
from typing import Final

FAILPOINTS: Final = (
    "commit.before",  # messages are checked; nothing is stored
    "commit.after",  # on disk, not acked
    "ack.before",
    "ack.after",
    "pass_on.before",  # a stage has computed activities
    "pass_on.after",  # the next stage has them; this one has not learned
    "learned",  # the last stage has learned
    "sleep.before",  # the stream is quiet; nothing is on disk
    "sleep.recorded",  # the decision to sleep is on disk; nothing of it is learned
    "cut.complete",  # every part of a checkpoint is there, nothing of it on disk
    "checkpoint.write.after",
    "checkpoint.fsync.after",
    "checkpoint.rename.after",
    "checkpoint.manifest.before",
    "checkpoint.manifest.after",
    "checkpoint.remove.before",  # before an old checkpoint is deleted
    "trim.before",  # before rows that no checkpoint needs are deleted
    "trim.after",
    "rollback.before",  # learning has ended; nothing is changed on disk
    "rollback.skipped",  # the range to skip is on disk
    "rollback.discarded",  # the checkpoints beyond the target are deleted
)


def _ignore(name: str) -> None:
    """The default watcher."""


_watcher: Callable[[str], object] = _ignore


def reached(name: str) -> None:
    """Called by the code that passes the failpoint, on its own thread."""
    _watcher(name)


def watch(watcher: Callable[[str], object] | None) -> None:
    """Calls `watcher` at every failpoint from now on, on the thread that passes it. None removes the watcher."""
    global _watcher  # noqa: PLW0603 - there is one per process, as there is one death
    _watcher = watcher or _ignore
