"""Waiting on a real condition. The only place where a test sleeps."""

import time
from collections.abc import Callable

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
