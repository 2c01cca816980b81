"""Samples that are taught over HTTP, on their way to the thread of the journal.

One request is one sample, stored as one message under a name that no client may use (`messages.PAGE_CLIENT`). Whoever
waits may give up before the thread has begun with it: then it is not stored.
"""

import threading
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

from ffstream.errors import Busy, Draining

LESSONS_MAX = 64


class Lesson(NamedTuple):
    """A sample: an image as uint8 bytes, and its label. The result is its sequence number, once it is on disk."""

    image: bytes
    label: int
    result: "Future[int]"


class Lessons:
    """A queue. Any thread may submit."""

    def __init__(self) -> None:
        self._waiting: deque[Lesson] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, image: bytes, label: int) -> "Future[int]":
        """Its sequence number when it is on disk, or the FFStreamError with which it is rejected. Raises Busy and
        Draining."""
        lesson = Lesson(image, label, Future())
        with self._lock:
            if self._closed:
                raise _stopping()
            if len(self._waiting) >= LESSONS_MAX:
                raise Busy(f"{LESSONS_MAX} samples from the page wait to be stored", hint="teach it again later")
            self._waiting.append(lesson)
        return lesson.result

    def take(self) -> Lesson | None:
        """The next lesson that somebody waits for. It must get a result, or an exception."""
        while True:
            with self._lock:
                lesson = self._waiting.popleft() if self._waiting else None
            if lesson is None or lesson.result.set_running_or_notify_cancel():
                return lesson

    def close(self) -> None:
        """Rejects what waits, and what comes later."""
        with self._lock:
            self._closed = True
        while (lesson := self.take()) is not None:
            lesson.result.set_exception(_stopping())


def _stopping() -> Draining:
    return Draining("the daemon is stopping", hint="teach it again after its restart")
