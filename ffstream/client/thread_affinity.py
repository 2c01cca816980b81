"""Restricts a client to one thread, because libzmq aborts the process when two threads use one socket.

A client belongs to the first thread that uses it, so it can be created in one thread and used in another. When that
thread has ended, the client belongs to the next thread that uses it. Any other use raises, including `close`.
"""

import os
import threading

from ffstream.errors import WrongThread

_LOCK = threading.Lock()


class ThreadAffinity:
    """The thread and the process that may use a client. `what` names the client in errors."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raises WrongThread unless the client belongs to the calling thread, or can belong to it from now on."""
        if threading.current_thread() is not self._thread or os.getpid() != self._pid:
            self._claim()

    def _claim(self) -> None:
        if os.getpid() != self._pid:  # checked before taking the lock, which may be locked forever after a fork
            raise WrongThread(
                f"this {self._what} was created in process {self._pid} and cannot be used after a fork",
                hint=f"create a {self._what} in each process",
            )
        with _LOCK:
            if self._thread is not None and self._thread.is_alive():
                raise WrongThread(
                    f"this {self._what} belongs to thread {self._thread.name!r}; "
                    f"thread {threading.current_thread().name!r} cannot use or close it",
                    hint=f"create a {self._what} for each thread",
                )
            self._thread = threading.current_thread()
