"""What is short is named. Memory and descriptors are those of this very process."""

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
    memory_there_is,
    raise_file_limit,
    return_free_memory,
)

MIB = 1 << 20


def limits(disk: int, memory: int) -> Limits:
    return Limits(disk_min_free_bytes=disk, memory_max_bytes=memory)


def lacking(folder: Path, *, disk: int = 0, memory: int = 0) -> Unavailable | None:
    return Resources(folder, limits(disk, memory)).lacking()


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


def test_nothing_is_short(tmp_path: Path) -> None:
    assert lacking(tmp_path, disk=1, memory=1 << 50) is None
    assert lacking(tmp_path) is None


def test_a_disk_with_little_room(tmp_path: Path) -> None:
    error = lacking(tmp_path, disk=1 << 60)
    assert isinstance(error, DiskFull)
    assert str(tmp_path) in error.message
    assert "limits.disk_min_free_bytes" in error.hint


def test_room_in_the_journal_is_room_for_samples(tmp_path: Path) -> None:
    looks = Resources(tmp_path, limits(1 << 60, 0))
    assert isinstance(looks.lacking(1 << 50), DiskFull)
    assert looks.lacking(1 << 60) is None


def test_memory_over_the_limit_and_given_back(tmp_path: Path) -> None:
    limit = resident() + 100 * MIB
    looks = Resources(tmp_path, limits(0, limit))
    assert looks.lacking() is None
    held = bytearray(b"x") * (200 * MIB)
    assert isinstance(looks.lacking(), MemoryFull)
    del held
    assert looks.lacking() is None


def test_nearly_every_descriptor_in_use(tmp_path: Path) -> None:
    looks = Resources(tmp_path, limits(0, 0))
    with file_limit(psutil.Process().num_fds() + 1):
        assert isinstance(looks.lacking(), TooManyFiles)
    assert looks.lacking() is None


def test_not_even_a_look_is_possible(tmp_path: Path) -> None:
    looks = Resources(tmp_path, limits(0, 0))
    with file_limit(3):
        assert isinstance(looks.lacking(), TooManyFiles)


def test_the_limit_on_files_is_raised_as_far_as_it_goes() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with file_limit(max(64, hard - 1)):
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_between_what_stays_is_returned() -> None:
    blocks = [bytes([at % 256]) * 3000 for at in range(30_000)]
    stays = blocks[::20]
    full = resident()
    del blocks
    return_free_memory()
    assert resident() < full - 40 * MIB
    assert len(stays) == 1500


def test_a_container_has_no_more_memory_than_it_may_have(tmp_path: Path) -> None:
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    machine = psutil.virtual_memory().total
    assert memory_there_is(groups, own) == machine, "no control groups"
    (groups / "pod" / "daemon").mkdir(parents=True)
    own.write_text("0::/pod/daemon\n")
    (groups / "pod" / "daemon" / "memory.max").write_text("max\n")
    assert memory_there_is(groups, own) == machine
    (groups / "pod" / "memory.max").write_text("4096000\n")
    assert memory_there_is(groups, own) == 4_096_000, "what holds the group holds it, too"
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("1000000\n")
    assert memory_there_is(groups, own) == 1_000_000, "version 1"
