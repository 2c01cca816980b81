"""Finds events in what the recorder sees once a second, for marks in the history."""

from collections.abc import Iterator
from typing import NamedTuple

from ffstream.history.marks import Kind
from ffstream.learning.learner import RolledBack
from ffstream.learning.restarts import Interruption

_STABLE = 5  # seconds that a phase must last to be marked: short ones alternate many times a second


class Seen(NamedTuple):
    """What is seen in one second. `rolled_back` is the last rollback of this daemon."""

    seq: int
    checkpoint: int | None
    rolled_back: RolledBack | None
    paused: bool
    restarts: tuple[int, ...]  # of each layer
    drift: int | None
    phase: str
    interruption: Interruption | None  # the last one of this daemon


class Found(NamedTuple):
    """A mark without its time."""

    seq: int
    kind: Kind
    text: str


class MarkFinder:
    """Compares each second with the one before. Nothing is found in the first."""

    def __init__(self) -> None:
        self._before: Seen | None = None
        self._marked_phase = ""
        self._phase_seconds = 0

    def find(self, now: Seen) -> list[Found]:
        """The events since the last call."""
        before, self._before = self._before, now
        if before is None:
            self._marked_phase = now.phase
            return []
        return [*self._interruptions(before, now), *self._compared(before, now), *self._phases(before, now)]

    def _interruptions(self, before: Seen, now: Seen) -> Iterator[Found]:
        """An interruption may be shorter than a second."""
        last, known = now.interruption, before.interruption
        if last is None or last == known:
            return
        if known is None or last.number != known.number:
            yield Found(now.seq, "interruption", f"learning is interrupted: {last.reason}")
        if last.lasted_s is not None:
            yield Found(now.seq, "continuation", f"learning goes on after {last.lasted_s:.1f} s")

    def _compared(self, before: Seen, now: Seen) -> Iterator[Found]:
        back = now.rolled_back
        if back is not None and back is not before.rolled_back:
            later = f"; samples {back.first} to {back.last} are {back.later}" if back.last >= back.first else ""
            yield Found(back.to, "rollback", f"back to sample {back.to}{later}")
            before = before._replace(checkpoint=now.checkpoint, restarts=now.restarts)
        if now.checkpoint is not None and now.checkpoint > (before.checkpoint or 0):
            yield Found(now.checkpoint, "checkpoint", f"checkpoint up to sample {now.checkpoint}")
        if now.paused != before.paused:
            yield Found(now.seq, *(("pause", "learning paused") if now.paused else ("resume", "learning resumed")))
        for index, (old, new) in enumerate(zip(before.restarts, now.restarts, strict=True)):
            if new > old:
                yield Found(now.seq, "drift", f"layer {index} starts over: the concept or its hardware has changed")
        if now.drift is not None and now.drift != before.drift:
            yield Found(now.drift, "drift", "the prequential error rises (prequential.drift_detector)")

    def _phases(self, before: Seen, now: Seen) -> Iterator[Found]:
        self._phase_seconds = self._phase_seconds + 1 if now.phase == before.phase else 0
        if self._phase_seconds < _STABLE or now.phase == self._marked_phase:
            return
        self._marked_phase = now.phase
        if now.phase == "wake":
            yield Found(now.seq, "wake", "wake phase")
        if now.phase == "sleep":
            yield Found(now.seq, "sleep", "sleep phase")
