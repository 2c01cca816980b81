"""Negatives that the network makes itself: images that its first layer dreams.

A dream begins with remembered activities of the first layer, which its decoder turns into an image (`decoder.py`,
`decoding.py`, `memories.py`). It depends on what the first layer has learned, on the seed and on the number of the
microbatch only, so recovery dreams the same again. Nothing comes from layers above, so no layer waits for another.

    with labels (phases)       all rows of a sleep phase are dreams under a wrong label: each of one remembered
                               sample, or drawn from the statistics of one label. Sleep needs no image
    without labels             positive rows are remembered activities of one sample, decoded; negative rows those of
                               two samples, mixed and decoded. Beside dreams, real images would only teach the layers
                               to tell decoded images from real ones, so only decoders and readout learn from these

Shapes: B samples, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from ffstream.ff.image_negatives import Hybrid
from ffstream.ff.negatives import Draw, RandomLabel
from ffstream.ff.part import register

if TYPE_CHECKING:
    from torch import Tensor


@register
class Dreams(Hybrid):
    """Dreams of the first layer, in place of images. Layers without labels begin with hybrids, until the decoder has
    learned a few microbatches."""

    kind: Literal["dreams"] = "dreams"  # type: ignore[assignment]
    takes_labels: ClassVar[bool] = True

    def choose(self, own_B: Tensor, labels: int, goodness_BL: Callable[[], Tensor], draw: Draw) -> Tensor:
        """Wrong labels (B; int64), at random."""
        return RandomLabel().choose(own_B, labels, goodness_BL, draw)
