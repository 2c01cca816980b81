"""Computes answers for people on a few threads of low priority: learning, acks and predictions go first."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ffstream.errors import Busy, Unavailable
from ffstream.util.threads import EVALUATION_NICENESS, lower_priority, use_one_core

_Result = TypeVar("_Result")

_THREADS = 2
_PENDING_MAX = 16


class Background:
    """Threads `ff-view_N`, made when they are needed. `run` is for one event loop."""

    name = "ff-view"

    def __init__(self, threads: int = _THREADS, pending_max: int = _PENDING_MAX) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=self.name, initializer=_begin)
        self._pending = 0
        self._pending_max = pending_max
        self._stopped = False

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """The result of `work`. Raises what it raises, Busy if too much is in hand, and Unavailable after `stop`."""
        if self._pending >= self._pending_max:
            raise Busy(f"{self._pending} answers are being computed", hint="ask again later")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError as error:
            if self._stopped:
                raise Unavailable("the daemon is stopping", hint="ask again after its restart") from error
            raise
        finally:
            self._pending -= 1

    def stop(self, timeout_s: float) -> bool:
        """Takes no more work. Does not wait for what is in hand, which is short."""
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        return True


def _begin() -> None:
    use_one_core()
    lower_priority(EVALUATION_NICENESS)
