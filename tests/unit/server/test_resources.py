"""What is short is named. Memory and descriptors are those of this very process."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ffstream.errors import DiskFull, MemoryFull, TooManyFiles, Unavailable
from ffstream.server.resources import ResourceLimits, Resources, raise_file_limit

MIB = 1 << 20


def lacking(folder: Path, *, disk: int = 0, memory: int = 0) -> Unavailable | None:
    return Resources(folder, ResourceLimits(disk, memory)).lacking()


@contextmanager
def file_limit(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nothing_is_short(tmp_path: Path) -> None:
    assert lacking(tmp_path, disk=1, memory=1 << 50) is None
    assert lacking(tmp_path) is None


def test_a_disk_with_little_room(tmp_path: Path) -> None:
    error = lacking(tmp_path, disk=1 << 60)
    assert isinstance(error, DiskFull)
    assert str(tmp_path) in error.message
    assert "limits.disk_min_free_bytes" in error.hint


def test_memory_over_the_limit_and_given_back(tmp_path: Path) -> None:
    limit = psutil.Process().memory_info().rss + 100 * MIB
    looks = Resources(tmp_path, ResourceLimits(0, limit))
    assert looks.lacking() is None
    held = bytearray(b"x") * (200 * MIB)
    assert isinstance(looks.lacking(), MemoryFull)
    del held
    assert looks.lacking() is None


def test_nearly_every_descriptor_in_use(tmp_path: Path) -> None:
    looks = Resources(tmp_path, ResourceLimits(0, 0))
    with file_limit(psutil.Process().num_fds() + 1):
        assert isinstance(looks.lacking(), TooManyFiles)
    assert looks.lacking() is None


def test_not_even_a_look_is_possible(tmp_path: Path) -> None:
    looks = Resources(tmp_path, ResourceLimits(0, 0))
    with file_limit(3):
        assert isinstance(looks.lacking(), TooManyFiles)


def test_the_limit_on_files_is_raised_as_far_as_it_goes() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with file_limit(max(64, hard - 1)):
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
