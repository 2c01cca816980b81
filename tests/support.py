"""Waiting on a real condition: the only place where a test sleeps. Pictures of folders."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

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


def picture(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder, what is in it, and when it was changed."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
