"""The keys that a socket admits: those in the `*.key` files of a folder, as it is now.

A file that is broken, half written or open to others counts as absent, and is read again when it changes. A folder
into which others may write counts as empty.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ffstream.errors import ConfigError, StartBlocked
from ffstream.security.keys import PUBLIC, check_folder, load_admitted

log = logging.getLogger(__name__)

_LOOK_S = 1.0  # a file written in place does not change its folder's time
_TICK_NS = 100_000_000  # file times are no finer than the kernel's clock


class _File(NamedTuple):
    """What changes when a file does, or who may write to it. The time of modification can be set back."""

    inode: int
    size: int
    mode: int
    modified_ns: int
    changed_ns: int


class Keyring:
    """`admitted` is replaced whole: any thread may read it without a lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.admitted: frozenset[str] = frozenset()
        self._known: Mapping[str, tuple[_File, str | None]] = {}
        self._folder_ns: int | None = None
        self._looked_at = 0.0
        self._is_lost = False
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self, *, now: bool = False) -> None:
        """Looks whether the folder or, once a second or `now`, any of its files has changed. Never raises OSError."""
        with self._lock:
            time_s = time.monotonic()
            folder_ns = self._changed_ns()
            is_same = folder_ns is not None and folder_ns == self._folder_ns
            if is_same and time_s - self._looked_at < _LOOK_S and not now:
                return
            self._looked_at = time_s
            # A second change within the same tick would leave the same time: then look again.
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
            if not self._is_lost:
                reason = error.strerror if isinstance(error, OSError) else error.message
                log.error("nobody gets in path=%s error=%s", self.folder, reason)
            self._is_lost = True
            found = {}
        else:
            self._is_lost = False
        admitted = frozenset(key for _, key in found.values() if key is not None)
        if admitted != self.admitted:
            log.info("keys changed path=%s admitted=%d", self.folder, len(admitted))
        self._known, self.admitted = found, admitted

    def _read_file(self, entry: os.DirEntry[str], found: dict[str, tuple[_File, str | None]]) -> None:
        try:
            status = entry.stat()  # of what a link points to
        except OSError:
            return  # gone meanwhile
        file = _File(status.st_ino, status.st_size, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
        known = self._known.get(entry.name)
        if known is not None and known[0] == file:
            found[entry.name] = known
            return
        try:
            key = load_admitted(Path(entry.path)).decode("ascii")
        except StartBlocked as error:  # no descriptor left, for example: the next look reads it again
            log.warning("key not read yet error=%s", error.message)
            return
        except ConfigError as error:
            log.warning("no key, passed over error=%s", error.message)
            key = None
        found[entry.name] = (file, key)
