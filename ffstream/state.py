"""The state folder, and whose it is: one process at a time has it.

The locks are the kernel's (flock). They go with the process, however that ends, and leave nothing to clean up. One is
on the folder, the other on the file `lock` in it, for file systems that lock no folders. That one alone would not do:
a lock holds a file, not its name, and when somebody deletes the file the next daemon makes and locks another.
"""

import fcntl
import logging
import os
from pathlib import Path

from ffstream.durable import make_folder
from ffstream.errors import ConfigError
from ffstream.keys import check_folder

log = logging.getLogger(__name__)


class StateLock:
    """On a folder, which is made when it is not there at first; one that vanishes later is not made anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = False
        self._held: list[int] = []  # descriptors

    def take(self) -> bool:
        """Whether this process has it now; another one may. Raises ConfigError for a folder that cannot be used."""
        if self._held:
            return True
        try:
            if not self._made:
                make_folder(self._folder, 0o700)
                self._made = True
            others_may_read = check_folder(self._folder, of_keys=False)
            self._lock_folder()
            self._lock_file()
        except BlockingIOError:
            self.release()
            return False
        except OSError as error:
            self.release()
            raise ConfigError(
                f"{self._folder}: {error.strerror}", hint="--state names a folder to write to"
            ) from error
        if others_may_read:
            log.warning("others may read the state folder path=%s hint=chmod 700", self._folder)
        return True

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
