"""Waiting on a real condition: the only place where a test sleeps. Holding a thread at a moment. Pictures of folders.
Files of other users. Memory of a program.
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

Watch = Callable[[Callable[[str], object] | None], None]  # what the fixture `watched` is


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Return as soon as `condition()` is true.

    Raises:
        AssertionError: naming `what`, when it is still not true after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


def hold_at(held: str, watched: Watch, timeout_s: float) -> tuple[threading.Event, threading.Event]:
    """Who reaches that moment sets the first event, and waits for the second (until the deadline)."""
    inside, go_on = threading.Event(), threading.Event()

    def hold(moment: str) -> None:
        if moment == held:
            inside.set()
            go_on.wait(timeout_s)

    watched(hold)
    return inside, go_on


def picture(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder, what is in it, and when it was changed."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def given_away(path: Path) -> Iterator[None]:
    """In the block it belongs to another user; who cannot give it away is another user meanwhile."""
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
    """In the block this process has another user's rights. Skips the test where only root may change users."""
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
_OF_TORCH = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")


def _growth_mb(program: str, timeout_s: float = 100.0) -> float:
    """How much memory a program took since it called `begin()`, in a process of its own."""
    # What bounds torch's memory is read once in a process; a test that ran before may have set it in this one.
    environment = {name: value for name, value in os.environ.items() if name not in _OF_TORCH}
    ended = subprocess.run(
        [sys.executable, "-c", f"{_PROGRAM}{program}\nprint(memory_mb() - before)"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return float(ended.stdout)


def assert_bounded(program: str, bounded: str, unbounded: str) -> None:
    """A program grows by less than a quarter with `bounded` in its braces of what it does with `unbounded`."""
    growth_mb = _growth_mb(program.format(unbounded))
    if growth_mb < 30:
        pytest.skip(f"this processor compiles nothing that would stay: {growth_mb:.0f} MB")
    assert _growth_mb(program.format(bounded)) < growth_mb / 4
