"""Helpers of all tests: waiting for a condition, holding a thread at a failpoint, comparing folders, acting as
another user, and measuring the memory of a program.

`wait_until` is the only place where a test sleeps.
"""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

POLL_S = 0.01

Watch = Callable[[Callable[[str], object] | None], None]  # type of the fixture `watched`


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Returns as soon as `condition()` is true.

    Raises:
        AssertionError: when it is still not true after `timeout_s`. The message names `what`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


def hold_at(failpoint: str, watched: Watch, timeout_s: float) -> tuple[threading.Event, threading.Event]:
    """Holds every thread that reaches the failpoint.

    Returns two events: the first is set when a thread has reached it; set the second to let the threads continue.
    They also continue after `timeout_s`.
    """
    reached, release = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name == failpoint:
            reached.set()
            release.wait(timeout_s)

    watched(hold)
    return reached, release


def folder_contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Path, hash of the content and modification time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def owned_by_another_user(path: Path) -> Iterator[None]:
    """In the block, `path` belongs to another user. Without root rights, `os.geteuid` says so instead."""
    own = os.geteuid()
    with pytest.MonkeyPatch.context() as patch:
        if own == 0:
            os.chown(path, 12345, -1)
        else:
            patch.setattr(os, "geteuid", lambda: own + 1)
        yield
    if own == 0:
        os.chown(path, own, -1)


@contextmanager
def as_user(uid: int, gid: int) -> Iterator[None]:
    """In the block, this process has the rights of another user. Without root rights the test is skipped."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


_PROGRAM = """
import psutil
import torch

def memory_mb():
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**20

def begin():
    global before
    before = memory_mb()

torch.set_num_threads(1)
"""
_BOUNDS_OF_TORCH = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")


def _growth_mb(program: str, timeout_s: float = 250.0) -> float:
    """Runs a program in a process. Returns by how much its memory grew after it called `begin()`."""
    # torch reads these variables once in a process, and an earlier test may have set them in this one.
    environment = {name: value for name, value in os.environ.items() if name not in _BOUNDS_OF_TORCH}
    done = subprocess.run(
        [sys.executable, "-c", f"{_PROGRAM}{program}\nprint(memory_mb() - before)"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def assert_bounded(program: str, bounded: str, unbounded: str) -> None:
    """Asserts that a program with `bounded` in its braces grows less than a quarter as much as with `unbounded`."""
    growth_mb = _growth_mb(program.format(unbounded))
    if growth_mb < 30:
        pytest.skip(f"on this processor torch caches too little to measure: {growth_mb:.0f} MB")
    assert _growth_mb(program.format(bounded)) < growth_mb / 4
