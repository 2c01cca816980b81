"""Streams: the order in which the samples of a split are sent, and concept drifts within it.

A stream depends on its arguments only. The same split, seed and order give the same samples in every process, so a
producer that was killed can continue where it stopped.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from ffstream.data.dataset import Split, UInt8Array
from ffstream.util.labels import UNLABELLED

_HIDDEN = 2**32  # no pass has this number, so hidden labels do not depend on the shuffles

Order = Literal["shuffled", "sorted_by_label", "as_is"]
IndexArray = npt.NDArray[np.intp]

LabelArray = npt.NDArray[np.uint8 | np.uint16]
"""uint8; uint16 where samples may have no label (UNLABELLED)."""

Drift = Callable[[int, UInt8Array], UInt8Array]
"""Maps (position in the stream of the first label, labels (n,)) to the labels to send (n,)."""


def stream(
    split: Split, *, passes: int = 1, seed: int = 0, limit: int | None = None, order: Order = "shuffled"
) -> Iterator[IndexArray]:
    """Yield for each pass the indices (n,) into the split, in the order in which the samples are sent.

    `shuffled`: a new shuffle each pass. `sorted_by_label`: one class after the other, shuffled within each.
    `as_is`: the order of the split. `limit` is the number of samples over all passes.
    Raises ValueError for a negative count or seed.
    """
    left = passes * len(split) if limit is None else limit
    if passes < 0 or left < 0:
        raise ValueError(f"passes={passes} and limit={limit} must not be negative")
    for number in range(passes):
        if left == 0:
            return
        indices = _pass(split, np.random.default_rng([seed, number]), order)[:left]
        left -= len(indices)
        yield indices


def batches(
    split: Split,
    batch: int,
    *,
    passes: int = 1,
    seed: int = 0,
    limit: int | None = None,
    order: Order = "shuffled",
    drift: Drift | None = None,
    label_fraction: float = 1.0,
    skip: int = 0,
) -> Iterator[tuple[UInt8Array, LabelArray]]:
    """Yield images (n, …) in the shape of the split and labels (n,), contiguous copies, in the order of `stream`.

    n is `batch`, except in the last batch, which may be smaller; a batch may span two passes. The first `skip`
    batches are left out. With `label_fraction` < 1, the same samples have a label in each pass; those of the others
    are UNLABELLED. Raises ValueError for batch < 1, skip < 0 or a fraction outside 0 to 1.
    """
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    cut = _cut(stream(split, passes=passes, seed=seed, limit=limit, order=order), batch)
    is_hidden = None if label_fraction == 1 else hidden(len(split), label_fraction, seed)
    for first, indices in islice(cut, skip, None):
        known = split.labels.take(indices)
        known = drift(first, known) if drift else known
        labels = known if is_hidden is None else np.where(is_hidden[indices], np.uint16(UNLABELLED), known)
        yield split.images.take(indices, axis=0), labels


def hidden(samples: int, label_fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which of the samples have no label, a random choice. Raises ValueError for a fraction outside 0 to 1."""
    if not 0 <= label_fraction <= 1:
        raise ValueError(f"label_fraction={label_fraction} must be 0 to 1")
    return np.random.default_rng([seed, _HIDDEN]).permutation(samples) >= round(label_fraction * samples)


def label_permutation_at(index: int, *, classes: int = 10, seed: int = 0) -> Drift:
    """Return a drift that permutes the labels, from sample `index` of the stream on.

    Each of the first `classes` labels becomes a different one. To evaluate the new concept, apply the drift to the
    test labels at position `index`. Raises ValueError for classes outside 2 to 256.
    """
    if not 2 <= classes <= 256:
        raise ValueError(f"classes={classes} must be 2 to 256")
    renamed = np.arange(256, dtype=np.uint8)
    # A single cycle through all classes, so no label maps to itself.
    cycle = np.random.default_rng(seed).permutation(classes)
    renamed[cycle] = np.roll(cycle, 1)

    def drift(first: int, labels: UInt8Array) -> UInt8Array:
        old = max(0, index - first)
        return np.concatenate([labels[:old], renamed[labels[old:]]])

    return drift


DRIFTS: Mapping[str, Callable[..., Drift]] = {"label_permutation": label_permutation_at}
"""Drifts by name. Each takes the position in the stream at which it begins, and the keywords `classes` and `seed`."""


def _pass(split: Split, rng: np.random.Generator, order: Order) -> IndexArray:
    match order:
        case "as_is":
            return np.arange(len(split))
        case "shuffled":
            return rng.permutation(len(split))
        case "sorted_by_label":
            shuffled = rng.permutation(len(split))
            return shuffled[np.argsort(split.labels[shuffled], kind="stable")]


def _cut(passes: Iterator[IndexArray], batch: int) -> Iterator[tuple[int, IndexArray]]:
    """Yield (position in the stream, indices of one batch)."""
    position = 0
    pending = np.empty(0, np.intp)
    for indices in passes:
        pending = np.concatenate([pending, indices])
        while len(pending) >= batch:
            yield position, pending[:batch]
            position += batch
            pending = pending[batch:]
    if len(pending):
        yield position, pending
