"""Answers that all viewers ask for: computed once for all of them, and not all the time."""

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_CORE_SHARE = 0.05

Record = dict[str, Any]
_Result = TypeVar("_Result")


class Cached(Generic[_Result]):
    """Computes something when it is asked for, but not again for `seconds`, and not for more than a twentieth of the
    time of a core.

    Those who ask while it is computed get the result before, or wait if it is the first one.
    """

    def __init__(self, compute: Callable[[], _Result], seconds: float) -> None:
        self._compute = compute
        self._seconds = seconds
        self._lock = threading.Lock()
        self._result: _Result | None = None
        self._valid_until = 0.0

    def get(self) -> _Result:
        """The result of the last computation, or of a new one."""
        kept = self._result
        if kept is not None and (time.monotonic() < self._valid_until or self._lock.locked()):
            return kept
        with self._lock:
            if self._result is None or time.monotonic() >= self._valid_until:
                begun = time.thread_time()
                self._result = self._compute()
                used_s = time.thread_time() - begun
                self._valid_until = time.monotonic() + max(self._seconds, used_s / _CORE_SHARE)
            return self._result
