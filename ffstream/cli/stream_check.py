"""Whether a daemon can learn a data set: all of it is looked at before the first sample is sent."""

import numpy as np

from ffstream.data import Split
from ffstream.errors import BadShape, DataError, LabelOutOfRange
from ffstream.wire.messages import Welcome

_SUSPICIOUS_MAX = 16  # scikit-learn's digits end there


def shifted(split: Split, offset: int) -> Split:
    """`split` with `offset` added to every label. Raises DataError when one leaves 0 to 255."""
    if not offset:
        return split
    labels = split.labels.astype(np.int64) + offset
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 255:
        raise DataError(
            f"--label-offset {offset} turns the labels {low - offset} to {high - offset} into {low} to {high}",
            hint=f"labels are 0 to 255; --label-offset {offset - low} makes the lowest one 0",
        )
    return Split(split.images, labels.astype(np.uint8))


def check(split: Split, welcome: Welcome, offset: int = 0) -> list[str]:
    """Return what is suspicious about a split whose labels have that offset. Raises what the daemon would say.

    BadShape: the images do not fit the network. LabelOutOfRange: with the index of the first such label.
    """
    height, width = split.images.shape[1:]
    if height * width != welcome.inputs:
        raise BadShape(
            f"the images have {height} x {width} = {height * width} pixels, the daemon's network takes "
            f"{welcome.inputs}; nothing was sent",
            hint="replay another data set, or start the daemon on a new state folder with network.image_shape set",
        )
    low, high = int(split.labels.min()), int(split.labels.max())
    bad = np.flatnonzero(split.labels >= welcome.labels)
    if len(bad):
        first = int(bad[0])
        if high - low < welcome.labels:
            hint = f"--label-offset {offset - low} makes them 0 to {high - low}"
        else:
            hint = f"start the daemon on a new state folder with network.labels={high + 1}"
        raise LabelOutOfRange(
            f"the labels are {low} to {high}, the daemon takes 0 to {welcome.labels - 1}: {len(bad):,} of "
            f"{len(split):,} are out of range, first label {split.labels[first]} at index {first}; nothing was sent",
            hint=hint,
        )
    warnings = []
    if low > 0:
        warnings.append(
            f"the labels are {low} to {high}, none is 0: --label-offset {offset - low} makes them 0 to {high - low}"
        )
    brightest = int(split.images.max())
    if brightest <= _SUSPICIOUS_MAX:
        warnings.append(
            f"no pixel exceeds {brightest}, though uint8 images go to 255: the network will see nearly black images"
        )
    return warnings
