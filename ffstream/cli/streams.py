"""The standard streams of the daemon: nothing that is written to them blocks or ends it.

A terminal that hangs, a pipe that nobody reads, a full disk: each would hold up or kill whichever thread writes the
next line. So a writer thread for each stream does the writing, from a queue; when that is full, lines are dropped and
counted, and the count is written where they would have been.
"""

import atexit
import io
import os
import select
import sys
import threading
from queue import SimpleQueue
from typing import TextIO

_PENDING_MAX = 4096  # pieces of text, a line each as a rule
_TEXT_MAX = 16 << 10  # characters of a piece; what is longer is cut off
_LAST_S = 1.0  # that an exit waits for what is still queued


def open_standard_streams() -> None:
    """Opens /dev/null on those of the descriptors 0 to 2 that are closed.

    Otherwise the next file to be opened, such as the journal, gets the number, and whoever writes an error message
    writes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            os.set_inheritable(opened, True)


def write_if_taken(descriptor: int, data: bytes) -> None:
    """Writes a short message if that does not block. For a signal handler."""
    try:
        if select.select((), (descriptor,), (), 0)[1]:
            os.write(descriptor, data)
    except OSError:  # nobody reads there any more
        pass


class QueuedStream(io.TextIOBase):
    """A text stream on a descriptor. `write` returns at once and raises nothing; any thread may call it.

    `dropped` counts the pieces of text that found the queue full. What the descriptor refuses (a closed pipe, a full
    disk) is lost.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        self._unsaid = 0
        self._descriptor = descriptor
        # Its `put` may be interrupted by a signal handler or a finalizer that writes, too.
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._serve, name=f"ff-output-{descriptor}", daemon=True)
        self._writer.start()

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Queues it, or drops it."""
        if self._queue.qsize() >= _PENDING_MAX:
            self.dropped += 1
            self._unsaid += 1
        else:
            self._say_dropped()
            self._put(text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…\n")
        return len(text)

    def drain(self, timeout_s: float) -> bool:
        """Waits until what is queued is written. False if the deadline passed."""
        self._say_dropped()
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout_s)

    def close(self) -> None:
        """Ends the writer once it has written what is queued, or after a moment; the descriptor stays open."""
        if not self.closed:
            self._queue.put(None)
            self._writer.join(_LAST_S)
        super().close()

    def _say_dropped(self) -> None:
        if self._unsaid:
            count, self._unsaid = self._unsaid, 0
            self._put(f"lines dropped count={count}: nobody read this stream\n")

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
            except BlockingIOError:  # somebody made it non-blocking, for all who share it
                select.select((), (self._descriptor,), ())
            except OSError:
                return


def queue_output() -> list[QueuedStream]:
    """Replaces `sys.stdout` and `sys.stderr`. An exit waits a moment for what is queued, and no longer."""
    streams = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before, stream = getattr(sys, name), QueuedStream(descriptor)
        setattr(sys, name, stream)
        atexit.register(_end, name, stream, before)
        streams.append(stream)
    return streams


def _end(name: str, stream: QueuedStream, before: TextIO | None) -> None:
    if stream.drain(_LAST_S) and before is not None:
        setattr(sys, name, before)  # for what is written after this: the queue is not waited for again
