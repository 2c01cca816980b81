"""Processes that make load: each ends when told, and hands back what it saw. The rest is ended by its pid."""

import multiprocessing
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any, Self

_processes = multiprocessing.get_context("spawn")  # a fork would copy sockets and threads
_STOP_S = 60.0


class Worker:
    """`work(stop, *arguments)` in a process of its own. `stop` is an Event that the work must heed."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._stop = _processes.Event()
        self._begun = _processes.Event()
        self._results, theirs = _processes.Pipe(duplex=False)
        self._process = _processes.Process(
            target=_run, args=(theirs, self._begun, work, self._stop, *arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def await_begun(self) -> None:
        """Returns once the work has begun: after all imports. Raises RuntimeError if it never does."""
        if not self._begun.wait(_STOP_S):
            raise RuntimeError(f"{self._process.name} has not begun after {_STOP_S:g} s")

    def stop(self) -> None:
        """Asks for the end."""
        self._stop.set()

    @property
    def is_done(self) -> bool:
        """Whether `result` returns, or raises, at once."""
        return self._results.poll(0.0)

    def result(self, timeout_s: float = _STOP_S) -> Any:
        """What the work returned. Raises RuntimeError when it failed, died, or is not done in time."""
        if not self._results.poll(timeout_s):
            raise RuntimeError(f"{self._process.name} has no result after {timeout_s:g} s")
        try:
            good, result = self._results.recv()
        except EOFError:
            raise RuntimeError(f"{self._process.name} died") from None
        self._process.join(timeout_s)
        if not good:
            raise RuntimeError(f"{self._process.name} failed:\n{result}")
        return result

    def finish(self, timeout_s: float = _STOP_S) -> Any:
        """Asks for the end, and the result."""
        self.stop()
        return self.result(timeout_s)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self._process.kill()
        self._process.join(_STOP_S)
        self._results.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def _run(
    results: "Connection[Any, Any]", begun: Event, work: Callable[..., Any], stop: Event, *arguments: Any
) -> None:
    begun.set()
    try:
        results.send((True, work(stop, *arguments)))
    except Exception:
        results.send((False, traceback.format_exc()))


def shared_count() -> Any:
    """A number that processes share. Without a lock: who writes it may be killed at any moment."""
    return _processes.Value("q", 0, lock=False)


def side_by_side(stop: Event, loops: list[Callable[[threading.Event], None]]) -> None:
    """Runs loops on threads until `stop` is set. Raises the first exception of any, when all have ended."""
    ending = threading.Event()
    failures: list[BaseException] = []

    def run(loop: Callable[[threading.Event], None]) -> None:
        try:
            loop(ending)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(loop,), daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    while not failures and any(thread.is_alive() for thread in threads) and not stop.wait(0.2):
        pass
    ending.set()
    for thread in threads:
        thread.join(_STOP_S)
    if failures:
        raise failures[0]
