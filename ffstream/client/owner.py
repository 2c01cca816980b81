"""Which thread a client belongs to. libzmq aborts the process when two threads use one socket.

A client belongs to the thread that uses it first after it was made. So it can be made in one thread and used in
another. Once its owner has ended, the next thread that uses it owns it. Every other use raises, `close` included.
"""

import os
import threading

from ffstream.errors import WrongThread

_LOCK = threading.Lock()


class Owner:
    """The thread and process that may use a client."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raises WrongThread unless the calling thread owns the client, or becomes its owner now."""
        if threading.current_thread() is not self._thread or os.getpid() != self._pid:
            self._claim()

    def _claim(self) -> None:
        if os.getpid() != self._pid:  # before the lock, which a fork may have left locked
            raise WrongThread(
                f"this {self._what} was made in process {self._pid} and cannot be used after a fork",
                hint=f"make a {self._what} in each process",
            )
        with _LOCK:
            if self._thread is not None and self._thread.is_alive():
                raise WrongThread(
                    f"this {self._what} belongs to thread {self._thread.name!r}; "
                    f"thread {threading.current_thread().name!r} cannot use or close it",
                    hint=f"make a {self._what} for each thread",
                )
            self._thread = threading.current_thread()
