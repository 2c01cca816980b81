"""The state folder, and whose it is: one process at a time has it.

The lock is the kernel's (flock). It goes with the process, however that ends, and leaves nothing to clean up.
"""

import fcntl
import logging
import os
from pathlib import Path
from typing import IO

from ffstream.durable import make_folder
from ffstream.errors import ConfigError
from ffstream.keys import check_folder

log = logging.getLogger(__name__)


class StateLock:
    """On a folder, which is made when it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def take(self) -> bool:
        """Whether this process has it now; another one may. Raises ConfigError for a folder that cannot be used."""
        if self._file is not None:
            return True
        try:
            make_folder(self._folder, 0o700)
            others_may_read = check_folder(self._folder, of_keys=False)
            file = self._open()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: {error.strerror}", hint="--state names a folder to write to"
            ) from error
        if others_may_read:
            log.warning("others may read the state folder path=%s hint=chmod 700", self._folder)
        self._file = file
        return True

    def _open(self) -> IO[str]:
        # Neither through a link nor emptied: what is there may be somebody else's.
        return os.fdopen(os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")

    def release(self) -> None:
        """Lets another process have it."""
        if self._file is not None:
            self._file.close()
            self._file = None
