"""The standard streams of the daemon. Writing to them never blocks, and never raises.

A terminal that hangs, a pipe that is not read or a full disk would block or kill the thread that writes the next
line. So each stream has a queue, and a thread that writes it out. When the queue is full, lines are dropped and
counted, and the count is written in their place.
"""

import atexit
import io
import os
import select
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TextIO

_PENDING_MAX = 4096  # pieces of text, usually a line each
_TEXT_MAX = 16 << 10  # characters in a piece; longer ones are truncated
_LAST_S = 1.0  # for which an exit waits until the queue is written


def open_standard_streams() -> None:
    """Opens /dev/null on descriptors 0 to 2 that are closed.

    Otherwise the next file that is opened, such as the journal, gets one of these numbers, and error messages are
    written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(opened, True)


def write_if_taken(descriptor: int, data: bytes) -> None:
    """Writes a short message, unless that would block. For a signal handler."""
    try:
        if select.select((), (descriptor,), (), 0)[1]:
            os.write(descriptor, data)
    except OSError:  # the other end is closed
        pass


def _dropped_line(count: int) -> str:
    return f"lines dropped count={count}: this stream was not read\n"


class QueuedStream(io.TextIOBase):
    """A text stream on a descriptor. `write` returns at once and raises nothing. Any thread may call it.

    `dropped` counts the pieces of text that were dropped because the queue was full. Text that cannot be written
    (closed pipe, full disk) is lost.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, dropped_line: Callable[[int], str] = _dropped_line) -> None:
        super().__init__()
        self._dropped_line = dropped_line
        self.dropped = 0
        self._unreported = 0  # dropped, and not reported on the stream yet
        self._descriptor = descriptor
        # SimpleQueue is reentrant: a signal handler or a finalizer may write during a `put`.
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._serve, name=f"ff-output-{descriptor}", daemon=True)
        self._writer.start()

    def writable(self) -> bool:
        """Always True."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Queues the text, or drops it if the queue is full."""
        if self._queue.qsize() >= _PENDING_MAX:
            self.dropped += 1
            self._unreported += 1
        else:
            self._report_dropped()
            self._put(text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…\n")
        return len(text)

    def drain(self, timeout_s: float) -> bool:
        """Waits until the queue is written. False if the deadline passed."""
        self._report_dropped()
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout_s)

    def close(self) -> None:
        """Ends the thread when the queue is written, or after a second. The descriptor stays open."""
        if not self.closed:
            self._queue.put(None)
            self._writer.join(_LAST_S)
        super().close()

    def _report_dropped(self) -> None:
        if self._unreported:
            count, self._unreported = self._unreported, 0
            self._put(self._dropped_line(count))

    def _put(self, text: str) -> None:
        self._queue.put(text.encode(self.encoding, self.errors))

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._write_out(item)

    def _write_out(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process that shares it has made it non-blocking
                select.select((), (self._descriptor,), ())
            except OSError:
                return


def queue_output(dropped_line: Callable[[int], str] = _dropped_line) -> list[QueuedStream]:
    """Replaces `sys.stdout` and `sys.stderr`. An exit waits for their queues, but not for long.

    `dropped_line` makes the line that stands for a number of lost ones.
    """
    streams = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before, stream = getattr(sys, name), QueuedStream(descriptor, dropped_line)
        setattr(sys, name, stream)
        atexit.register(_end, name, stream, before)
        streams.append(stream)
    return streams


def _end(name: str, stream: QueuedStream, before: TextIO | None) -> None:
    if stream.drain(_LAST_S) and before is not None:
        setattr(sys, name, before)  # for later output, because the queue is not waited for again
