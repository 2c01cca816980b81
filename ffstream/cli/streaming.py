"""Sends a stream of batches through a producer: at a rate, interruptible with Ctrl-C, with a progress bar."""

import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Self

from rich.markup import escape
from rich.progress import Progress, TaskID

from ffstream.cli.resuming import Batches
from ffstream.client import Control, CurveKeys, Producer
from ffstream.data import LabelArray, UInt8Array
from ffstream.errors import DeadlineExceeded, FFStreamError, RequestRefused, Unauthorized

PATIENCE_S = 60.0  # longer than a restart of the daemon takes

_LAST_FLUSH_S = 5.0  # after Ctrl-C
_STEP_S = 0.1  # between two checks for Ctrl-C
_POLL_S = 1.0


class Interrupt:
    """While entered, Ctrl-C sets `raised`. A second Ctrl-C interrupts as usual."""

    def __init__(self) -> None:
        self.raised = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._raise)
        return self

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)


class ErrorPoller:
    """Asks the daemon for its prequential error once a second, if `enabled`. Thread `ff-poll`."""

    def __init__(self, endpoint: str, keys: CurveKeys | None, *, enabled: bool) -> None:
        self.text = ""
        self._enabled = enabled
        self._endpoint = endpoint
        self._keys = keys
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ff-poll", daemon=True)

    def __enter__(self) -> Self:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._enabled:
            self._thread.join(2 * _POLL_S)

    def _run(self) -> None:
        with Control(self._endpoint, keys=self._keys) as control:
            while not self._ended.wait(_POLL_S):
                try:
                    status = control.status(_POLL_S)
                    error, window = status["prequential_error"], status["prequential_window_samples"]
                    self.text = "" if error is None else f"prequential error {error:.2%} of the last {window:,}"
                except RequestRefused as refusal:
                    self.text = ""
                    if refusal.remote_code == Unauthorized.code:
                        return  # the key of a producer may not be accepted by the control socket
                except FFStreamError:
                    self.text = ""


class Sender:
    """Sends batches through a producer, at `rate` samples a second or as fast as possible.

    `span`: the maximum number of messages from the lowest unanswered one to the newest.
    """

    def __init__(self, producer: Producer, interrupt: Interrupt, rate: float | None, span: int | None = None) -> None:
        self._producer = producer
        self._full_since: float | None = None
        self._span = span
        self._interrupt = interrupt
        self._rate = rate
        self.started = time.monotonic()

    def run(self, stream: Batches, bar: Progress, task: TaskID, error: ErrorPoller) -> None:
        """Returns when every message is answered, or soon after Ctrl-C. Raises DeadlineExceeded."""
        counts = self._producer.counts
        self.started = time.monotonic()
        for images, labels in stream:
            self._await_turn(counts.sent)
            while not self._interrupt.raised:
                is_sent = self._send(images, labels)
                self._update(bar, task, error)
                if is_sent:
                    break
            if self._interrupt.raised:
                break
        self._producer.flush(_LAST_FLUSH_S if self._interrupt.raised else PATIENCE_S)
        bar.update(task, completed=counts.acked)

    def _update(self, bar: Progress, task: TaskID, error: ErrorPoller) -> None:
        acked = self._producer.counts.acked
        rate = acked / max(time.monotonic() - self.started, 1e-9)
        waiting = self._producer.waiting
        text = error.text if waiting is None else f"waiting: {waiting.message} ({waiting.code})"
        bar.update(task, completed=acked, rate=f"{rate:,.0f}/s", error=escape(text))

    def _await_turn(self, sent: int) -> None:
        """Waits until the next batch is due, and reads answers meanwhile.

        The time is computed from the start, so that delays do not add up.
        """
        due = self.started + (sent / self._rate if self._rate else 0.0)
        while not self._interrupt.raised and (left_s := due - time.monotonic()) > 0:
            if self._producer.unanswered:
                with suppress(DeadlineExceeded):
                    self._producer.flush(min(left_s, _STEP_S))
            else:
                time.sleep(min(left_s, _STEP_S))

    def _send(self, images: UInt8Array, labels: LabelArray) -> bool:
        """False if the window is full for a moment. Raises DeadlineExceeded if it is full for PATIENCE_S."""
        try:
            if self._span and self._producer.next_n - self._producer.answered_n > self._span:
                self._producer.flush(_STEP_S)
            self._producer.send(images, labels, _STEP_S)
        except DeadlineExceeded:
            self._full_since = self._full_since or time.monotonic()
            if time.monotonic() - self._full_since >= PATIENCE_S:
                raise
            return False
        self._full_since = None
        return True
