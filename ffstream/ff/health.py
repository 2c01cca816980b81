"""Health of a layer, from what its last microbatch left behind. Nothing here changes what is learned.

Layers of Forward-Forward networks fail without an error: units fall silent, weights grow, goodness does not
separate, or the same image is given as positive and as negative. Some microbatches are sampled, so that a step costs
nothing.

Shapes: B samples, N rows, F units, L labels, I inputs.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

SAMPLED_ROWS = 128
SILENT_MICROBATCHES = 8  # sampled ones in a row, after which a silent unit counts as dead
_WINDOW_ROWS = 16_384  # rows that the share of contradictions is about
_WINDOW_MIN_ROWS = 2048  # before so many were sampled, it is unknown


class HealthFigures(NamedTuple):
    """NaN: not known yet. Contradictions are counted in the first layer only."""

    dead_units: float = math.nan  # share of units that were 0 for all rows of the last sampled microbatches
    weight_norm: float = math.nan
    margin: float = math.nan  # mean goodness of the right label minus that of the strongest wrong one, or of rows
    contradictions: float = math.nan  # share of negative rows that equal a positive row in image and label


class Health:
    """The figures of one layer, over the microbatches that were sampled."""

    def __init__(self) -> None:
        self._silent_F: Tensor | None = None
        self._sampled = 0
        self._contradictions: deque[tuple[int, int]] = deque()
        self._rows = 0

    def add_activities(self, h_NF: Tensor) -> float:
        """Samples activities. Returns the share of dead units."""
        silent_F = (h_NF == 0).all(0)
        before_F = torch.zeros_like(silent_F, dtype=torch.int64) if self._silent_F is None else self._silent_F
        self._silent_F = (before_F + 1) * silent_F
        self._sampled += 1
        if self._sampled < SILENT_MICROBATCHES:
            return math.nan
        return float((self._silent_F >= SILENT_MICROBATCHES).double().mean())

    def add_contradictions(self, found: int, rows: int) -> float:
        """Samples contradictions. Returns their share of the rows."""
        self._contradictions.append((found, rows))
        self._rows += rows
        while self._rows - self._contradictions[0][1] >= _WINDOW_ROWS:
            self._rows -= self._contradictions.popleft()[1]
        if self._rows < _WINDOW_MIN_ROWS:
            return math.nan
        return sum(found for found, _ in self._contradictions) / self._rows


def margin_by_label(G_BL: Tensor, own_B: Tensor) -> float:
    """Mean goodness of the right label minus that of the strongest wrong one."""
    right_B, wrong_B = right_and_strongest_wrong(G_BL, own_B)
    return float((right_B - wrong_B).mean())


def right_and_strongest_wrong(G_BL: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
    """The goodness (B) of each sample's own label, and the highest of the other labels."""
    own_B1 = own_B[:, None]
    return G_BL.gather(1, own_B1)[:, 0], G_BL.scatter(1, own_B1, -math.inf).max(1).values


def contradicting_labels(x_BI: Tensor, own_B: Tensor, wrong_B: Tensor | None) -> int:
    """How many samples have a wrong label that is the right one of an equal image. Without `wrong_B`, every label
    other than the own one is wrong."""
    images, own = _keys(x_BI), own_B.tolist()
    right: defaultdict[int, set[int]] = defaultdict(set)
    for image, label in zip(images, own, strict=True):
        right[image].add(label)
    if wrong_B is None:
        return sum(len(right[image]) > 1 for image in images)
    return sum(label in right[image] for image, label in zip(images, wrong_B.tolist(), strict=True))


def contradicting_images(x_NI: Tensor, positives: int) -> int:
    """How many negative rows equal a positive row. The first `positives` rows are positive."""
    images = _keys(x_NI)
    right = set(images[:positives])
    return sum(image in right for image in images[positives:])


def _keys(x_NI: Tensor) -> Sequence[int]:
    """Equal for rows of equal bytes. Two different rows collide with probability 2⁻⁶⁴."""
    return [xxh3_64_intdigest(row) for row in x_NI.cpu().contiguous().view(torch.uint8).numpy()]
