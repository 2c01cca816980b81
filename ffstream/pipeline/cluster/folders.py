"""Folders of clusters on this machine, in the folder for temporary files.

A folder is in use if and only if a process holds a lock on it. A keeper that is killed leaves its folder behind, so
each one that starts, and each daemon that has ended one, removes those that are not in use.
"""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

_PREFIX: Final = "ffs-cluster-"  # short, because it is part of the addresses of sockets
_PATIENCE_S: Final = 3.0  # processes that are about to end may write meanwhile


def make() -> str:
    """A new folder, in use until this process ends."""
    remove_unused()
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        if _lock(folder) is not None and Path(folder).is_dir():  # else another process has just removed it
            return folder


def remove(folder: str | Path) -> None:
    """Removes a folder, as far as possible."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists() or time.monotonic() > deadline:
            return
        time.sleep(0.05)


def remove_unused() -> None:
    """Removes the folders of clusters that have been killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        descriptor = _lock(folder)
        if descriptor is not None:
            remove(folder)
            os.close(descriptor)


def _lock(folder: str | Path) -> int | None:
    """A descriptor that holds the lock, which the children of this process do not inherit. None: it is not free."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
