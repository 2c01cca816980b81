"""What the process may run out of: room on the disk, memory, descriptors.

Looked at once a second, with room to spare: when the daemon refuses samples there is still enough for predictions,
for checkpoints and for the deletion of what they no longer need. It goes on by itself when the resource is back.
"""

import ctypes
import logging
import os
import resource
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from ffstream.config import Limits
from ffstream.errors import DiskFull, MemoryFull, StartBlocked, TooManyFiles, Unavailable
from ffstream.util.os_errors import no_files_hint

log = logging.getLogger(__name__)

_FILES_FREE = 0.9  # share of the descriptors in use from which on samples are refused
_FILES_OF_A_START = 64  # more than the sockets of a daemon take before it is ready
_MEMORY_SHARE = 0.9  # of the memory there is, when no limit is set
_GROUPS = Path("/sys/fs/cgroup")


class Resources:
    """Looks at what is left. For one thread."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._disk_min_free = limits.disk_min_free_bytes
        self._memory_max = limits.memory_max_bytes or int(_MEMORY_SHARE * memory_there_is())
        self._process = psutil.Process()

    def lacking(self, journal_free_bytes: int = 0) -> Unavailable | None:
        """What is short now, if anything is. Samples take what is free in the journal before they take the disk."""
        try:
            return self._lacking_disk(journal_free_bytes) or self._lacking_memory() or self._lacking_files()
        except OSError as error:  # even to look takes a descriptor
            return TooManyFiles(f"cannot look at resources: {error}", hint="raise the limit on open files")

    def _lacking_disk(self, journal_free_bytes: int) -> Unavailable | None:
        free = shutil.disk_usage(self._folder).free + journal_free_bytes
        if free >= self._disk_min_free:
            return None
        return DiskFull(
            f"{free >> 20} MiB are free at {self._folder} and in the journal",
            hint=f"free disk space, at least {self._disk_min_free >> 20} MiB (limits.disk_min_free_bytes)",
        )

    def _lacking_memory(self) -> Unavailable | None:
        held = self._process.memory_info().rss
        if held < self._memory_max:
            return None
        return MemoryFull(f"the daemon holds {held >> 20} MiB", hint="slow down; limits.memory_max_bytes")

    def _lacking_files(self) -> Unavailable | None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = self._process.num_fds()
        if used < _FILES_FREE * limit:
            return None
        return TooManyFiles(f"{used} of {limit} files are open", hint="fewer connections, or raise the limit")


def memory_there_is(groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes: the machine's, or what a container or a unit may have of them (Linux control groups, either version)."""
    limits = [psutil.virtual_memory().total]
    lines = own.read_text(encoding="utf-8").splitlines() if own.exists() else []
    for group in {line.split(":", 2)[2].lstrip("/") for line in lines}:
        for root, name in ((groups, "memory.max"), (groups / "memory", "memory.limit_in_bytes")):
            for folder in (root / group, *(root / group).parents):
                with suppress(OSError, ValueError):  # there is none, or it is "max"
                    limits.append(int((folder / name).read_text(encoding="utf-8")))
    return min(limits)


def raise_file_limit() -> None:
    """As many descriptors as the system allows: each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:  # some systems name no hard limit and accept none
        log.warning("open files limit unchanged soft=%d error=%s", soft, error)


def check_free_files(count: int = _FILES_OF_A_START) -> None:
    """Raises StartBlocked if so many files cannot be opened now: libzmq then aborts the process."""
    with ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            raise StartBlocked(f"cannot open sockets: {error.strerror}", hint=no_files_hint(error)) from error


def return_free_memory() -> None:
    """Gives the system back what nobody uses: buffers of a crowd lie between what stays, and glibc keeps them all.

    Takes milliseconds. Does nothing where the C library is another one.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
