"""Shortages of disk space, memory and descriptors; the latter two of this process."""

import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ffstream.config import Limits
from ffstream.errors import DiskFull, MemoryFull, TooManyFiles, Unavailable
from ffstream.server.resources import (
    Resources,
    available_memory,
    raise_file_limit,
    return_free_memory,
)

MIB = 1 << 20


def limits(disk: int, memory: int) -> Limits:
    return Limits(disk_min_free_bytes=disk, memory_max_bytes=memory)


def lacking(folder: Path, *, disk: int = 0, memory: int = 0) -> Unavailable | None:
    return Resources(folder, limits(disk, memory)).shortage()


@contextmanager
def file_limit(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_there_is_no_shortage_within_the_limits(tmp_path: Path) -> None:
    assert lacking(tmp_path, disk=1, memory=1 << 50) is None
    assert lacking(tmp_path) is None


def test_little_free_disk_space_is_a_shortage(tmp_path: Path) -> None:
    error = lacking(tmp_path, disk=1 << 60)
    assert isinstance(error, DiskFull)
    assert str(tmp_path) in error.message
    assert "limits.disk_min_free_bytes" in error.hint


def test_free_space_in_the_journal_counts_as_disk_space(tmp_path: Path) -> None:
    looks = Resources(tmp_path, limits(1 << 60, 0))
    assert isinstance(looks.shortage(1 << 50), DiskFull)
    assert looks.shortage(1 << 60) is None


def test_memory_above_the_limit_is_a_shortage_until_it_is_freed(tmp_path: Path) -> None:
    limit = resident() + 100 * MIB
    looks = Resources(tmp_path, limits(0, limit))
    assert looks.shortage() is None
    held = bytearray(b"x") * (200 * MIB)
    assert isinstance(looks.shortage(), MemoryFull)
    del held
    assert looks.shortage() is None


def test_few_free_descriptors_are_a_shortage(tmp_path: Path) -> None:
    looks = Resources(tmp_path, limits(0, 0))
    with file_limit(psutil.Process().num_fds() + 1):
        assert isinstance(looks.shortage(), TooManyFiles)
    assert looks.shortage() is None


def test_no_free_descriptor_is_a_shortage(tmp_path: Path) -> None:
    looks = Resources(tmp_path, limits(0, 0))
    with file_limit(3):
        assert isinstance(looks.shortage(), TooManyFiles)


def test_the_limit_on_files_is_raised_to_the_hard_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with file_limit(max(64, hard - 1)):
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_free_memory_between_buffers_in_use_is_returned() -> None:
    blocks = [bytes([at % 256]) * 3000 for at in range(30_000)]
    stays = blocks[::20]
    full = resident()
    del blocks
    return_free_memory()
    assert resident() < full - 40 * MIB
    assert len(stays) == 1500


def test_the_memory_limit_of_a_container_is_respected(tmp_path: Path) -> None:
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    machine = psutil.virtual_memory().total
    assert available_memory(groups, own) == machine, "no control groups"
    (groups / "pod" / "daemon").mkdir(parents=True)
    own.write_text("0::/pod/daemon\n")
    (groups / "pod" / "daemon" / "memory.max").write_text("max\n")
    assert available_memory(groups, own) == machine
    (groups / "pod" / "memory.max").write_text("4096000\n")
    assert available_memory(groups, own) == 4_096_000, "limits of parent groups apply, too"
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("1000000\n")
    assert available_memory(groups, own) == 1_000_000, "version 1"


def test_a_state_folder_that_is_gone_is_not_taken_for_a_lack_of_descriptors(tmp_path: Path) -> None:
    found = lacking(tmp_path / "gone")
    assert found is not None
    assert (found.code, found.hint) == ("unavailable", "is the state folder still there?")
