"""The public keys that a socket accepts: those in the `*.key` files of a folder, kept up to date.

A file that is invalid, incomplete or writable by other users is ignored, and read again when it changes. A folder
that other users may write into counts as empty.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ffstream.errors import ConfigError, StartBlocked
from ffstream.security.keys import PUBLIC, check_folder, load_client_key

log = logging.getLogger(__name__)

_POLL_S = 1.0  # a file that is written in place does not change the time of its folder
_TICK_NS = 100_000_000  # file times are not finer than the kernel's clock


class _File(NamedTuple):
    """Differs when the file, or who may write to it, has changed. The modification time alone can be set back."""

    inode: int
    size: int
    mode: int
    modified_ns: int
    changed_ns: int


class Keyring:
    """The accepted keys. `accepted` is replaced as a whole, so any thread may read it without a lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accepted: frozenset[str] = frozenset()
        self._known: Mapping[str, tuple[_File, str | None]] = {}
        self._folder_ns: int | None = None
        self._polled_at = 0.0
        self._is_unusable = False
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self, *, now: bool = False) -> None:
        """Reads the keys again if the folder has changed, and once a second or `now` if a file has.

        Never raises OSError.
        """
        with self._lock:
            time_s = time.monotonic()
            folder_ns = self._changed_ns()
            is_same = folder_ns is not None and folder_ns == self._folder_ns
            if is_same and time_s - self._polled_at < _POLL_S and not now:
                return
            self._polled_at = time_s
            # Another change within the same tick would leave the same time, so do not rely on a recent one.
            is_settled = folder_ns is not None and time.time_ns() - folder_ns > _TICK_NS
            self._folder_ns = folder_ns if is_settled else None
            self._read()

    def _changed_ns(self) -> int | None:
        try:
            return self.folder.stat().st_ctime_ns
        except OSError:
            return None

    def _read(self) -> None:
        found: dict[str, tuple[_File, str | None]] = {}
        try:
            check_folder(self.folder)
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(PUBLIC):
                        self._read_file(entry, found)
        except (OSError, ConfigError) as error:
            if not self._is_unusable:
                reason = error.strerror if isinstance(error, OSError) else error.message
                log.error("no keys accepted path=%s error=%s", self.folder, reason)
            self._is_unusable = True
            found = {}
        else:
            self._is_unusable = False
        accepted = frozenset(key for _, key in found.values() if key is not None)
        if accepted != self.accepted:
            log.info("keys changed path=%s accepted=%d", self.folder, len(accepted))
        self._known, self.accepted = found, accepted

    def _read_file(self, entry: os.DirEntry[str], found: dict[str, tuple[_File, str | None]]) -> None:
        try:
            status = entry.stat()  # of the target, if it is a link
        except OSError:
            return  # deleted in the meantime
        file = _File(status.st_ino, status.st_size, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
        known = self._known.get(entry.name)
        if known is not None and known[0] == file:
            found[entry.name] = known
            return
        try:
            key = load_client_key(Path(entry.path)).decode("ascii")
        except StartBlocked as error:  # for example no free descriptor: the next poll reads it again
            log.warning("key not read yet error=%s", error.message)
            return
        except ConfigError as error:
            log.warning("key ignored error=%s", error.message)
            key = None
        found[entry.name] = (file, key)
