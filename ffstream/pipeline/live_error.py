"""The prequential error of the newest weights: the training pass computes the score of every label anyway.

It shows what the network has learned; the error of the snapshots shows what it serves. Owned by the last stage's
thread. The state is that of everything before a barrier once the last stage passes it.
"""

from typing import Any, Final

import torch

from ffstream.ff.activities import Scored
from ffstream.util.error_record import ErrorRecord

LIVE: Final = "live"  # its name in a checkpoint
_UNREAD_MAX = 64


class LiveError:
    """Counts the errors of scores. Compared only now and then, so that a GPU does not wait in every step."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """Raises CheckpointIncompatible for an invalid state."""
        self.record = ErrorRecord(state, "live error's")
        self._unread: list[Scored] = []

    def add(self, scored: Scored | None) -> None:
        """Takes the scores of a microbatch; None if its layers have no score."""
        if scored is not None and len(scored.labels_B):
            self._unread.append(scored)
        if len(self._unread) >= _UNREAD_MAX:
            self.count()

    def count(self) -> None:
        """Counts the errors of all scores so far."""
        if not self._unread:
            return
        scores, labels = zip(*self._unread, strict=True)
        wrong_N = (torch.cat(scores).argmax(1) != torch.cat(labels)).cpu()  # at once: a GPU waits only here
        for wrong_B in wrong_N.split([len(labels_B) for labels_B in labels]):
            self.record.add(len(wrong_B), int(wrong_B.sum()), len(wrong_B))
        self._unread.clear()
