"""The state folder, and whose it is: one process at a time has it.

The locks are the kernel's (flock). They go with the process, however that ends, and leave nothing to clean up. One is
on the folder, the other on the file `lock` in it, for file systems that lock no folders. That one alone would not do:
a lock holds a file, not its name, and when somebody deletes the file the next daemon makes and locks another.
"""

import fcntl
import logging
import os
from pathlib import Path

from ffstream.errors import ConfigError, StartBlocked
from ffstream.security.keys import check_folder
from ffstream.util.durable import make_folder
from ffstream.util.os_errors import path_error

log = logging.getLogger(__name__)

JOURNAL = "journal.sqlite"


def has_journal(folder: Path) -> bool:
    """Whether a daemon has begun a journal there: SQLite's file is empty until then. Raises OSError."""
    try:
        return (folder / JOURNAL).stat().st_size > 0
    except FileNotFoundError:
        return False


def is_missing(path: Path) -> StartBlocked:
    """The error where `--existing` refuses to begin with a new state."""
    return StartBlocked(
        f"{path} does not exist, and --existing refuses to create a new state",
        hint="mount its disk or restore it; for a first start, leave --existing out (or FFSTREAM_EXISTING=false)",
    )


class StateLock:
    """On a folder, which is made when it is not there at first; one that vanishes later is not made anew.

    With `existing` it is never made. `made` says whether this object made it.
    """

    def __init__(self, folder: Path, *, existing: bool = False) -> None:
        self._folder = folder
        self._existing = existing
        self._found = False
        self.made = False
        self._held: list[int] = []  # descriptors

    def take(self) -> bool:
        """Whether this process has it now; another one may. Raises ConfigError for a folder that cannot be used, and
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
            log.warning("others may read the state folder path=%s hint=chmod 700", self._folder)
        return True

    def _find(self) -> None:
        if self._found:
            return
        if not self._folder.exists():
            if self._existing:
                raise is_missing(self._folder)
            try:
                make_folder(self._folder, 0o700)
            except FileNotFoundError as error:  # those above it were made, or are there: /proc
                raise ConfigError(
                    f"{self._folder}: {error.strerror}: that file system holds no new folders",
                    hint="name a folder on another one with --state",
                ) from error
            self.made = True
        self._found = True

    def _lock_folder(self) -> None:
        self._held.append(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))
        try:
            self._lock()
        except BlockingIOError:
            raise
        except OSError as error:  # a network file system's, for example
            log.debug("the folder itself is not locked path=%s error=%s", self._folder, error.strerror)

    def _lock_file(self) -> None:
        # Neither through a link nor emptied: what is there may be somebody else's.
        self._held.append(os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        self._lock()

    def _lock(self) -> None:
        fcntl.flock(self._held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Lets another process have it."""
        while self._held:
            os.close(self._held.pop())
