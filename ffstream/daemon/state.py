"""The state folder and its lock: one process at a time may use it.

The locks are the kernel's (flock). They end with the process, however it ends, and leave nothing to clean up. One is
on the folder. The other is on the file `lock` in it, for file systems that cannot lock folders. The file alone is not
enough: a lock belongs to the file, not to its name, so if someone deletes it, the next daemon locks a new one.
"""

import fcntl
import logging
import os
from pathlib import Path

from ffstream.errors import ConfigError, StartBlocked
from ffstream.journal.schema import JOURNAL
from ffstream.security.keys import check_folder
from ffstream.util.durable import make_folder
from ffstream.util.os_errors import path_error

log = logging.getLogger(__name__)


def has_journal(folder: Path) -> bool:
    """Whether a daemon has started a journal there: SQLite's file is empty before. Raises OSError."""
    try:
        return (folder / JOURNAL).stat().st_size > 0
    except FileNotFoundError:
        return False


def is_missing(path: Path) -> StartBlocked:
    """The error when `--existing` refuses to create a new state."""
    return StartBlocked(
        f"{path} does not exist, and --existing refuses to create a new state",
        hint="mount its disk or restore it; for a first start, leave --existing out (or FFSTREAM_EXISTING=false)",
    )


class StateLock:
    """Lock of a folder. It is created if it does not exist at first, but not again if it vanishes later.

    With `existing` it is never created. `made` says whether this object created it.
    """

    def __init__(self, folder: Path, *, existing: bool = False) -> None:
        self._folder = folder
        self._existing = existing
        self._found = False
        self.made = False
        self._held: list[int] = []  # descriptors

    def take(self) -> bool:
        """Tries to lock; False when another process has it. Raises ConfigError for a folder that cannot be used, and
        StartBlocked for one that may be usable later.
        """
        if self._held:
            return True
        try:
            self._find()
            others_may_read = check_folder(self._folder, group_may_write=True)
            self._lock_folder()
            self._lock_file()
        except BlockingIOError:
            self.release()
            return False
        except OSError as error:
            self.release()
            raise path_error("--state", self._folder, error) from error
        if others_may_read:
            log.warning("others may read the state folder path=%s hint=%s", self._folder, "chmod 700")
        return True

    def _find(self) -> None:
        if self._found:
            return
        if not self._folder.exists():
            if self._existing:
                raise is_missing(self._folder)
            try:
                make_folder(self._folder, 0o700)
            except FileNotFoundError as error:  # a parent exists and takes no folders, as in /proc
                raise ConfigError(
                    f"{self._folder}: {error.strerror}: no folder can be created on that file system",
                    hint="name a folder on another file system with --state",
                ) from error
            self.made = True
        self._found = True

    def _lock_folder(self) -> None:
        self._held.append(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))
        try:
            self._lock()
        except BlockingIOError:
            raise
        except OSError as error:  # on a network file system, for example
            log.debug("cannot lock the folder itself path=%s error=%s", self._folder, error.strerror)

    def _lock_file(self) -> None:
        # Do not follow a symbolic link, do not truncate: the file may be someone else's.
        self._held.append(os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        self._lock()

    def _lock(self) -> None:
        fcntl.flock(self._held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Unlocks it for another process."""
        while self._held:
            os.close(self._held.pop())
