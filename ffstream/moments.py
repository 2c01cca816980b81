"""Moments at which a sudden death tells most: just before and just after each step that a promise rests on.

The code says that it passes one, and nothing else happens. Who wants to see what a death there leaves behind, puts a
function in the way with `watch`.
"""

from collections.abc import Callable
from typing import Final

MOMENTS: Final = (
    "commit.before",  # messages are checked; nothing is stored
    "commit.after",  # on disk, not acked
    "ack.before",
    "ack.after",
    "hand_on.before",  # a stage has computed activities
    "hand_on.after",  # the next stage has them; this one has not learned
    "learned",  # the last stage has learned
    "cut.complete",  # every part of a checkpoint is there, nothing of it on disk
    "checkpoint.write.after",
    "checkpoint.fsync.after",
    "checkpoint.rename.after",
    "checkpoint.manifest.before",
    "checkpoint.manifest.after",
    "checkpoint.remove.before",  # the oldest one gives way
    "trim.before",  # rows that no checkpoint needs are deleted
    "trim.after",
    "rollback.before",  # learning has ended; nothing is changed on disk
    "rollback.skipped",  # what is to be skipped is on disk
    "rollback.discarded",  # the checkpoints beyond it are gone
)


def _pass_by(moment: str) -> None:
    """What happens at a moment when nobody watches."""


_watcher: Callable[[str], object] = _pass_by


def reached(moment: str) -> None:
    """Called by whoever passes a moment, on its own thread."""
    _watcher(moment)


def watch(watcher: Callable[[str], object] | None) -> None:
    """Calls that at every moment from now on, on the thread that passes it; None: nobody watches any more."""
    global _watcher  # noqa: PLW0603 - one process dies once
    _watcher = watcher or _pass_by
