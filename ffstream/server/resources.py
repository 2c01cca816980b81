"""Measures what the process may run out of: disk space, memory, descriptors.

The limits leave a reserve. When samples are rejected because of a shortage, there is still enough for predictions,
for checkpoints, and for deleting what they no longer need. Samples are accepted again when the shortage is over.
"""

import ctypes
import errno
import logging
import os
import resource
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from ffstream.config import Limits
from ffstream.errors import DiskFull, MemoryFull, StartBlocked, TooManyFiles, Unavailable
from ffstream.util.os_errors import no_files_hint

log = logging.getLogger(__name__)

_FILES_SHARE = 0.9  # of the descriptors in use; beyond it samples are rejected
_FILES_OF_A_START = 64  # more than the sockets of a daemon need until it is ready
_MEMORY_SHARE = 0.9  # of the available memory, when no limit is configured
_CGROUPS = Path("/sys/fs/cgroup")


class Usage(NamedTuple):
    """What was measured last. `disk_free_bytes` includes free space within the journal's file."""

    disk_free_bytes: int
    memory_bytes: int
    memory_max_bytes: int  # at which samples are rejected


class Resources:
    """Finds shortages. For one thread; others may read `usage`, which is None before the first measurement."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self.usage: Usage | None = None
        self._disk_min_free = limits.disk_min_free_bytes
        self.memory_max = limits.memory_max_bytes or int(_MEMORY_SHARE * available_memory())
        self._process = psutil.Process()

    def shortage(self, journal_free_bytes: int = 0) -> Unavailable | None:
        """What is short now, if anything is. Free space within the journal's file counts as disk space."""
        try:
            usage = self.usage = self._measure(journal_free_bytes)
            return self._disk_shortage(usage) or self._memory_shortage(usage) or self._files_shortage()
        except OSError as error:  # measuring needs a descriptor, too
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return TooManyFiles(f"cannot measure resources: {error}", hint="raise the limit on open files")
            return Unavailable(f"cannot measure resources: {error}", hint="is the state folder still there?")

    def _measure(self, journal_free_bytes: int) -> Usage:
        free = shutil.disk_usage(self._folder).free + journal_free_bytes
        return Usage(free, self._process.memory_info().rss, self.memory_max)

    def _disk_shortage(self, usage: Usage) -> Unavailable | None:
        if usage.disk_free_bytes >= self._disk_min_free:
            return None
        return DiskFull(
            f"{usage.disk_free_bytes >> 20} MiB are free at {self._folder} and in the journal",
            hint=f"free disk space, at least {self._disk_min_free >> 20} MiB (limits.disk_min_free_bytes)",
        )

    def _memory_shortage(self, usage: Usage) -> Unavailable | None:
        used = usage.memory_bytes
        if used < usage.memory_max_bytes:
            return None
        return MemoryFull(f"the daemon uses {used >> 20} MiB of memory", hint="slow down; limits.memory_max_bytes")

    def _files_shortage(self) -> Unavailable | None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = self._process.num_fds()
        if used < _FILES_SHARE * limit:
            return None
        return TooManyFiles(f"{used} of {limit} files are open", hint="use fewer connections, or raise the limit")


def available_memory(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes: those of the machine, or the limit of the container or unit (Linux control groups, both versions)."""
    limits = [psutil.virtual_memory().total]
    lines = own.read_text(encoding="utf-8").splitlines() if own.exists() else []
    for group in {line.split(":", 2)[2].lstrip("/") for line in lines}:
        for root, name in ((cgroups, "memory.max"), (cgroups / "memory", "memory.limit_in_bytes")):
            for folder in (root / group, *(root / group).parents):
                with suppress(OSError, ValueError):  # the file is missing, or contains "max"
                    limits.append(int((folder / name).read_text(encoding="utf-8")))
    return min(limits)


def raise_file_limit() -> None:
    """Raises the limit on descriptors as far as the system allows: each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:  # some systems report no hard limit, but accept none either
        log.warning("open files limit unchanged soft=%d error=%s", soft, error)


def check_free_files(count: int = _FILES_OF_A_START) -> None:
    """Raises StartBlocked if so many files cannot be opened now. libzmq would abort the process."""
    with ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            raise StartBlocked(f"cannot open sockets: {error.strerror}", hint=no_files_hint(error)) from error


def return_free_memory() -> None:
    """Returns free memory to the system. glibc keeps pages of freed buffers if memory in use lies between them.

    Takes milliseconds. Does nothing with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
