"""Processes that create load. Each returns what it observed when it is told to stop; it can also be killed."""

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
    """Runs `work(stop, *arguments)` in a process, which must return soon after the Event `stop` is set.

    At the end of its block the process is killed if it still runs.
    """

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._stop = _processes.Event()
        self._started = _processes.Event()
        self._results, theirs = _processes.Pipe(duplex=False)
        self._process = _processes.Process(
            target=_run, args=(theirs, self._started, work, self._stop, *arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def await_started(self) -> None:
        """Returns once all imports are done and `work` is called. Raises RuntimeError after a deadline."""
        if not self._started.wait(_STOP_S):
            raise RuntimeError(f"{self._process.name} has not started to work after {_STOP_S:g} s")

    def stop(self) -> None:
        """Sets `stop`."""
        self._stop.set()

    @property
    def is_done(self) -> bool:
        """Whether `result` returns or raises without waiting."""
        return self._results.poll(0.0)

    def result(self, timeout_s: float = _STOP_S) -> Any:
        """What the work returned. Raises RuntimeError when it raised, was killed, or does not end in time."""
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
        """Stops the work and returns its result."""
        self.stop()
        return self.result(timeout_s)

    def kill(self) -> None:
        """Sends SIGKILL if the process still runs."""
        self._process.kill()
        self._process.join(_STOP_S)
        self._results.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def _run(
    results: "Connection[Any, Any]", started: Event, work: Callable[..., Any], stop: Event, *arguments: Any
) -> None:
    started.set()
    try:
        results.send((True, work(stop, *arguments)))
    except Exception:
        results.send((False, traceback.format_exc()))


def shared_count() -> Any:
    """A number that processes share. It has no lock, because a process that holds one may be killed."""
    return _processes.Value("q", 0, lock=False)


def run_in_threads(stop: Event, loops: list[Callable[[threading.Event], None]]) -> None:
    """Runs each loop on a thread until `stop` is set or one raises. Then joins all and raises the first exception."""
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
