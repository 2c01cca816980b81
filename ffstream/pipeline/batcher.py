"""Turns stored messages into microbatches on a fixed grid.

Where a microbatch ends depends only on the recipe and the sequence number, not on how the samples were grouped into
messages. A flush may shorten a microbatch when the stream pauses; skipped samples and sleep in a quiet stream always
do. The next one ends on the grid again.
"""

from collections import deque
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ffstream.errors import JournalIncompatible
from ffstream.ff.recipe import Recipe
from ffstream.journal.reader import Reader
from ffstream.journal.schema import SEQ_MAX
from ffstream.util.labels import UNLABELLED
from ffstream.wire.images import bytes_to_labels, images_to_array

_READ_AHEAD = 8  # microbatches


class _Piece(NamedTuple):
    images: NDArray[Any]
    labels: NDArray[Any]


class Batcher:
    """Reads the journal beyond `seq`. Owned by the feeder's thread."""

    def __init__(self, reader: Reader, recipe: Recipe, seq: int) -> None:
        self._reader = reader
        self._recipe = recipe
        self._pieces: deque[_Piece] = deque()
        self._held = 0
        self.seq = seq  # of the last sample returned

    @property
    def pending(self) -> int:
        """Samples read and not returned yet."""
        return self._held

    def next(self, *, flush: bool = False, until: int = SEQ_MAX) -> tuple[Tensor, Tensor] | None:
        """Images (B, inputs) and labels (B) of the next microbatch; None while it is incomplete.

        With `flush`, also an incomplete one. It ends at sample `until` at the latest; None when skipped samples lead
        to that. Raises JournalDamaged, and JournalIncompatible if samples lack a label that the network needs.
        """
        skip = self._reader.skips.after(self.seq)
        if skip is not None and skip.first <= self.seq + 1:
            self._jump(skip.last)
            return self.next(flush=flush, until=until) if self.seq < until else None
        end = min(self._recipe.batch_end(self.seq), until)
        wanted = min(end, skip.first - 1 if skip else end) - self.seq
        if self._held < wanted:
            self._read(_READ_AHEAD * self._recipe.batch_size)
        if not self._held or (self._held < wanted and not flush):
            return None
        return self._take(min(wanted, self._held))

    def _jump(self, seq: int) -> None:
        self._pieces.clear()
        self._held = 0
        self.seq = seq

    def _read(self, samples: int) -> None:
        beyond = self.seq + self._held
        # Rows of one dtype are joined, because Python's cost per array dominates for single-sample messages.
        for dtype, rows_of_kind in groupby(self._reader.read(beyond, samples), lambda row: row.dtype):
            rows = list(rows_of_kind)
            count = sum(row.samples for row in rows)
            known = max(0, beyond + 1 - rows[0].first_seq)
            images = images_to_array(dtype, count, b"".join([row.images for row in rows]))[known:]
            labels = bytes_to_labels(b"".join([row.labels for row in rows]))[known:]
            if not self._recipe.learns_unlabelled and (labels == UNLABELLED).any():
                raise JournalIncompatible(
                    f"the journal has samples without a label after sample {beyond}, and this network needs labels",
                    hint="start the daemon with the network that accepted them, or with another --state folder",
                )
            self._pieces.append(_Piece(images, labels))
            self._held += len(images)
            beyond += len(images)

    def _take(self, count: int) -> tuple[Tensor, Tensor]:
        taken: list[_Piece] = []
        missing = count
        while missing:
            images, labels = self._pieces.popleft()
            if len(images) > missing:
                self._pieces.appendleft(_Piece(images[missing:], labels[missing:]))
                images, labels = images[:missing], labels[:missing]
            taken.append(_Piece(images, labels))
            missing -= len(images)
        self._held -= count
        self.seq += count
        if len({piece.images.dtype for piece in taken}) > 1:  # uint8 beside float32: one scale for the microbatch
            taken = [_Piece(_as_float(piece.images), piece.labels) for piece in taken]
        images = np.concatenate([piece.images for piece in taken])
        labels = np.concatenate([piece.labels for piece in taken])
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _as_float(images: NDArray[Any]) -> NDArray[Any]:
    return images if images.dtype.kind == "f" else images.astype(np.float32) / np.float32(255)
