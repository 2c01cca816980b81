"""What passes from layer to layer.

Shapes: B samples, N rows, F units, L labels.
"""

from typing import NamedTuple

from torch import Tensor

from ffstream.ff.objective import Phase


class Activities(NamedTuple):
    """What a layer passes on: rows, the label of each, and how many of them are positive.

    Label-free: one row for each sample, `labels_N` are the samples' own labels, `positives` is None.
    Label-conditioned, or beside negative rows made from images: the first `positives` rows are positive, the others
    negative. In the phase `interleaved` each sample has one row of each sign.
    `carried` are the positive rows of the layers passed so far that the readout reads.
    The last R samples are replayed; `ages_R` says how many samples of the stream ago each one came. It is None if R
    is 0. The others are fresh. `score_BL` is the score of their labels so far: Σ score_weight · goodness over the
    layers passed, by the weights before the update. Label-conditioned activities have none.
    `replicas` is how many replicas of the network learn different microbatches here, so that this one stands for as
    many (`ff/merging.py`). It is 1 if there is one network, or if all replicas learn this microbatch.
    `pixels_BI` are the images (0 to 1) of the positive rows, for the decoder of the first layer; None elsewhere.
    The first `read_only` rows are real images beside positive and negative rows that were dreamt, as many of each:
    layers learn nothing from them, but the decoders and the readout do. `positives` does not count them.
    """

    h_NF: Tensor
    labels_N: Tensor
    positives: int | None
    step: int
    phase: Phase
    carried: tuple[Tensor, ...] = ()
    ages_R: Tensor | None = None
    score_BL: Tensor | None = None
    replicas: int = 1
    pixels_BI: Tensor | None = None
    read_only: int = 0

    def carry(self) -> "Activities":
        """The same activities, with their positive rows carried on to the readout."""
        return self._replace(carried=(*self.carried, self.h_NF[: self.positives]))

    @property
    def samples(self) -> int:
        """Samples of the microbatch."""
        both_signs = self.positives is not None and self.phase == "interleaved"
        rows = self.labels_N.shape[0] - self.read_only  # four times as fast as len()
        return rows // 2 if both_signs else rows

    @property
    def fresh(self) -> int:
        """Samples that come from the stream. They are the first ones of each sign."""
        return self.samples - (0 if self.ages_R is None else self.ages_R.shape[0])

    @property
    def scored(self) -> "Scored | None":
        """The fresh samples' scores and labels, if the layers have a score."""
        return None if self.score_BL is None else Scored(self.score_BL, self.labels_N[: self.fresh])


class Scored(NamedTuple):
    """The score (B, L) of every label of fresh samples by the weights before the update, and their labels (B)."""

    score_BL: Tensor
    labels_B: Tensor
